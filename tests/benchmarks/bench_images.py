"""Memory and time of the costliest picture of each kind, at the cap of its kind.

    python -m tests.benchmarks.bench_images [WORD …]      cases whose name holds a WORD

Each case runs in its own process: the file is made in one, decoded in another,
whose peak resident memory (with the interpreter and the file's bytes) and CPU
seconds for reading (with validation) and for `rgb()` make a row of a Markdown table.
"""

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from mmchat.images import MAX_BYTES, MEGAPIXELS, read_picture


def noise(mode: str, megapixels: float, grain: float) -> Any:
    """Smooth colours with noise of `grain` levels, which no compressor finds repeated."""
    from PIL import Image, ImageChops

    width = int((megapixels * 1e6 * 4 / 3) ** 0.5) // 16 * 16
    size, band = (width, int(megapixels * 1e6 / width)), (width, 256)
    if mode in ("P", "I;16", "I", "F"):
        tile = Image.effect_noise(band, grain).convert("L")
        tile = tile.convert(mode) if mode != "P" else tile
        if mode == "P":
            tile.putpalette(bytes(range(256)) * 3)
    else:
        sky = Image.linear_gradient("L").resize(band)
        tile = Image.merge("RGB", [Image.effect_noise(band, grain) for _ in range(3)])
        tile = ImageChops.add(tile, Image.merge("RGB", [sky, sky.rotate(180), sky]), 2)
        if mode == "RGBA":
            tile.putalpha(sky)
        tile = tile.convert(mode)
    image = Image.new(mode, size)
    if mode == "P":
        image.putpalette(bytes(range(256)) * 3)
    for top in range(0, size[1], 256):
        image.paste(tile, (0, top))
    return image


def saved(mode: str, megapixels: float, kind: str, grain: float = 40, **options: Any) -> bytes:
    while True:  # as much noise as fits into the limit of bytes
        buffer = BytesIO()
        noise(mode, megapixels, grain).save(buffer, kind, **options)
        if buffer.tell() <= MAX_BYTES or grain < 1:
            return buffer.getvalue()
        grain *= 0.6


