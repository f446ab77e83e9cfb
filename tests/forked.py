"""Processes that have torch from the start: forked from one that imported it once.

Importing it takes longer than most of what the tests have to do with it. Each is a process of its
own all the same, with its own memory and files, and can be killed.
"""

import contextlib
import multiprocessing
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.preloaded"])


def run_forked(
    main: Callable[[], object],
    arguments: Sequence[str],
    environment: dict[str, str],
    *,
    stdin: bytes = b"",
    patience: float,
) -> subprocess.CompletedProcess[str]:
    """Calls `main`, which may return an exit status, in a new process with `arguments` as its own, in the present folder.

    Raises TimeoutError where it does not end within `patience` seconds; it is killed then.
    """
    with TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("stdin", "stdout", "stderr")]
        files[0].write_bytes(stdin)
        given = (main, list(arguments), environment, os.getcwd(), files)  # noqa: PTH109
        process = _context.Process(target=_begin, args=given)
        process.start()
        process.join(patience)
        if process.is_alive():
            process.kill()
            process.join()
            raise TimeoutError(f"{arguments}: {files[2].read_text()[-2000:]}")
        assert process.exitcode is not None
        said = [file.read_text() if file.exists() else "" for file in files[1:]]
        return subprocess.CompletedProcess(list(arguments), process.exitcode, *said)


def _begin(
    main: Callable[[], object],
    arguments: list[str],
    environment: dict[str, str],
    folder: str,
    files: list[Path],
) -> None:
    # Its own children begin as those of any program do.
    multiprocessing.set_start_method(None, force=True)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    flags = (os.O_RDONLY, *(os.O_WRONLY | os.O_CREAT | os.O_APPEND,) * 2)
    for number, (file, flag) in enumerate(zip(files, flags, strict=True)):
        opened = os.open(file, flag, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    sys.argv = [main.__module__, *arguments]
    try:
        code = main()
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    raise SystemExit(code if isinstance(code, int) else int(code is not None))
