"""`python -m mmchat.engine`: started by the client, detached; see `process`."""

import argparse
import os
import sys

from mmchat.engine.process import serve
from mmchat.errors import MmchatError
from mmchat.sanitize import clean
from mmchat.settings import load_settings

BACKEND = "mmchat.engine.backend:create_backend"


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0, 1 with a sentence on standard error, or `ALREADY_RUNNING`."""
    parser = argparse.ArgumentParser(prog="python -m mmchat.engine", description=__doc__)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--foreground", action="store_true", help="log to the terminal")
    parser.add_argument("--backend", default=None, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    backend = given.backend or os.environ.get("MMCHAT_ENGINE_BACKEND") or BACKEND
    try:
        overrides = dict(pair.split("=", 1) for pair in given.set)
        return serve(load_settings(overrides), backend, given.foreground)
    except MmchatError as error:
        sentence = str(error)
    except OSError as error:  # no room, no permission: what the process needs is all in its home
        sentence = f"The engine cannot use its files ({error}): look at the folder and its disk."
    print(f"mmchat: {clean(sentence)}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
