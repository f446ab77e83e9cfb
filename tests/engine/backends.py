"""Backends with real tiny checkpoints, for the tests of the backend."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mmchat.adapters.card import Base, Card, write_card
from mmchat.client.protocol import Delta, Done, Options, Started
from mmchat.engine.backend import TorchBackend
from mmchat.turns import ImagePart, Turn
from tests.engine.tiny_models import spread
from tests.model import tiny

KINDS = ["visual_prefix", "llava", "smolvlm", "idefics3", "qwen2_vl", "qwen2_5_vl", "gemma3"]


def never() -> bool:
    return False


def part(seed: int = 0) -> ImagePart:
    buffer = io.BytesIO()
    tiny.picture(seed).save(buffer, "PNG")
    data = buffer.getvalue()
    return ImagePart(hashlib.sha256(data).hexdigest(), "image/png", data)


def turns(*parts: str | ImagePart) -> tuple[Turn, ...]:
    return (Turn("user", parts),)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("checkpoints")

    def build(kind: str) -> Path:
        return root / kind if (root / kind).exists() else tiny.build(kind, root / kind)

    return build


def loaded_backend(folder: Path, quantization: str = "fp32", adapter: str = "") -> TorchBackend:
    backend = TorchBackend()
    backend.load(str(folder), adapter, quantization, "cpu", lambda stage, fraction: None)
    return backend


@pytest.fixture
def seeing(folder: Callable[[str], Path]) -> TorchBackend:
    """The visual-prefix model, whose answers only end where they must."""
    backend = loaded_backend(folder("visual_prefix"))
    assert backend._loaded is not None
    backend._loaded.eos_token_ids = frozenset()
    return backend


def vivid(backend: TorchBackend) -> TorchBackend:
    """With wide weights and an own head: a tied head mostly repeats the token before it."""
    assert backend._loaded is not None
    backend._loaded.eos_token_ids = frozenset()
    model = backend._loaded.model
    head = model.lm_head
    head.weight = torch.nn.Parameter(torch.empty_like(head.weight), requires_grad=False)
    spread(model, 2)
    return backend


def answer(backend: TorchBackend, *parts: str | ImagePart, **options: Any) -> tuple[str, Done]:
    """What one message is answered with."""
    return continued(backend, turns(*parts), **options)


def continued(
    backend: TorchBackend, conversation: tuple[Turn, ...], **options: Any
) -> tuple[str, Done]:
    started, *deltas, done = backend.generate(conversation, Options(**options), never)
    assert isinstance(started, Started) and isinstance(done, Done)
    assert all(isinstance(delta, Delta) and delta.text for delta in deltas)
    return "".join(delta.text for delta in deltas if isinstance(delta, Delta)), done


@pytest.fixture
def adapter(seeing: TorchBackend, tmp_path: Path) -> Path:
    """An adapter of `seeing` with another projector."""
    loaded = seeing._loaded
    assert loaded is not None
    folder = tmp_path / "other"
    folder.mkdir()
    generator = torch.Generator().manual_seed(9)
    save_file(
        {
            name: 0.3 * torch.randn(value.shape, generator=generator)
            for name, value in loaded.model.model.multi_modal_projector.state_dict().items()
        },
        folder / "projector.safetensors",
    )
    write_card(folder, Card("other", Base(loaded.name, loaded.weights_hash), "shuffle_mlp"))
    return folder
