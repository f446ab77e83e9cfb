"""Foreign text never steers the terminal and never shows what was not said."""

from collections.abc import Callable
from pathlib import Path

import pytest
from textual.widgets._tooltip import Tooltip

from mmchat.history import History
from mmchat.sanitize import clean
from mmchat.tui.app import ChatApp
from mmchat.tui.widgets.answer_text import AnswerText
from mmchat.tui.widgets.picture import Thumbnail
from tests.tui.conftest import answered, draw, drawn, say, until

NewApp = Callable[..., ChatApp]


async def test_hostile_output_is_harmless(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test(size=(120, 40)) as pilot:
        await say(pilot, "escape")
        await answered(pilot)
        await say(pilot, "say [bold]x[/bold] [/] <b>raw</b> ![p](http://127.0.0.1:9/x.png)")
        await answered(pilot)
        await say(
            pilot,
            "say A&#x202e;gpj.exe&rlm; [la&#x2066;bel](http://a/) <http://b/%E2%80%AEmoc> "
            "![alt&#x202d;text](c.png)",
        )
        await answered(pilot)
        sources = [body.source for body in app.chat.query(AnswerText)]
        assert not any(ch in text for text in sources for ch in "\x1b\x07\x9b\u202e")
        screen = drawn(app)
        assert screen == clean(screen)
        for part in ("[bold]x[/bold]", "<b>raw</b>", "Agpj.exe", "label", "http://b/moc"):
            assert part in screen


async def test_a_hostile_name_of_a_folder_stays_outside_the_input(
    new_app: NewApp, tmp_path: Path
) -> None:
    for name in ("x\x1b]52;c;aGk=\adir", "\u202egnp", "two\nlines", "plain  name"):
        draw(tmp_path / name / "a.png")
    draw(tmp_path / "b\x1b[31m.png")
    app = new_app()
    async with app.run_test(size=(120, 40)) as pilot:
        box = app.chat.composer.input
        box.set_text(f"@{tmp_path}/")
        await until(pilot, lambda: app.chat.composer._suggestions)
        assert [one.label for one in app.chat.composer._suggestions] == ["b[31m.png", "plain name/"]
        await pilot.press("down", "enter")
        await until(pilot, lambda: box.text.endswith("plain\\ \\ name/"))
        box.set_text("\x1b]52;c;aGk=\a\u202e")
        assert box.text == "]52;c;aGk="
        await pilot.pause()
        assert drawn(app) == clean(drawn(app))


async def test_the_tooltip_of_a_broken_picture_is_no_markup(
    new_app: NewApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ChatApp, "TOOLTIP_DELAY", 0.01)
    name = "[a=b c=d] [x].png"
    with History.open() as history:
        image = history.add_image(b"no picture", mime="image/png", width=64, height=64, name=name)
        conversation = history.new_conversation(name).id
        history.add_message(conversation, "user", "[/]", images=[image.sha256])
    app = new_app()
    async with app.run_test(size=(120, 40), tooltips=True) as pilot:
        picture = app.chat.query_one(Thumbnail)
        await until(pilot, lambda: picture.tooltip)
        await pilot.hover(picture)
        tooltip = app.screen.get_child_by_type(Tooltip)
        await until(pilot, lambda: tooltip.display)
        assert name in str(tooltip.content)
        assert name in drawn(app)
