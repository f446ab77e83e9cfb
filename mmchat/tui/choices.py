"""The models and adapters that can be chosen. Free of torch, and no widgets here."""

from collections.abc import Sequence

from mmchat.display.numbers import format_parameters
from mmchat.settings import NO_ADAPTER


def list_choices(kind: str) -> Sequence[tuple[str, str]]:
    """The name and a description of each "model" or "adapter" on this machine.

    kind: "adapters" adds a choice for no adapter. Reads files: call it in a thread.
    """
    if kind == "model":
        from mmchat.model.catalogue import list_installed

        return [
            (
                one.name,
                one.problem or f"{format_parameters(one.parameters)} parameters · {one.origin}",
            )
            for one in list_installed()
        ]
    from mmchat.adapters.card import list_adapters

    found = [
        (one.name, one.problem or (f"for {one.card.base.id} · {one.origin}" if one.card else ""))
        for one in list_adapters()
    ]
    return found if kind == "adapter" else [(NO_ADAPTER, "no adapter"), *found]