def png16(megapixels: float, interlaced: bool = False) -> bytes:
    """RGBA at 16 bits a sample, which Pillow cannot write."""
    import struct
    import zlib

    side = int((megapixels * 1e6) ** 0.5)
    rows = zlib.compressobj(1)
    body = b""
    row = b"\0" + os.urandom(64) * (side * 8 // 64 + 1)
    passes = [(side, side)]
    if interlaced:  # Adam7
        grid = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4)]
        grid += [(1, 0, 2, 2), (0, 1, 1, 2)]
        passes = [(-((x - side) // dx), -((y - side) // dy)) for x, y, dx, dy in grid]
    for wide, high in passes:
        for _ in range(high):
            body += rows.compress(row[: 1 + wide * 8])
    body += rows.flush()
    head = struct.pack(">IIBBBBB", side, side, 16, 6, 0, 0, int(interlaced))
    chunks = [(b"IHDR", head), (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))
        for name, part in chunks
    )


def padded(data: bytes) -> bytes:
    """The file filled up to the limit of bytes, in a way that its format allows."""
    import struct

    room = bytes((MAX_BYTES - len(data) - 8) // 2 * 2)
    if data.startswith(b"RIFF"):
        data += b"JUNK" + struct.pack("<I", len(room)) + room
        return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
    return data + room


def many_scans(megapixels: float, budget: float = 1_190) -> bytes:
    """A progressive JPEG whose last scan stands again and again, up to the limit of scans."""
    data = saved("RGB", megapixels, "JPEG", 8, quality=60, progressive=True)
    start = data.rfind(b"\xff\xc4")
    scan = (
        data[start:-2]
        if data[start:].count(b"\xff\xda") == 1
        else data[data.rfind(b"\xff\xda") : -2]
    )
    times = int(budget / megapixels) - data.count(b"\xff\xda")
    return data[:-2] + scan * max(0, times) + data[-2:]


def run_length(megapixels: float) -> bytes:
    """Runs of two pixels: the most steps for the pixels."""
    import struct

    side = int((megapixels * 1e6) ** 0.5) // 2 * 2
    row = b"\2\1" * (side // 2) + b"\0\0"
    body = row * min(side, 3_990_000 // len(row))
    head = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(body), 0, 0, 256, 0)
    palette = bytes(range(256)) * 4
    start = 14 + len(head) + len(palette)
    return struct.pack("<2sIHHI", b"BM", start + len(body), 0, 0, start) + head + palette + body


CAP = MEGAPIXELS
CASES: dict[str, tuple[float, Callable[[float], bytes]]] = {
    "PNG RGB": (CAP["PNG"], lambda mp: saved("RGB", mp, "PNG", 7, compress_level=1)),
    "PNG RGBA": (CAP["PNG"], lambda mp: saved("RGBA", mp, "PNG", 4, compress_level=1)),
    "PNG palette": (CAP["PNG"], lambda mp: saved("P", mp, "PNG", compress_level=1)),
    "PNG RGBA 16-bit": (CAP["PNG"], png16),
    "PNG RGBA 16-bit interlaced": (CAP["PNG"], lambda mp: png16(mp, interlaced=True)),
    "PNG grey 16-bit": (CAP["PNG"], lambda mp: saved("I;16", mp, "PNG", compress_level=1)),
    "JPEG 4:2:0 photograph": (48, lambda mp: saved("RGB", mp, "JPEG", quality=85)),
    "JPEG 4:4:4 photograph": (48, lambda mp: saved("RGB", mp, "JPEG", quality=95, subsampling=0)),
    "JPEG 4:2:0": (CAP["JPEG"], lambda mp: saved("RGB", mp, "JPEG", 24, quality=80)),
    "JPEG 4:4:4": (CAP["JPEG"], lambda mp: saved("RGB", mp, "JPEG", 24, quality=80, subsampling=0)),
    "JPEG CMYK": (CAP["JPEG"], lambda mp: saved("CMYK", mp, "JPEG", 24, quality=60)),
    "JPEG progressive photograph": (
        48,
        lambda mp: saved("RGB", mp, "JPEG", quality=85, progressive=True),
    ),
    "JPEG progressive 4:4:4": (
        CAP["progressive JPEG"],
        lambda mp: saved("RGB", mp, "JPEG", quality=85, progressive=True, subsampling=0),
    ),
    "JPEG progressive CMYK": (
        CAP["progressive JPEG"],
        lambda mp: saved("CMYK", mp, "JPEG", quality=60, progressive=True),
    ),
    "JPEG many scans": (8, many_scans),
    "JPEG many scans, large": (CAP["progressive JPEG"], many_scans),
    "WebP lossy": (CAP["WebP"], lambda mp: saved("RGB", mp, "WEBP", quality=80, method=0)),
    "WebP lossless alpha": (
        CAP["WebP"],
        lambda mp: saved("RGBA", mp, "WEBP", lossless=True, quality=0, method=0),
    ),
    "WebP lossless alpha, 100 MB": (
        CAP["WebP"],
        lambda mp: padded(saved("RGBA", mp, "WEBP", lossless=True, quality=0, method=0)),
    ),
    "GIF": (CAP["GIF"], lambda mp: saved("P", mp, "GIF", 24)),
    "BMP": (33, lambda mp: saved("RGB", mp, "BMP")),
    "BMP palette": (CAP["BMP"], lambda mp: saved("P", mp, "BMP")),
    "BMP run-length": (CAP["run-length BMP"], run_length),
    "TIFF deflate RGBA": (
        CAP["TIFF"],
        lambda mp: saved("RGBA", mp, "TIFF", 4, compression="tiff_adobe_deflate"),
    ),
    "TIFF deflate RGBA, one strip, 100 MB": (
        CAP["TIFF"],
        lambda mp: padded(
            saved("RGBA", mp, "TIFF", 2, compression="tiff_adobe_deflate", strip_size=1 << 30)
        ),
    ),
    "TIFF LZW RGB": (CAP["TIFF"], lambda mp: saved("RGB", mp, "TIFF", 4, compression="tiff_lzw")),
    "TIFF one strip": (
        CAP["TIFF"],
        lambda mp: saved(
            "RGB", mp, "TIFF", 4, compression="tiff_adobe_deflate", strip_size=1 << 30
        ),
    ),
    "TIFF JPEG": (CAP["TIFF"], lambda mp: saved("RGB", mp, "TIFF", compression="jpeg")),
    "TIFF float": (24, lambda mp: saved("F", mp, "TIFF")),
    "TIFF grey 32-bit": (
        CAP["TIFF"],
        lambda mp: saved("I", mp, "TIFF", compression="tiff_adobe_deflate"),
    ),
    "TIFF CMYK": (24, lambda mp: saved("CMYK", mp, "TIFF")),
}


def seconds(start: os.times_result, end: os.times_result) -> float:
    """CPU time: decoding is one thread, and a busy machine does not change it much."""
    return end.user + end.system - start.user - start.system


def measure(path: str) -> None:
    start = os.times()
    picture = read_picture(path)
    parsed = os.times()
    image = picture.rgb()
    end = os.times()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    shape = f"{picture.width} × {picture.height}"
    megapixels = picture.width * picture.height / 1e6
    print(
        f"{shape} | {megapixels:.1f} | {len(picture.data) / 1e6:.1f} | {peak:.0f} "
        f"| {seconds(start, parsed):.2f} | {seconds(parsed, end):.2f} | {image.width} × {image.height} |"
    )


def main(words: list[str]) -> None:
    print("| Case | Size | Megapixels | File MB | Peak RSS MB | Read s | rgb() s | Result |")
    print("|---|---|---:|---:|---:|---:|---:|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case"
        for name in CASES:
            if words and not any(word in name for word in words):
                continue
            for step in ("--make", "--measure"):
                command = [sys.executable, "-m", "tests.benchmarks.bench_images"]
                done = subprocess.run(
                    [*command, step, name, str(path)], capture_output=True, text=True, check=False
                )
                if done.returncode:
                    sys.exit(f"{name} {step}: {done.stderr[-2000:]}")
            print(f"| {name} | {done.stdout.strip()}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        megapixels, make = CASES[sys.argv[2]]
        Path(sys.argv[3]).write_bytes(make(megapixels * 0.998))
    elif sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[3])
    else:
        main(sys.argv[1:])
