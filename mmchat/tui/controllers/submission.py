"""What a person submits: pictures to attach, slash commands, messages."""

from functools import partial

from mmchat.images import PICTURE_SUFFIXES
from mmchat.tui.commands import Command, UnknownCommandError, parse
from mmchat.tui.controllers.answers import AnswersController
from mmchat.tui.controllers.context import ChatContext
from mmchat.tui.pasted import as_path, leading, paths


class SubmissionController:
    """Decides what a submitted text is, and attaches, runs or sends it."""

    def __init__(self, context: ChatContext, answers: AnswersController) -> None:
        self._context = context
        self._answers = answers

    def submit(self, text: str) -> None:
        self._context.tasks.enqueue(partial(self._submit, text))

    async def _submit(self, typed: str) -> None:
        composer = self._context.composer
        composer.show_error("")  # it was about something before this
        files, text = leading(typed, PICTURE_SUFFIXES)
        if files:
            # What cannot be attached stays in the input, to be corrected.
            composer.restore(text if await composer.attach(files) else typed)
            return
        if not text.strip():
            if composer.pictures:
                composer.show_error("Type a question about the picture, then Enter.")
            return
        try:
            command = parse(text)
        except UnknownCommandError as error:
            composer.restore(text, str(error))
            return
        if command is None:
            await self._answers.send(text.strip())
        else:
            await self._run(command)

    async def _run(self, command: Command) -> None:
        """Run the action of a slash command, before anything that was submitted after it."""
        arguments = (command.argument,) if command.argument else ()
        action = (command.action.namespace, command.action.method, arguments)
        screen = self._context.screen
        with self._context.tasks.enqueue_first():
            await screen.app.run_action(action, screen)

    def attach(self, path: str) -> None:
        """Attach the pictures at `path`; without one, begin to type it."""
        if path:
            self._context.tasks.enqueue(partial(self._attach, path))
            return
        # The text that is being written stays, and @ completes a path within it.
        field = self._context.composer.input
        field.set_text(f"{field.text.rstrip()} @".lstrip() if field.text else "/attach ")
        field.focus()

    async def _attach(self, path: str) -> None:
        composer = self._context.composer
        if not await composer.attach(paths(path, PICTURE_SUFFIXES) or [as_path(path)]):
            composer.restore(f"/attach {path}")
