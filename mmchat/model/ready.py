"""Adapters that are ready to be put on: read, checked and on the device, so that switching is swapping."""

from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mmchat.model.checkpoint import FileStamps
from mmchat.model.lora import LoraDelta


@dataclass(frozen=True, slots=True, eq=False)
class ReadyAdapter:
    """An adapter's tensors beside the places of the base that they go to."""

    folder: Path
    stamps: FileStamps
    """Of its files when they were read."""
    digest: str
    """`adapter_hash`"""
    tower_digest: str
    """sha256 of its tensors of the vision tower; "" where it has none."""
    swaps: list[tuple[Tensor, Tensor]]
    """(a parameter or buffer of the base, what stands in its place), of projector and tower."""
    lora: list[tuple[nn.Module, LoraDelta]]

    @property
    def nbytes(self) -> int:
        swapped = sum(tensor.nbytes for _, tensor in self.swaps)
        return swapped + sum(delta.nbytes for _, delta in self.lora)


@dataclass(slots=True)
class Worn:
    """An adapter that is on, and what takes it off again."""

    adapter: ReadyAdapter
    hooks: list[RemovableHandle] = field(default_factory=list)
    base: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """(a parameter or buffer, its own numbers): the very same memory comes back."""

    @classmethod
    def put_on(cls, adapter: ReadyAdapter) -> "Worn":
        """Nothing here can fail half-way: all was checked when the adapter was read."""
        worn = cls(adapter)
        for place, tensor in adapter.swaps:
            worn.base.append((place, place.data))
            place.data = tensor
        worn.hooks = [layer.register_forward_hook(delta) for layer, delta in adapter.lora]
        return worn

    def take_off(self) -> None:
        """The base again, bit for bit."""
        for hook in self.hooks:
            hook.remove()
        for place, own in self.base:
            place.data = own


class ReadyCache:
    """The adapters that were on last, up to `limit` bytes; the longest unused goes first."""

    def __init__(self, limit: int = 512 * 1024 * 1024) -> None:
        self._limit = limit
        self._kept: OrderedDict[Path, ReadyAdapter] = OrderedDict()

    def get(self, folder: Path, stamps: FileStamps) -> ReadyAdapter | None:
        """The adapter of `folder`, if its files are still those that were read."""
        found = self._kept.get(folder)
        if found is None or found.stamps != stamps:
            return None
        self._kept.move_to_end(folder)
        return found

    def put(self, adapter: ReadyAdapter) -> None:
        """Keep it; the last one is kept however large it is, for it is on."""
        self._kept.pop(adapter.folder, None)
        self._kept[adapter.folder] = adapter
        size = sum(one.nbytes for one in self._kept.values())
        while size > self._limit and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            size -= oldest.nbytes

    def __len__(self) -> int:
        return len(self._kept)
