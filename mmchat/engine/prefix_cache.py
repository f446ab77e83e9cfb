"""Keeps the keys and values of the last conversation for its next answer."""

import contextlib
from collections.abc import Iterator

from mmchat.engine.decode import CausalRunner
from mmchat.engine.kv_cache import ConversationState
from mmchat.prompt.model_inputs import PreparedPrompt

MIN_REUSED = 16
"""Tokens. Different conversations share fewer, from the chat template, which are cheap to read."""
MAX_KEPT_BYTES = 2 * 1024**3
"""Of keys and values. LLaVA-1.5-7B needs this much for its whole context of 4,096 tokens."""


class PrefixCache:
    """Keeps the state of one conversation between two answers, up to `limit` bytes.

    There is only one state at a time: it is taken out for an answer and put back after it.
    """

    def __init__(self, limit: int = MAX_KEPT_BYTES) -> None:
        self._limit = limit
        self._state: ConversationState | None = None
        self._weights: tuple[str, ...] = ()

    def resume(
        self, runner: CausalRunner, prompt: PreparedPrompt, weights: tuple[str, ...]
    ) -> ConversationState:
        """Returns the kept state, truncated to what `prompt` shares with it, or a new one.

        `weights` are the hashes of model and adapter: a state from other weights is never used.
        """
        state, self._state = self._state, None
        if state is not None and weights == self._weights:
            length = runner.reusable(state, prompt)
            if length >= MIN_REUSED and state.truncate(length):
                return state
        del state  # before the new one takes memory
        return runner.start()

    @contextlib.contextmanager
    def keeping(self, state: ConversationState, weights: tuple[str, ...]) -> Iterator[None]:
        """Keeps `state` after the block.

        If the block raises, the state is dropped, because some layers may have read a token that
        others have not. A generator that is closed inside the block is between two tokens, so its
        state is kept.
        """
        try:
            yield
        except GeneratorExit:
            self._keep(state, weights)
            raise
        self._keep(state, weights)

    def clear(self) -> None:
        """Drop the state, to free its memory."""
        self._state = None

    def _keep(self, state: ConversationState, weights: tuple[str, ...]) -> None:
        if state.keys and state.is_attention_only and state.nbytes <= self._limit:
            self._state, self._weights = state, weights
