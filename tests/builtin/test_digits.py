"""The committed adapter reads real handwriting, and leaves no trace when it is off."""

import hashlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from mmchat.adapters.card import find_adapter, read_card
from mmchat.client import EngineClient
from mmchat.data import read_data
from mmchat.evaluation.question_sets import held_out_of_training
from mmchat.prompt.model_inputs import build_prompt
from mmchat.turns import ImagePart
from tests.adapters.adapting import active
from tests.builtin.asking import picture, user
from tests.builtin.test_switching import asked

if TYPE_CHECKING:
    from mmchat.model.loaded_model import LoadedModel

ASKED = 30
FOLDER = Path(__file__).resolve().parents[2] / "adapters" / "digits"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data, drawn by the adapter's own script."""
    spec = importlib.util.spec_from_file_location("draw_digits", FOLDER / "draw.py")
    assert spec is not None and spec.loader is not None
    script: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    folder = tmp_path_factory.mktemp("digits")
    script.main(["--out", str(folder)])
    return folder


async def test_it_reads_digits_that_it_was_not_trained_on(
    new_client: Callable[..., EngineClient], digits: Path
) -> None:
    """The card has the figure of all 359; a part of them is enough to see that the files are whole."""
    kept, by = held_out_of_training(read_data(digits), ["digits"])
    assert (len(kept), by) == (359, ["digits"])
    client = new_client()
    right = 0
    for example in kept[:: len(kept) // ASKED][:ASKED]:
        question, answer = example.turns
        parts = []
        for part in question.parts:
            if isinstance(part, str):
                parts.append(part)
            else:
                data = part.data
                parts.append(ImagePart(hashlib.sha256(data).hexdigest(), "image/png", data))
        text, done = await asked(client, [user(*parts)], "digits")
        assert done.adapter == "digits"
        right += text == answer.parts[0]
    assert right >= 0.9 * ASKED


@pytest.fixture
def plain(loaded: "LoadedModel") -> Iterator["LoadedModel"]:
    yield loaded
    active(loaded).switch("")


def test_off_it_has_left_nothing(plain: "LoadedModel") -> None:
    turns = [user(picture("stars"), "what is in this picture?")]

    @torch.no_grad()
    def logits() -> torch.Tensor:
        prompt = build_prompt(plain, turns, 8)
        found: torch.Tensor = plain.model(input_ids=prompt.input_ids, **prompt.model_inputs).logits
        return found

    before = logits()
    active(plain).switch("digits")
    assert not torch.equal(logits(), before)
    active(plain).switch("")
    assert torch.equal(logits(), before)


def test_its_files_are_small_and_its_card_tells_what_was_measured() -> None:
    folder = find_adapter("digits")
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 5_000_000
    card = read_card(folder)
    assert card.base.id == "scenes"
    assert card.metrics["held_out_answers_with"].n == 359
    text = (folder / "README.md").read_text(encoding="utf-8")
    share = 100 * card.metrics["held_out_answers_with"].value
    assert f"**{share:.1f} %**" in text
