"""The command line: one file for each group of commands, imported only when it is called."""

import os
import sys


def main() -> int:
    """The command `mmchat`; returns its exit status."""
    # torch's threads keep their core busy while they wait for each other. On a busy machine, another
    # thread needs that core: answers were several times slower. OpenMP reads this when torch is
    # loaded, also in the processes that we start; on a quiet machine it changes nothing.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    try:
        from mmchat.cli.streams import prepare_streams

        prepare_streams()
        from mmchat.cli.root import run

        return run(sys.argv[1:])
    except KeyboardInterrupt:
        return 130
