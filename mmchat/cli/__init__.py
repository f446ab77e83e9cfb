"""The command line: one file for each group of commands, imported only when it is needed."""

import os
import sys


def main() -> int:
    """Runs the command `mmchat`; returns its exit status."""
    # torch's threads spin while they wait for each other. On a busy machine, where another thread
    # needs the core, answers were several times slower. OpenMP reads this when torch is loaded,
    # also in child processes; on an idle machine it changes nothing.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    try:
        from mmchat.cli.streams import prepare_streams

        prepare_streams()
        from mmchat.cli.root import run

        return run(sys.argv[1:])
    except KeyboardInterrupt:
        return 130
