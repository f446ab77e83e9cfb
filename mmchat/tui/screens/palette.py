"""The command palette."""

from textual.command import CommandList, CommandPalette


class Palette(CommandPalette):
    """Textual's palette, which ends the app at Page Up and Page Down before its list has a size."""

    def _action_command_list(self, action: str) -> None:
        has_size = bool(self.query_one(CommandList).scrollable_content_region)
        if has_size or not action.startswith("page_"):
            super()._action_command_list(action)
