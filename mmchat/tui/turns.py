"""A branch of the history as the turns that the engine is asked with. No widgets here."""

from collections.abc import Callable, Sequence

from mmchat.history import Message, StoredImage
from mmchat.history.turns import TOO_LONG, branch_turns
from mmchat.turns import ImagePart, Turn

__all__ = ["TOO_LONG", "turns"]


def turns(
    branch: Sequence[Message], system: str, image_data: Callable[[str], bytes]
) -> list[Turn[ImagePart]]:
    """The conversation up to its last user message, pictures at their marks (`branch_turns`)."""

    def part(image: StoredImage) -> ImagePart:
        return ImagePart(image.sha256, image.mime, image_data(image.sha256))

    return [turn.map_images(part) for turn in branch_turns(branch, system)]
