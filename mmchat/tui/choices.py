"""Which models and adapters can be chosen. Torch-free, and no widgets here."""

from collections.abc import Sequence

from mmchat.settings import NO_ADAPTER


def choices(kind: str) -> Sequence[tuple[str, str]]:
    """(name, a few words) of each "model" or "adapter" on this machine; "adapters" has none, too.

    Reads files; call it in a thread.
    """
    if kind == "model":
        from mmchat.model.catalogue import list_installed

        return [
            (one.name, one.problem or f"{_count(one.parameters)} · {one.origin}")
            for one in list_installed()
        ]
    from mmchat.adapters.card import list_adapters

    found = [
        (one.name, one.problem or (f"for {one.card.base.id} · {one.origin}" if one.card else ""))
        for one in list_adapters()
    ]
    return found if kind == "adapter" else [(NO_ADAPTER, "no adapter"), *found]


def _count(parameters: int) -> str:
    """5.3M or 7.2B parameters."""
    if parameters >= 1_000_000_000:
        return f"{parameters / 1e9:.1f}B parameters"
    return f"{parameters / 1e6:.1f}M parameters"
