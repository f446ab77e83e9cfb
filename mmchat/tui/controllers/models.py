"""The model and the adapter that answer."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Literal

from mmchat.chat.events import AnswerFinished, LoadFinished, LoadProgress, ModelSelected
from mmchat.display.messages import model_label, model_name
from mmchat.settings import NO_ADAPTER
from mmchat.tui import choices
from mmchat.tui.controllers.context import ChatContext
from mmchat.tui.screens.dialogs import PickScreen

Kind = Literal["model", "adapter"]


class ModelController:
    """Selects the model and the adapter of this window, and shows whether they are loaded."""

    def __init__(self, context: ChatContext) -> None:
        self._context = context
        self._answers = context.service.answers

    # What is shown

    def show_selected(self) -> None:
        """Name what will answer, before it is loaded."""
        settings = self._answers.settings
        if settings.engine.url:
            self._context.title_line.model = settings.engine.url
        else:
            self._show_label(settings.model.name, settings.model.adapter)

    def handle(self, event: LoadProgress | LoadFinished | ModelSelected | AnswerFinished) -> None:
        """An event of the conversation service."""
        status_line = self._context.status
        match event:
            case LoadProgress():
                status_line.progress, status_line.error = event, ""
            case LoadFinished(status=status, error=error):
                status_line.progress, status_line.error = None, error
                if status is not None:
                    status_line.context_length = status.context_length
                    self._show_label(
                        status.model, status.adapter, status.quantization, status.device
                    )
            case ModelSelected(model=model, adapter=adapter):
                self._show_label(model, adapter)
            case AnswerFinished(answer=answer) if answer.origin.device:
                origin = answer.origin
                self._show_label(origin.model, origin.adapter, origin.quantization, origin.device)

    def _show_label(
        self, model: str, adapter: str, quantization: str = "", device: str = ""
    ) -> None:
        self._context.title_line.model = model_label(model, adapter, quantization, device)

    # Selecting

    def select_model(self, name: str) -> None:
        if self._answers.remote:
            self._context.composer.show_error("The server in engine.url chooses the model.")
        elif name:
            self._context.tasks.enqueue(partial(self._select_named, "model", name))
        else:
            self._context.show_dialog(partial(self._pick, "model"))

    def select_adapter(self, name: str) -> None:
        if self._answers.remote:
            self._context.composer.show_error("The server in engine.url has no adapters.")
        elif name:
            self._context.tasks.enqueue(partial(self._select_named, "adapter", name))
        else:
            self._context.show_dialog(partial(self._pick, "adapter"))

    async def _pick(self, kind: Kind) -> None:
        selected = self._answers.settings.model
        items = [
            (name, model_name(name), about)
            for name, about in await asyncio.to_thread(choices.list_choices, kind)
        ]
        if kind == "adapter":
            items.insert(0, ("", NO_ADAPTER, "no adapter"))
        current = selected.name if kind == "model" else selected.adapter
        chosen = await self._context.screen.app.push_screen_wait(
            PickScreen(f"Which {kind}?", items, current, "No matches.")
        )
        if chosen is not None and chosen != current:
            self._context.tasks.enqueue(partial(self._select, kind, chosen))

    async def _select_named(self, kind: Kind, name: str) -> None:
        """Select what a person typed, if there is one of this name; a folder is named by a path."""
        if kind == "adapter" and name == NO_ADAPTER:
            await self._select(kind, "")
            return
        known = {one for one, _ in await asyncio.to_thread(choices.list_choices, kind)}
        if name not in known and Path(name).name == name:
            self._context.composer.restore(
                f"/{kind} {name}", f"There is no {kind} {name}. /{kind} alone shows what is here."
            )
        else:
            await self._select(kind, name)

    async def _select(self, kind: Kind, name: str) -> None:
        if kind == "model":
            self._answers.select(model=name)
        else:
            self._answers.select(adapter=name)
