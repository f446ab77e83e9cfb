"""`python -m mmchat`: the same as the command `mmchat`."""

import sys

from mmchat.cli import main

if __name__ == "__main__":
    sys.exit(main())
