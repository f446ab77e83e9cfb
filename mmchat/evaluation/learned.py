"""What an adapter has not seen of the data that it was trained on, so that it is not asked what it
learned by heart."""

from collections.abc import Iterable, Sequence

from mmchat.data import split
from mmchat.data.types import Dataset, Example
from mmchat.errors import AdapterError, RecipeError
from mmchat.model.adapters import NONE, find_adapter
from mmchat.training.finetune_config import FinetuneConfig, read_config
from mmchat.training.run_folder import RECIPE


def held_out(whole: Dataset, adapters: Iterable[str]) -> tuple[list[Example], list[str]]:
    """(the examples that each of `adapters` trained on this very data kept for measuring, those
    adapters), in the order of the data; (none, none) where none was trained on it.

    There may be adapters and no example that all of them kept. An adapter's own recipe says how its
    data was divided.
    """
    kept: Sequence[Example] = whole.examples
    by = []
    for name in dict.fromkeys(adapters):
        recipe = _recipe(name)
        if recipe is None or recipe.data.sha256 != whole.sha256:
            continue
        by.append(name)
        own = {id(one) for one in split(whole.examples, recipe.data.held_out, recipe.seed)[1]}
        kept = [example for example in kept if id(example) in own]
    return (list(kept), by) if by else ([], [])


def _recipe(adapter: str) -> FinetuneConfig | None:
    """None where there is no recipe, or no adapter: the engine tells what is wrong with one."""
    if adapter in ("", NONE):
        return None
    try:
        return read_config(find_adapter(adapter) / RECIPE)
    except (AdapterError, RecipeError):
        return None
