"""`python -m mmchat.engine`, which the client starts in the background; see `process`."""

import argparse
import os
import sys
from pathlib import Path

from mmchat.engine.process import TcpAddress, serve
from mmchat.errors import MmchatError
from mmchat.sanitize import clean
from mmchat.settings import load_settings

BACKEND = "mmchat.engine.backend:create_backend"


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, 1 with a sentence on standard error, or `ALREADY_RUNNING`."""
    parser = argparse.ArgumentParser(prog="python -m mmchat.engine", description=__doc__)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--foreground", action="store_true", help="log to the terminal")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, help="listen on TCP too; every request needs the token")
    parser.add_argument("--token-file", type=Path)
    parser.add_argument("--backend", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    backend = args.backend or os.environ.get("MMCHAT_ENGINE_BACKEND") or BACKEND
    tcp = None
    if args.port is not None:
        tcp = TcpAddress(args.host, args.port, args.token_file)
    try:
        overrides = dict(pair.split("=", 1) for pair in args.set)
        return serve(load_settings(overrides), backend, args.foreground, tcp)
    except MmchatError as error:
        sentence = str(error)
    except OSError as error:  # a full disk, missing permissions
        sentence = f"The engine cannot use its files ({error}): check the folder and its disk."
    print(f"mmchat: {clean(sentence)}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
