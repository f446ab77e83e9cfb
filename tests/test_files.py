"""Files are written whole or not at all, and locks end with the process that holds them."""

import contextlib
import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mmchat.errors import RecipeError
from mmchat.files import FileLock, is_locked, partial_file, write_file
from mmchat.training.run_folder import writing


def test_a_file_is_replaced_whole_or_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "recipe.toml"
    write_file(file, b"old", synced=True)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("mmchat.files.os.fsync", full)
        with pytest.raises(RecipeError, match=r"recipe\.toml cannot be written"), writing(file):
            write_file(file, b"new", synced=True)
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]
    write_file(file, "né", synced=True)
    assert file.read_bytes() == "né".encode()


def test_a_file_is_private_or_as_the_umask_says(tmp_path: Path) -> None:
    for private, mode in ((True, 0o600), (False, 0o644)):
        write_file(tmp_path / "file", "", private=private)
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_a_long_name_can_be_written(tmp_path: Path) -> None:
    file = tmp_path / ("é" * 127)  # 254 of 255 bytes
    write_file(file, "text")
    assert file.read_text() == "text"


def test_a_partial_file_that_was_not_renamed_is_removed(tmp_path: Path) -> None:
    with contextlib.suppress(KeyboardInterrupt), partial_file(tmp_path / "file") as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_only_one_holds_a_lock(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert not is_locked(tmp_path / "lock") and not is_locked(tmp_path / "no folder" / "lock")
    assert first.acquire(0) and is_locked(tmp_path / "lock")
    assert not second.acquire(0)
    first.release()
    first.release()
    assert not is_locked(tmp_path / "lock")
    assert second.acquire(0)
    second.release(remove=True)
    assert not list(tmp_path.iterdir())


def test_a_file_that_was_removed_before_it_was_locked_is_locked_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock"
    opened = os.open

    def open_and_lose(*args: int) -> int:
        handle = opened(*args)
        monkeypatch.undo()
        path.unlink()
        return handle

    monkeypatch.setattr("mmchat.files.os.open", open_and_lose)
    lock = FileLock(path)
    assert not lock.acquire(0)
    assert lock.acquire(0) and is_locked(path)
    lock.release()


def test_a_killed_process_holds_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    script = (
        "import sys, time; from pathlib import Path; from mmchat.files import FileLock; "
        f"assert FileLock(Path({str(path)!r})).acquire(); print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"held\n"
            assert is_locked(path) and not FileLock(path).acquire(0)
        finally:
            process.send_signal(signal.SIGKILL)
    assert not is_locked(path)


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    script = f"""
import os, sys
from pathlib import Path
from mmchat.files import FileLock, is_locked
path = Path({str(path)!r})
lock = FileLock(path)
assert lock.acquire()
ready, wait = os.pipe(), os.pipe()
if os.fork() == 0:
    os.write(ready[1], b"x")
    os.read(wait[0], 1)
    lock.release(remove=True)  # does not touch the parent's
    os._exit(0)
os.read(ready[0], 1)
lock.release()
assert not is_locked(path)
assert lock.acquire(0)
os.write(wait[1], b"x")
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
assert is_locked(path) and path.exists()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
