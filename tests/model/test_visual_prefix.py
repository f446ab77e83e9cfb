"""Every encoder with every projector and decoder: forward, save, reload, generate."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from mmchat.errors import ModelError
from mmchat.model.configuration import prefix_tokens
from mmchat.model.encoders import encoder_for
from mmchat.model.projectors import build_projector, pixel_shuffle
from mmchat.model.visual_prefix import VisualPrefixForConditionalGeneration
from tests.model.parts import DECODERS, ENCODERS, IMAGE_TOKEN, PROJECTORS, config, parameter_count

WHOLE = list(itertools.product(PROJECTORS, ENCODERS, DECODERS))
# A part of the matrix in which each kind of each of the three occurs at least once.
SHARE = [
    (PROJECTORS[i % len(PROJECTORS)], encoder, list(DECODERS)[i % len(DECODERS)])
    for i, encoder in enumerate(ENCODERS)
] + [
    (PROJECTORS[(i + 3) % len(PROJECTORS)], list(ENCODERS)[(i + 5) % len(ENCODERS)], decoder)
    for i, decoder in enumerate(DECODERS)
]


def build(settings: Any) -> Any:
    torch.manual_seed(0)
    return VisualPrefixForConditionalGeneration(settings).eval()


def prompt(model: Any, pictures: int = 1, words: tuple[int, ...] = (7, 8, 9)) -> torch.Tensor:
    """(1, tokens): text, pictures, text."""
    prefix = [IMAGE_TOKEN] * model.config.image_seq_length * pictures
    return torch.tensor([[1, 11, *prefix, *words]])


def pixels(model: Any, pictures: int = 1, seed: int = 0) -> torch.Tensor:
    side = model.model.encoder.image_size
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(pictures, 3, side, side, generator=generator)


def check(projector: str, encoder: str, decoder: str, folder: Path) -> None:
    model = build(config(projector, encoder, decoder, projector_positions=True))
    ids, first, second = prompt(model), pixels(model), pixels(model, seed=1)
    with torch.inference_mode():
        logits = model(input_ids=ids, pixel_values=first).logits
        other = model(input_ids=ids, pixel_values=second).logits
    assert logits.shape == (1, ids.shape[1], 97)
    assert torch.isfinite(logits).all()
    assert not torch.allclose(logits[:, -1], other[:, -1]), "the picture changes nothing"

    model.save_pretrained(folder)
    again = AutoModelForImageTextToText.from_pretrained(folder).eval()
    assert type(again) is VisualPrefixForConditionalGeneration
    with torch.inference_mode():
        assert torch.equal(again(input_ids=ids, pixel_values=first).logits, logits)
        said = [
            m.generate(input_ids=ids, pixel_values=first, max_new_tokens=6, do_sample=False)
            for m in (model, again)
        ]
    assert torch.equal(said[0], said[1])
    assert said[0].shape[1] > ids.shape[1]


@pytest.mark.parametrize(("projector", "encoder", "decoder"), SHARE)
def test_a_share_of_the_matrix(projector: str, encoder: str, decoder: str, tmp_path: Path) -> None:
    check(projector, encoder, decoder, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("projector", "encoder", "decoder"), WHOLE)
def test_the_whole_matrix(projector: str, encoder: str, decoder: str, tmp_path: Path) -> None:
    check(projector, encoder, decoder, tmp_path)


@pytest.mark.parametrize("decoder", DECODERS)
def test_text_only_logits_are_the_decoders_own(decoder: str) -> None:
    """Scales and soft caps of the causal-LM class are applied, which LLaVA's classes leave out."""
    model = build(config(decoder=decoder))
    torch.manual_seed(1)
    own = AutoModelForCausalLM.from_config(DECODERS[decoder]()).eval()
    for parameter in own.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.model.language_model.load_state_dict(own.get_decoder().state_dict())
    model.lm_head.load_state_dict(own.get_output_embeddings().state_dict())
    ids = torch.tensor([[1, 11, 23, 42, 7]])
    with torch.inference_mode():
        wanted, found = own(input_ids=ids).logits, model(input_ids=ids).logits
    assert wanted.std() > 0.05
    assert torch.equal(wanted, found)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("projector", PROJECTORS)
