"""The worst answers: as a page with their pictures that needs nothing else, and as rows of text.

Everything on the page is foreign, and stands there as text; the page has no script, and the
browser is told to load nothing.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from html import escape
from typing import Final

from mmchat.errors import DataError, ImageError
from mmchat.evaluation.metrics import normalise
from mmchat.evaluation.outcome import Outcome
from mmchat.evaluation.questions import Questions, Shown
from mmchat.evaluation.report import Report, figures
from mmchat.evaluation.texts import rouge_l
from mmchat.images import decode
from mmchat.sanitize import clean

MOST: Final = 10
_PIXELS: Final = 240  # the longer side of a picture on the page
_COMPARED: Final = 120  # characters of each answer: the effort grows with their square
_SHOWN_TEXT: Final = 2000  # characters of a text on the page
_SHOWN_PICTURES: Final = 6  # of a question

_STYLE = """
:root { color-scheme: light dark; --line: #ccc; --soft: #666; --wrong: #b00020; --right: #1b6e3c }
@media (prefers-color-scheme: dark) {
  :root { --line: #444; --soft: #aaa; --wrong: #ff8a80; --right: #81c995 }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 54rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1rem; color: var(--soft); font-weight: normal }
article { border-top: 1px solid var(--line); padding: 1rem 0 }
img { border: 1px solid var(--line); margin: 0 .5rem .5rem 0; vertical-align: top }
dl { display: grid; grid-template-columns: 6rem 1fr; gap: .25rem 1rem; margin: 0 }
dt { color: var(--soft) }
dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere }
.wanted { color: var(--right) } .given { color: var(--wrong) } p { color: var(--soft) }
"""


@dataclass(frozen=True, slots=True)
class Wrong:
    """A wrong answer, and how near it is to the wanted one: 0 nothing alike, 1 the same."""

    outcome: Outcome
    words: float
    """ROUGE-L."""
    characters: float
    """`same_characters`."""


def find_worst(report: Report, most: int = MOST) -> list[Wrong]:
    """The wrong answers that are least like the wanted ones, the worst first.

    By the words in common; where those are as many by the characters, and where those are as
    many too in the order of the data.
    """
    scored = [(rouge_l(one.given, one.wanted), one) for one in report.outcomes if not one.right]
    if not scored or most < 1:
        return []
    # Comparing characters is slow: only where they can decide.
    limit = sorted(score for score, _ in scored)[min(most, len(scored)) - 1]
    found = [
        Wrong(one, score, same_characters(one.given, one.wanted))
        for score, one in scored
        if score <= limit
    ]
    return sorted(found, key=lambda wrong: (wrong.words, wrong.characters))[:most]


def same_characters(answer: str, wanted: str) -> float:
    """The share of characters that the two have in common, in order (Ratcliff and Obershelp)."""
    one, other = normalise(answer)[:_COMPARED], normalise(wanted)[:_COMPARED]
    return SequenceMatcher(None, one, other, autojunk=False).ratio()


def worst_rows(worst: Sequence[Wrong]) -> list[tuple[str, str, str, str]]:
    """(type, question, wanted, given) of each, for a terminal."""
    return [
        (_short(w.type, 14), _short(w.question, 34), _short(w.wanted, 26), _short(_given(w), 40))
        for w in (wrong.outcome for wrong in worst)
    ]


def worst_page(worst: Sequence[Wrong], report: Report, asked: Questions) -> str:
    """A page of HTML; a picture that cannot be shown is said to be so."""
    subject = report.subject
    share, interval = figures(report.total)
    who = " with ".join(name for name in (subject.model, subject.adapter) if name)
    articles = [_article(number, wrong, asked) for number, wrong in enumerate(worst, 1)]
    title = {0: "No wrong answer", 1: "The wrong answer"}.get(
        len(worst), f"The {len(worst)} worst answers"
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{title}</h1>
<p>{_text(who)}: {share} of {report.total.n:,} right ({interval}). The wrong answers that are
least like the wanted ones come first.</p>
{"".join(articles)}</body>
</html>
"""


def _article(number: int, wrong: Wrong, asked: Questions) -> str:
    outcome = wrong.outcome
    names = list(dict.fromkeys(outcome.images))
    pictures = "".join(_picture(asked.shown[name]) for name in names[:_SHOWN_PICTURES])
    if len(names) > _SHOWN_PICTURES:
        pictures += f"<p>and {len(names) - _SHOWN_PICTURES} more pictures</p>"
    return f"""<article>
<h2>{number} · {_text(outcome.type)} · {_text(outcome.id)}</h2>
<div>{pictures}</div>
<dl>
<dt>question</dt><dd>{_text(outcome.question)}</dd>
<dt>wanted</dt><dd class="wanted">{_text(outcome.wanted)}</dd>
<dt>given</dt><dd class="given">{_text(_given(outcome))}</dd>
</dl>
</article>
"""


def _picture(picture: Shown) -> str:
    try:
        image = decode(picture.data, max_side=_PIXELS)
    except (ImageError, DataError):
        return "<p>a picture that cannot be shown</p>"
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode()
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img src="data:image/png;base64,{data}" {size} alt="the picture of the question">\n'


def _given(outcome: Outcome) -> str:
    return f"(no answer) {outcome.unanswered}" if outcome.unanswered else outcome.given


def _text(text: str) -> str:
    return escape(clean(_cut(text, _SHOWN_TEXT)))


def _short(text: str, most: int) -> str:
    return _cut(clean(text, keep_newlines=False), most)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
