"""The parts of the training screen that show a run: progress, losses, answers, measured table."""

from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size
from textual import events
from textual.app import ComposeResult, RenderResult
from textual.color import Color
from textual.containers import Vertical
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static
from textual_plotext import PlotextPlot

from mmchat.display.text import GAP, bar, cut, one_line, wrapped
from mmchat.training import status_format
from mmchat.training.curves import Curves
from mmchat.training.plot import HELD_OUT, draw_losses
from mmchat.training.run_folder import Measurement, SampleAnswer
from mmchat.tui.labels import MUTED
from mmchat.tui.runs import RunSnapshot
from mmchat.tui.widgets.status import TitleLine

LOWEST_LOSSES, GOOD_LOSSES = 6, 8


class Bar(Widget):
    """A progress bar over the whole width."""

    def __init__(self, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._fraction = 0.0

    def show(self, fraction: float) -> None:
        self._fraction = fraction
        self.refresh()

    def render(self) -> RenderResult:
        done, left = bar(self._fraction, self.size.width)
        return Content.assemble((done, "$primary"), (left, "$foreground 20%"))


class Parts(Widget):
    """Figures side by side, in as many lines as they need; none is split."""

    def __init__(self, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._parts: Sequence[str] = ()

    def show(self, parts: Sequence[str]) -> None:
        self.set_class(not parts, "empty")
        if parts != self._parts:
            self._parts = parts
            self.refresh(layout=True)

    def get_content_height(self, container: object, viewport: object, width: int) -> int:
        return len(wrapped(self._parts, width))

    def render(self) -> RenderResult:
        return Content("\n".join(wrapped(self._parts, self.size.width)))


class LossChart(PlotextPlot):
    """Both losses over the steps, in the theme's colours."""

    def __init__(self, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        # Ground, axes and labels have the widget's own colours; "auto" is black on some themes.
        self.theme = "textual-clear"
        self._curves = Curves()

    def on_mount(self) -> None:
        super().on_mount()
        self.app.theme_changed_signal.subscribe(self, lambda theme: self._plot_again())

    def on_resize(self, event: events.Resize) -> None:
        self._plot_again()

    def show(self, curves: Curves) -> None:
        if curves != self._curves:
            self._curves = curves
            self._plot_again()

    def _plot_again(self) -> None:
        if not self.is_mounted:
            return
        colors = self._colour("text-primary"), self._colour("text-warning")
        draw_losses(self.plt, self._curves, *self.size, *colors)
        self.refresh()

    def _colour(self, name: str) -> int | tuple[int, int, int]:
        colour = Color.parse(self.app.theme_variables[name])
        # On an "ansi" theme the terminal's own colours, by their number.
        return colour.ansi if colour.ansi is not None and colour.ansi >= 0 else colour.rgb


class Answers(Widget):
    """What the model says to held-out questions now: as many as there is room for, none in half."""

    def __init__(self, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._samples: Sequence[SampleAnswer] = ()

    def show(self, samples: Sequence[SampleAnswer]) -> None:
        self.set_class(not samples, "empty")
        if samples != self._samples:
            self._samples = samples
            self.refresh(layout=True)

    def get_content_height(self, container: object, viewport: object, width: int) -> int:
        return 1 + sum(len(self._block(sample, width)) for sample in self._samples)

    def render(self) -> RenderResult:
        width, height = self.size
        lines = [Content.styled("what it answers now", MUTED)]
        for block in (self._block(sample, width) for sample in self._samples):
            if len(lines) + len(block) > height:
                break
            lines += block
        return Content("\n").join(lines)

    @staticmethod
    def _block(sample: SampleAnswer, width: int) -> list[Content]:
        answer = status_format.check_answer(sample)
        mark = ("✓ ", "$text-success") if answer.right else ("✗ ", "$text-error")
        together = ", ".join(answer.parts)
        if 2 + cell_len(answer.question) + GAP + cell_len(together) <= width:
            return [Content.assemble(mark, (answer.question, MUTED), " " * GAP, together)]
        first = Content.assemble(mark, (cut(answer.question, width - 2), MUTED))
        return [first, *(Content("  " + cut(part, width - 2)) for part in answer.parts)]


class Table(Static):
    """Results before and after, with intervals; in a narrow window below each other."""

    def __init__(self, id: str | None = None) -> None:  # noqa: A002
        super().__init__("", id=id, markup=False)
        self._rows: Sequence[Measurement] = ()

    def show(self, rows: Sequence[Measurement]) -> None:
        self.display = bool(rows)
        self._rows = rows
        self._write()

    def on_resize(self, event: events.Resize) -> None:
        self._write()

    def _write(self) -> None:
        table = [status_format.TABLE_HEADER, *status_format.table(self._rows)]
        widths = [max(cell_len(row[n]) for row in table) for n in range(4)]
        lines: list[Content] = []
        if sum(widths) + 3 * GAP <= self.size.width:
            for place, (what, n, before, after) in enumerate(table):
                first = (
                    set_cell_size(what, widths[0]) + " " * GAP + n.rjust(widths[1]) + " " * GAP,
                    set_cell_size(before, widths[2] + GAP),
                )
                style = MUTED if place == 0 else ""
                last = (after, MUTED if place == 0 else "bold")
                lines.append(Content.assemble((first[0], style), (first[1], style), last))
        else:
            for what, n, before, after in table[1:]:
                lines.append(Content(f"{what} (n = {n})"))
                lines.append(Content.styled(f"  before {before}", MUTED))
                lines.append(Content.assemble("  after  ", (after, "bold")))
        self.update(Content("\n").join(lines))


class Middle(Vertical):
    """The losses and the answers: beside each other or, in a narrow window, below each other."""

    def compose(self) -> ComposeResult:
        with Vertical(id="run-losses"):
            yield Static("", id="run-legend", markup=False)
            yield LossChart(id="run-chart")
        yield Answers(id="run-answers")

    def show(self, run: RunSnapshot) -> None:
        legend = [("loss", "$text-primary")]
        if run.curves.held_out:
            legend.append((f"   {HELD_OUT} held-out", "$text-warning"))
        self.query_one("#run-legend", Static).update(Content.assemble(*legend))
        self.query_one(LossChart).show(run.curves)
        self.query_one(Answers).show(run.status.samples)
        drawn = bool(run.curves.training or run.curves.held_out)
        self.query_one("#run-losses").set_class(not drawn, "empty")
        self.share()

    def on_resize(self, event: events.Resize) -> None:
        self.share()

    def share(self) -> None:
        """Share the height: the curve needs some lines, answers get the rest, whole ones only."""
        losses, answers = self.query_one("#run-losses"), self.query_one(Answers)
        room = self.size.height
        losses.set_class(room < LOWEST_LOSSES, "crowded")
        beside = self.styles.layout is not None and self.styles.layout.name == "horizontal"
        drawn = not (losses.has_class("empty") or losses.has_class("crowded"))
        left = room - GOOD_LOSSES - 1 if drawn and not beside else room
        answers.styles.max_height = max(left, 0)
        answers.set_class(left < 2, "crowded")


class RunView(Vertical):
    """One run, in any state."""

    def compose(self) -> ComposeResult:
        yield TitleLine(id="run-name")
        yield Bar(id="run-bar")
        yield Parts(id="run-where")
        yield Parts(id="run-figures")
        yield Table(id="run-table")
        yield Middle(id="run-middle")
        yield Static("", id="run-note", markup=False)

    def show(self, run: RunSnapshot, sentence: str = "") -> None:
        """Update everything. `sentence` is shown in place of the run's own."""
        status = run.status
        finished = status.state == "finished"
        right = status_format.heading(status)
        if not finished:
            right += f" · {status_format.percent(status)}"
        line = self.query_one("#run-name", TitleLine)
        line.title, line.model = one_line(status.name, 100), right
        self.query_one(Bar).show(status_format.fraction(status))
        self.query_one(Bar).display = not finished
        self.query_one("#run-where", Parts).show([] if finished else status_format.where(status))
        self.query_one("#run-figures", Parts).show(
            [] if finished else status_format.figures(status)
        )
        self.query_one(Table).show(status.rows)
        self.query_one(Middle).show(run)
        self.set_class(not run.active, "ended")
        shown = sentence or status_format.sentence(status)
        note = self.query_one("#run-note", Static)
        note.update(shown)
        note.set_class(status.state == "failed" and not sentence, "error")
        note.display = bool(shown)
