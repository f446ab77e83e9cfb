"""The command line: one file a group of commands, each imported only when it is called."""

import os
import sys


def main() -> int:
    """The command `mmchat`; returns its exit status."""
    # Threads of torch that wait for each other burn their core meanwhile. On a busy machine that is the
    # core which the other one needs: answers came several times slower. Read when torch is loaded,
    # also by the processes that we start; a quiet machine is as fast with it.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    try:
        from mmchat.cli.streams import prepare_streams

        prepare_streams()
        from mmchat.cli.root import run

        return run(sys.argv[1:])
    except KeyboardInterrupt:
        return 130
