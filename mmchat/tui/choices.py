"""Which models and adapters can be chosen. Torch-free, and no widgets here."""

from collections.abc import Sequence

from mmchat.display.numbers import format_parameters
from mmchat.settings import NO_ADAPTER


def choices(kind: str) -> Sequence[tuple[str, str]]:
    """(name, a few words) of each "model" or "adapter" on this machine; "adapters" has none, too.

    Reads files; call it in a thread.
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
