"""The client that the app, the command line and the evaluation use."""

import contextlib
from collections.abc import AsyncGenerator, Sequence

from mmchat.client import wire
from mmchat.client.local import LocalEngine
from mmchat.client.protocol import EngineStatus, Event, Loading, Options
from mmchat.client.remote import RemoteServer
from mmchat.errors import EngineError
from mmchat.settings import Settings
from mmchat.turns import ImagePart, Turn


class EngineClient:
    """The user's own engine, or the server at `engine.url`.

    Several tasks of one event loop can share it. What `load` and `use_adapter` choose is the
    default for later calls; until then, the settings are.

        async with contextlib.aclosing(client.chat(turns, Options())) as events:
            async for event in events: ...

    Closing the iterator cancels the answer.

    Every method raises EngineError, or ModelError, AdapterError or ImageError if the engine
    reports that the model, the adapter or a picture is the cause.
    """

    def __init__(self, settings: Settings) -> None:
        self._model = settings.model.name
        self._adapter = settings.model.adapter
        self._quantization: str = settings.model.quantization
        self._remote = RemoteServer(settings) if settings.engine.url else None
        self._local = LocalEngine(settings)

    async def status(self) -> EngineStatus | None:
        """The engine's status; None if no engine is running. Never starts one."""
        if self._remote is not None:
            return await self._remote.status()
        return await self._local.status()

    async def start(self) -> EngineStatus:
        """Finds or starts the engine; returns once it responds, before a model is loaded."""
        if self._remote is not None:
            return await self._remote.status()
        return await self._local.start()

    async def load(
        self, model: str = "", adapter: str = "", quantization: str = ""
    ) -> AsyncGenerator[Loading, None]:
        """Loads a model; ends when it is ready. Empty arguments keep the last choice.

        For a remote server, only checks that it responds.
        """
        adapter = self._adapter_for(model, adapter)
        model = wire.absolute_name(model) or self._model
        quantization = quantization or self._quantization
        if self._remote is not None:
            await self._remote.status()
            self._model = model
            return
        steps = self._local.load(wire.absolute_name(model), adapter, quantization)
        async with contextlib.aclosing(steps):
            async for step in steps:
                yield step
        self._model, self._adapter, self._quantization = model, adapter, quantization

    async def use_adapter(self, name: str) -> EngineStatus:
        """Switches the adapter of the loaded model; an empty name means no adapter."""
        if self._remote is not None:
            if name:
                raise EngineError(
                    "The adapter of a remote server cannot be switched from here: choose a model on "
                    "the server that includes it, or unset engine.url."
                )
            return await self._remote.status()
        status = await self._local.use_adapter(wire.absolute_name(name))
        self._adapter = wire.absolute_name(name)
        return status

    async def chat(
        self,
        turns: Sequence[Turn[ImagePart]],
        options: Options,
        *,
        model: str = "",
        adapter: str = "",
    ) -> AsyncGenerator[Event, None]:
        """Streams an answer: `Waiting* Loading* Started Delta* Done`; starts and loads as needed.

        It may raise after some Deltas, which are the partial answer.
        """
        adapter = self._adapter_for(model, adapter)
        model = wire.absolute_name(model) or wire.absolute_name(self._model)
        answer = (
            self._local.chat(turns, options, model, adapter, self._quantization)
            if self._remote is None
            else self._remote.chat(turns, options, model)
        )
        async with contextlib.aclosing(answer):
            async for event in answer:
                yield event

    async def stop(self) -> bool:
        """Stops the local engine; False if none was running."""
        return await self._local.stop()

    async def aclose(self) -> None:
        """Closes the connections; the engine keeps running."""
        await self._local.aclose()
        if self._remote is not None:
            await self._remote.aclose()

    def _adapter_for(self, model: str, adapter: str) -> str:
        """The adapter to use: the chosen one belongs to the chosen model, others have none."""
        if adapter:
            return wire.absolute_name(adapter)
        same = model == "" or wire.absolute_name(model) == wire.absolute_name(self._model)
        return wire.absolute_name(self._adapter) if same else ""