@pytest.mark.parametrize("positions", [False, True])
def test_sizes_are_known_without_building(encoder: str, projector: str, positions: bool) -> None:
    settings = config(projector, encoder, projector_positions=positions)
    built = build_projector(settings)
    assert sum(p.numel() for p in built.parameters()) == parameter_count(settings)
    kind = encoder_for(settings.vision_config, settings.image_size)
    features = torch.randn(2, kind.grid**2, kind.width)
    tokens = built(features)
    assert tokens.shape == (2, prefix_tokens(settings), settings.text_config.hidden_size)
    assert settings.image_seq_length == prefix_tokens(settings)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_encoders_give_the_grid_in_its_order(encoder: str) -> None:
    """The feature that a patch of the picture changes most is at the patch's place, or next to it."""
    model = build(config(encoder=encoder))
    kind = model.model.encoder
    pictures = pixels(model)
    changed = pictures.clone()
    patch = kind.image_size // kind.grid
    row, column = kind.grid - 1, 0
    changed[..., row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] += 0.3
    with torch.inference_mode():
        before, after = model.encode_images(pictures), model.encode_images(changed)
    assert before.shape == (1, kind.grid**2, kind.width)
    moved = (after - before).norm(dim=-1)[0]
    found = divmod(int(moved.argmax()), kind.grid)
    assert abs(found[0] - row) <= 1 and abs(found[1] - column) <= 1


def test_several_pictures_keep_their_order() -> None:
    model = build(config())
    two = pixels(model, 2)
    ids = prompt(model, 2)
    with torch.inference_mode():
        logits = model(input_ids=ids, pixel_values=two).logits
        swapped = model(input_ids=ids, pixel_values=two.flip(0)).logits
    assert not torch.allclose(logits, swapped)


def test_features_once_then_projected_are_the_same() -> None:
    """The engine's way (cached features, inserted embeddings) equals the model's own forward."""
    model = build(config("shuffle_mlp", projector_positions=True))
    ids, picture = prompt(model), pixels(model)
    with torch.inference_mode():
        wanted = model(input_ids=ids, pixel_values=picture).logits
        prefix = model.project(model.encode_images(picture))
        embeds = model.get_input_embeddings()(ids).clone()
        embeds[ids == IMAGE_TOKEN] = prefix.flatten(0, 1)
        found = model(inputs_embeds=embeds).logits
    assert torch.equal(wanted, found)


def test_pixel_shuffle_is_idefics3s() -> None:
    """The order inside a joined feature is that of Idefics3's weights."""
    from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector

    features = torch.randn(2, 36, 5)
    theirs = Idefics3Connector.pixel_shuffle(None, features, 3)
    assert torch.equal(pixel_shuffle(features, 6, 3), theirs)


def test_gradient_checkpointing_trains_the_same() -> None:
    model = build(config()).train()
    ids, picture = prompt(model), pixels(model)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)()  # its name before 5.20
        model.zero_grad()
        model(input_ids=ids, pixel_values=picture, labels=ids).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))


def test_configuration_round_trip(tmp_path: Path) -> None:
    settings = config("perceiver", "resnet", "qwen3", projector_layers=3)
    settings.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path).to_dict() | {"_name_or_path": ""}
    assert again == settings.to_dict()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"projector": "shuffle_mlp", "projector_factor": 3}, "divisor of 4"),
        ({"projector": "perceiver", "projector_heads": 5}, "projector_heads = 5"),
    ],
)
def test_sizes_that_do_not_fit_are_errors(more: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        config(**more)


def test_an_unknown_encoder_is_an_error() -> None:
    with pytest.raises(ModelError, match="kind llama cannot be used"):
        encoder_for(DECODERS["llama"]())
