"""Pictures whose shape an image processor refuses, or would enlarge without limit."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from mmchat.data.types import Example, Picture
from mmchat.errors import ImageError
from mmchat.model.loaded_model import LoadedModel
from mmchat.prompt import pixel_values
from mmchat.prompt.model_inputs import build_prompt
from mmchat.prompt.pixel_values import MAX_ENLARGED_PIXELS, PixelCache, enlarged_size
from mmchat.training.encode import ExampleEncoder
from mmchat.turns import ImagePart, Turn
from tests.images.builders import encode

Loaded = Callable[[str, str], LoadedModel]


def shape(width: int, height: int) -> bytes:
    return encode(Image.new("RGB", (width, height), "red"), "PNG")


def ask(model: LoadedModel, *shapes: tuple[int, int]) -> Any:
    parts = [ImagePart(f"{at:064}", data=shape(*size)) for at, size in enumerate(shapes)]
    return build_prompt(model, [Turn("user", (*parts, "what?"))], 8)


def with_shortest_edge(model: LoadedModel, edge: int) -> LoadedModel:
    processor = copy.deepcopy(model.processor)
    processor.image_processor.size = {"shortest_edge": edge}
    return replace(model, processor=processor, pixels=PixelCache())


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (10, 2100)])
def test_a_shape_that_the_processor_refuses_is_an_error_of_one_sentence(
    loaded: Loaded, size: tuple[int, int]
) -> None:
    model = loaded("qwen2_vl", "fp32")
    with pytest.raises(ImageError) as refused:
        ask(model, (40, 40), size, (30, 50))
    said = str(refused.value)
    assert f"the picture ({size[0]:,} × {size[1]:,} pixels) has a shape that" in said
    assert "must be smaller than 200" in said and "\n" not in said
    assert ask(model, (40, 40), (30, 50)).image_tokens


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1)])
def test_a_picture_is_not_enlarged_without_bound(
    loaded: Loaded, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = with_shortest_edge(loaded("llava", "fp32"), 336)
    monkeypatch.setattr(pixel_values, "process_pictures", None)  # it is never reached
    with pytest.raises(ImageError, match=r"it would be enlarged to [\d,]+ × [\d,]+ pixels"):
        ask(model, size)
    monkeypatch.undo()
    assert ask(loaded("llava", "fp32"), size).image_tokens


def test_the_sizes_that_are_bounded_by_the_processor(loaded: Loaded) -> None:
    sizes = [(1, 1), (1, 5000), (5000, 1), (3, 400), (3, 3), (10, 2100)]
    for kind in ("idefics3", "smolvlm", "gemma3", "visual_prefix"):
        model = loaded(kind, "fp32")
        for size in sizes:
            assert enlarged_size(model.processor.image_processor, *size) == (0, 0)
            assert ask(model, size).image_tokens
    processor = loaded("llava", "fp32").processor.image_processor
    wide, high = enlarged_size(processor, 10, 2100)
    assert (wide, high) == (32, 6720) and wide * high < MAX_ENLARGED_PIXELS


def test_a_failure_with_every_picture_is_not_blamed_on_the_shape(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(processor: Any, images: Any) -> Any:
        raise KeyError("pixel_values")

    monkeypatch.setattr(pixel_values, "process_pictures", broken)
    with pytest.raises(KeyError):
        ask(loaded("qwen2_vl", "fp32"), (40, 40))


@pytest.mark.parametrize("kind", ["qwen2_vl", "visual_prefix"])
def test_in_training_such_a_picture_is_a_problem_of_its_sample(loaded: Loaded, kind: str) -> None:
    model = loaded(kind, "fp32")
    if kind == "visual_prefix":
        model = with_shortest_edge(model, 336)
    examples = []
    for width, height in ((40, 40), (2, 5000), (30, 50)):
        data = shape(width, height)
        picture = Picture(f"{width:064}", "image/png", width, height, f"{width}.png", held=data)
        turns = (Turn("user", (picture, "what?")), Turn("assistant", ("it is red",)))
        examples.append(Example(turns, "", f"sample {width}"))
    encode_examples = ExampleEncoder(model).encode_examples(examples, 4096)
    (problem,) = encode_examples.problems
    assert len(encode_examples.examples) == 2 and problem.place == "sample 2"
    assert problem.why.startswith("the picture 2.png (2 × 5,000 pixels) has a shape that")
