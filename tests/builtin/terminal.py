"""The app as a person has it: the installed command on a terminal, keys in, screen out."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading

from tests.builtin.asking import environment
from tests.cli.conftest import MMCHAT

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]P_^][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z=>])")


class Terminal:
    """A running app; what it has painted so far is read by a thread, so it never waits for us."""

    def __init__(self, *arguments: str, **variables: str) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self.process = subprocess.Popen(
            [MMCHAT, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment(TERM="xterm-256color", **variables),
            start_new_session=True,
        )
        os.close(theirs)
        self._painted = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._ours, 65_536)
            except OSError:  # nobody has the terminal any more
                return
            if not data:
                return
            self._painted += data

    def painted(self) -> str:
        """All text that was painted, in the order of painting; without the escapes between."""
        return _ESCAPES.sub("", self._painted.decode(errors="replace"))

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def left_behind(self) -> str:
        """Waits for the app's end; the text that is printed after it has left the screen."""
        self.process.wait(60)
        self._reader.join(10)
        _, _, after = self._painted.decode(errors="replace").rpartition("\x1b[?1049l")
        return _ESCAPES.sub("", after).strip()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(10)
        os.close(self._ours)
