"""The command line: one file a group of commands, each imported only when it is called."""

import sys


def main() -> int:
    """The command `mmchat`; returns its exit status."""
    try:
        from mmchat.cli.root import run

        return run(sys.argv[1:])
    except KeyboardInterrupt:
        return 130
