"""The worst answers, as rows for a terminal and as an HTML page with their pictures.

The page is one file. All untrusted text on it is escaped, it has no scripts, and its policy forbids the
browser to load anything.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from html import escape
from typing import Final

from mmchat.answer_match import normalize
from mmchat.display.text import one_line
from mmchat.errors import DataError, ImageError
from mmchat.evaluation.graders import GradedAnswer
from mmchat.evaluation.questions import QuestionPicture, QuestionSet
from mmchat.evaluation.report import share_and_interval
from mmchat.evaluation.results import EvaluationResult
from mmchat.evaluation.text_metrics import rouge_l
from mmchat.images import decode
from mmchat.sanitize import clean

MAX_ANSWERS: Final = 10
_PICTURE_SIDE: Final = 240  # pixels of a picture's longer side on the page
_MAX_COMPARED: Final = 120  # characters of each answer: the time grows with their square
_MAX_TEXT: Final = 2000  # characters of a text on the page
_MAX_PICTURES: Final = 6  # of a question on the page

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
.reference { color: var(--right) } .prediction { color: var(--wrong) } p { color: var(--soft) }
"""


@dataclass(frozen=True, slots=True)
class WrongAnswer:
    """A wrong answer and its similarity to the reference, from 0 to 1."""

    answer: GradedAnswer
    rouge_l: float
    same_characters: float


def find_worst(result: EvaluationResult, limit: int = MAX_ANSWERS) -> list[WrongAnswer]:
    """The wrong answers that are least like their references, the worst first.

    They are sorted by ROUGE-L, then by the characters in common, then in the order of the data.
    """
    scored = [(rouge_l(a.prediction, a.reference), a) for a in result.answers if not a.correct]
    if not scored or limit < 1:
        return []
    # Comparing characters is slow, so only answers are compared for which it can matter.
    threshold = sorted(score for score, _ in scored)[min(limit, len(scored)) - 1]
    worst = [
        WrongAnswer(a, score, same_characters(a.prediction, a.reference))
        for score, a in scored
        if score <= threshold
    ]
    return sorted(worst, key=lambda wrong: (wrong.rouge_l, wrong.same_characters))[:limit]


def same_characters(answer: str, reference: str) -> float:
    """The share of characters that the two have in common, in order (Ratcliff and Obershelp)."""
    one, other = normalize(answer)[:_MAX_COMPARED], normalize(reference)[:_MAX_COMPARED]
    return SequenceMatcher(None, one, other, autojunk=False).ratio()


def worst_rows(worst: Sequence[WrongAnswer]) -> list[tuple[str, str, str, str]]:
    """(type, question, reference, prediction) of each, sanitized and shortened for a terminal."""
    return [
        (
            one_line(a.type, 14),
            one_line(a.question, 34),
            one_line(a.reference, 26),
            one_line(_answer_text(a), 40),
        )
        for a in (wrong.answer for wrong in worst)
    ]


def worst_page(
    worst: Sequence[WrongAnswer], result: EvaluationResult, questions: QuestionSet
) -> str:
    """The HTML page. A picture that cannot be shown is replaced by a note."""
    setup, exact_match = result.setup, result.exact_match
    share, interval = share_and_interval(exact_match)
    model = " with ".join(name for name in (setup.model, setup.adapter) if name)
    articles = [_article(number, wrong.answer, questions) for number, wrong in enumerate(worst, 1)]
    titles = {0: "No wrong answers", 1: "The wrong answer"}
    title = titles.get(len(worst), f"The {len(worst)} worst answers")
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
<p>{_html(model)}: {share} of {exact_match.n:,} right ({interval}). The wrong answers that are
least like their references come first.</p>
{"".join(articles)}</body>
</html>
"""


def _article(number: int, answer: GradedAnswer, questions: QuestionSet) -> str:
    names = list(dict.fromkeys(answer.images))
    pictures = "".join(_img(questions.pictures[name]) for name in names[:_MAX_PICTURES])
    if len(names) > _MAX_PICTURES:
        pictures += f"<p>and {len(names) - _MAX_PICTURES} more pictures</p>"
    return f"""<article>
<h2>{number} · {_html(answer.type)} · {_html(answer.id)}</h2>
<div>{pictures}</div>
<dl>
<dt>question</dt><dd>{_html(answer.question)}</dd>
<dt>reference</dt><dd class="reference">{_html(answer.reference)}</dd>
<dt>prediction</dt><dd class="prediction">{_html(_answer_text(answer))}</dd>
</dl>
</article>
"""


def _img(picture: QuestionPicture) -> str:
    try:
        image = decode(picture.data, max_side=_PICTURE_SIDE)
    except (ImageError, DataError):
        return "<p>a picture that cannot be shown</p>"
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode()
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img src="data:image/png;base64,{data}" {size} alt="the picture of the question">\n'


def _answer_text(answer: GradedAnswer) -> str:
    return f"(no answer) {answer.error}" if answer.error else answer.prediction


def _html(text: str) -> str:
    return escape(clean(text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"))
