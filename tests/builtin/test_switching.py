"""Adapters on the built-in model, switched in a running engine while a conversation goes on.

Every answer has to be that of a model which never wore anything else: whatever the engine keeps
between answers (features of pictures, the conversation's keys and values, adapters) belongs to what
was on when it was made.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmchat.adapters.card import (
    LORA,
    LORA_CONFIG,
    LORA_WEIGHTS,
    PROJECTOR,
    VISION_TOWER,
    Base,
    Card,
    adapter_hash,
    write_card,
)
from mmchat.client import Delta, Done, EngineClient, Options
from mmchat.errors import AdapterError
from mmchat.settings import paths, private_dir
from mmchat.turns import Turn
from tests.builtin.asking import picture, user

if TYPE_CHECKING:
    from mmchat.model.loaded_model import LoadedModel

CONFIG = '{"peft_type": "LORA", "r": 4, "lora_alpha": 8}'
OPTIONS = Options(max_tokens=24)


def write(loaded: "LoadedModel", name: str, seed: int, *, tower: bool = False) -> Path:
    """An adapter that changes a little of everything: the projector, every block, the tower."""
    folder = private_dir(paths().adapters / name)
    generator = torch.Generator().manual_seed(seed)

    def near(tensor: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(tensor.shape, generator=generator)
        return tensor.float() + 0.7 * float(tensor.float().std()) * noise

    inner = loaded.model.model
    state = inner.multi_modal_projector.state_dict()
    save_file({key: near(tensor) for key, tensor in state.items()}, folder / PROJECTOR)
    if tower:
        last = {k: t for k, t in inner.vision_tower.state_dict().items() if k.startswith("blocks.")}
        save_file({key: near(tensor) for key, tensor in last.items()}, folder / VISION_TOWER)
    private_dir(folder / LORA)
    (folder / LORA / LORA_CONFIG).write_text(CONFIG)
    lora = {}
    for path, layer in loaded.model.named_modules():
        if ".language_model.layers." in path and path.endswith("_proj"):
            key = f"base_model.model.{path}.lora_"
            lora[f"{key}A.weight"] = torch.randn(4, layer.in_features, generator=generator) * 0.1
            lora[f"{key}B.weight"] = torch.randn(layer.out_features, 4, generator=generator) * 0.1
    save_file(lora, folder / LORA / LORA_WEIGHTS)
    base = Base("scenes", loaded.weights_hash)
    write_card(folder, Card(name, base, "shuffle_mlp", ("projector", "lora")))
    return folder


async def asked(client: EngineClient, turns: list[Turn], adapter: str = "") -> tuple[str, Done]:
    text, done = "", None
    async with contextlib.aclosing(client.chat(turns, OPTIONS, adapter=adapter)) as events:
        async for event in events:
            if isinstance(event, Delta):
                text += event.text
            elif isinstance(event, Done):
                done = event
    assert done is not None
    return text, done


def fresh(adapter: str, turns: list[Turn]) -> str:
    """What a model says that was loaded for this question alone, with nothing on before."""
    from mmchat.engine.backend import TorchBackend

    backend = TorchBackend()
    backend.load("scenes", adapter, "auto", "auto", lambda stage, fraction: None)
    events = backend.generate(turns, OPTIONS, lambda: False)
    return "".join(event.text for event in events if isinstance(event, Delta))


async def test_a_conversation_goes_on_from_one_adapter_to_another(
    new_client: Callable[..., EngineClient], loaded: "LoadedModel"
) -> None:
    folders = {
        "switch-a": write(loaded, "switch-a", 1),
        "switch-b": write(loaded, "switch-b", 2, tower=True),
    }
    client = new_client()
    turns: list[Turn] = []
    said: list[tuple[str, list[Turn], str]] = []
    order = ("switch-a", "", "switch-b", "switch-a", "switch-b", "")
    for number, name in enumerate(order):
        if number:
            await client.use_adapter(name)
        question = user(picture("stars"), "what is in this picture?") if not turns else user("more")
        turns = [*turns, question]
        text, done = await asked(client, turns, name if not number else "")
        assert done.adapter == name
        assert done.adapter_hash == (adapter_hash(folders[name]) if name else "")
        said.append((name, list(turns), text))
        turns = [*turns, Turn("assistant", (text or "…",))]
    for name, upto, text in said:
        assert fresh(name, upto) == text, name
    first = said[0][1]
    assert len({fresh(name, first) for name in ("", "switch-a", "switch-b")}) == 3


async def test_one_that_is_trained_again_is_read_again_and_a_broken_one_changes_nothing(
    new_client: Callable[..., EngineClient], loaded: "LoadedModel"
) -> None:
    folder = write(loaded, "again", 3)
    client = new_client()
    turns = [user(picture("stars"), "what is in this picture?")]
    before, _ = await asked(client, turns, "again")
    status = await client.status()
    file = folder / PROJECTOR
    save_file({key: tensor.flip(-1) for key, tensor in load_file(file).items()}, file)
    after, done = await asked(client, turns, "again")
    assert after != before and done.adapter_hash == adapter_hash(folder)
    assert after == fresh("again", turns)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(AdapterError, match="cut short"):
        await asked(client, turns, "again")
    now = await client.status()
    assert status is not None and now is not None
    assert (now.pid, now.adapter, now.state) == (status.pid, "again", "ready")
    await client.use_adapter("")
    plain, done = await asked(client, turns)
    assert (done.adapter, plain) == ("", fresh("", turns))
