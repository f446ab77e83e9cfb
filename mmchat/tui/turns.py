"""A branch of the history as the turns that the engine is asked with. No widgets here."""

from collections.abc import Callable, Sequence

from mmchat.client.protocol import ImagePart, Turn
from mmchat.history import Message, StoredImage
from mmchat.history.turns import TOO_LONG, as_asked

__all__ = ["TOO_LONG", "turns"]


def turns(branch: Sequence[Message], system: str, image_data: Callable[[str], bytes]) -> list[Turn]:
    """The conversation up to its last user message, pictures at their marks (`as_asked`)."""

    def part(one: str | StoredImage) -> str | ImagePart:
        if isinstance(one, str):
            return one
        return ImagePart(sha256=one.sha256, mime=one.mime, data=image_data(one.sha256))

    return [Turn(said.role, tuple(map(part, said.parts))) for said in as_asked(branch, system)]
