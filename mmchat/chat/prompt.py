"""From a branch of the history to the turns that the engine is asked with."""

from collections.abc import Callable, Sequence

from mmchat.history import History, Message, StoredImage
from mmchat.history.turns import branch_turns
from mmchat.turns import ImagePart, Turn


def prompt_turns(
    branch: Sequence[Message], system: str, image_data: Callable[[str], bytes]
) -> list[Turn[ImagePart]]:
    """The turns of a conversation up to its last user message, with pictures at their marks.

    image_data: returns the bytes of a picture, given its sha256.
    """

    def part(image: StoredImage) -> ImagePart:
        return ImagePart(image.sha256, image.mime, image_data(image.sha256))

    return [turn.map_images(part) for turn in branch_turns(branch, system)]


def stored_prompt(history: History, message_id: int) -> list[Turn[ImagePart]]:
    """The turns that lead to a message of the history, which is the last one."""
    branch = history.path_to(message_id)
    system = history.conversation(branch[-1].conversation_id).system
    return prompt_turns(branch, system, history.image_data)
