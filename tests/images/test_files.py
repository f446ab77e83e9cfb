"""Paths and URLs from outside, through real files, pipes, sockets and devices."""

import base64
import hashlib
import os
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mmchat.errors import ImageError
from mmchat.images import (
    MAX_BYTES,
    PICTURE_SUFFIXES,
    SUPPORTED,
    parse_data_url,
    parse_picture,
    read_picture,
)
from tests.images.builders import encode, scene

PNG = encode(scene(), "PNG")


def refused(path: str | Path) -> str:
    with pytest.raises(ImageError) as caught:
        read_picture(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_picture_keeps_its_bytes_and_identity(tmp_path: Path) -> None:
    path = tmp_path / "red barn.png"
    path.write_bytes(PNG)
    picture = read_picture(path)
    assert picture == parse_picture(PNG, "red barn.png") == read_picture(str(path))
    assert picture.data == PNG and picture.sha256 == hashlib.sha256(PNG).hexdigest()
    assert (picture.mime, picture.width, picture.height) == ("image/png", 48, 32)
    assert picture.name == "red barn.png"
    assert len(repr(picture)) < 300


def test_content_decides_the_format(tmp_path: Path) -> None:
    for kind, mime in SUPPORTED.items():
        path = tmp_path / "picture.txt"
        path.write_bytes(encode(scene(), kind))
        assert read_picture(path).mime == mime
    assert all(suffix.startswith(".") and suffix.islower() for suffix in PICTURE_SUFFIXES)


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.png").write_bytes(PNG)
    assert read_picture("~/a.png").name == "a.png"
    assert "names a home folder that does not exist" in refused("~no-such-person-here/a.png")


def test_missing_and_impossible_paths(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(PNG)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere")
    assert refused(tmp_path / "no.png") == f"{tmp_path / 'no.png'} does not exist: check the path"
    assert "does not exist: check" in refused(tmp_path / "dangling.png")
    assert "a part of its path is a file" in refused(tmp_path / "file" / "a.png")
    assert "link that leads to itself" in refused(tmp_path / "loop")
    assert "name that is too long" in refused(tmp_path / ("x" * 300))
    assert "cannot be the name of a file" in refused("a\0b.png")
    assert "is a folder" in refused("")
    assert "\x1b" not in refused("no\x1b[2J such\ud800.png")


def test_folders_and_links(tmp_path: Path) -> None:
    (tmp_path / "real.png").write_bytes(PNG)
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    assert read_picture(tmp_path / "link.png").data == PNG
    assert refused(tmp_path) == f"{tmp_path} is a folder: name a picture in it"


def test_devices_and_links_to_them(tmp_path: Path) -> None:
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for path in ("/dev/zero", "/dev/null", tmp_path / "zero.png"):
        assert "is a device, not a file" in refused(path)


def test_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's whole path may have about 100 characters only
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s.png")
        assert refused("s.png") == "s.png is a socket, not a file: save the picture to a file first"


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    path = tmp_path / "pipe.png"
    os.mkfifo(path)
    script = "import sys; from mmchat.images import read_picture; read_picture(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "ImageError" in done.stderr and "is a pipe, not a file" in done.stderr


def test_unreadable() -> None:
    """Root may read everything, so as root the test becomes another user for a moment."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "private.png"
        path.write_bytes(PNG)
        path.chmod(0)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65_534)
        try:
            sentence = refused(path)
        finally:
            if root:
                os.seteuid(0)
        assert sentence == f"{path} cannot be read without permission: change its permissions"


def test_empty_too_big_and_growing(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.touch()
    assert "is empty" in refused(path)
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert "is over 100 MB: make it smaller" in refused(path)
    # A file that says it has 0 bytes and gives more, as one that grows while it is read.
    proc = Path("/proc/self/status")
    if proc.exists():
        assert stat.S_ISREG(proc.stat().st_mode) and proc.stat().st_size == 0
        assert "is not a picture" in refused(proc)


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def test_data_urls() -> None:
    assert parse_data_url(url(PNG)).data == PNG
    assert parse_data_url(url(PNG, "image/jpeg;name=x.jpg")).mime == "image/png"
    assert (
        parse_data_url(url(PNG).replace("data:", "DATA:").replace("base64", "Base64")).data == PNG
    )
    broken = url(PNG)[:60] + "\n" + url(PNG)[60:]
    assert parse_data_url(broken).data == PNG


@pytest.mark.parametrize(
    "bad, sentence",
    [
        ("", "must begin data:image/png;base64,"),
        ("https://example.org/a.png", "must begin"),
        ("file:///etc/passwd", "must begin"),
        ("data:image/png,%89PNG", "must begin"),
        ("data:image/png;base64", "must begin"),
        ("data:image/png;base64,", "is empty"),
        ("data:image/png;base64,@@@@", "is not valid base64"),
        ("data:image/png;base64,iVBORw0KG", "is not valid base64"),
        ("data:image/png;base64,iVBÖ", "is not valid base64"),
        ("data:text/html;base64,PGh0bWw+", "is a web page, not a picture"),
        ("data:image/png;base64," + "A" * (MAX_BYTES * 4 // 3 + 5), "is over 100 MB"),
        ("data:" + ";" * 50_000 + "x", "must begin"),
    ],
    ids=range(12),
)
def test_bad_data_urls(bad: str, sentence: str) -> None:
    with pytest.raises(ImageError, match=sentence):
        parse_data_url(bad)


def test_importing_does_not_import_pillow() -> None:
    script = "import sys, mmchat.images; sys.exit('PIL' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
