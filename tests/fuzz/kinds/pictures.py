"""Folders of pictures: damaged, of odd sizes, modes and formats, with odd EXIF, and bombs."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.fuzz.sound import Sound
from tests.fuzz.values import odd_bytes

SIZES = [(1, 1), (1, 2), (2, 200), (1, 65535), (65535, 1), (3, 299), (56, 56), (57, 31), (600, 500)]
MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "F"]
FORMATS = [
    "PNG",
    "PNG",
    "JPEG",
    "JPEG",
    "BMP",
    "WEBP",
    "TIFF",
    "GIF",
    "PPM",
    "TGA",
    "ICO",
    "JPEG2000",
]
NAMES = ["p.png", "p.jpg", "p.jpeg", "p.bmp", "p.webp", "p.tif", "P.PNG", "sub/p.png", ".p.png",
         "a\nb.png", "\x1b[31m.png", "é" * 100 + ".png", "p.png.png", "-o.png"]  # fmt: skip


def make(rng: random.Random, folder: Path, sound: Sound) -> Sequence[Any]:
    for _ in range(rng.choice([1, 1, 2, 4])):
        path = folder / "pictures" / rng.choice(NAMES)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_odd_picture(rng))
    if rng.random() < 0.1:
        (folder / "pictures" / "link.png").symlink_to(
            rng.choice(["../../secret", "link.png", ".", "/dev/zero"])
        )
    detector = ["predict", sound.bundle("svit_adapter", "detect"), "pictures", "-o", "out"]
    against = ["--against", sound.checkpoint(), *sound.options(), "--images", "pictures"]
    commands: list[Sequence[Any]] = [
        ["visualize", sound.bundle(), "--images", "pictures", "-o", "out"],
        detector,
        ["verify", sound.bundle(), *against],
        ["export", sound.checkpoint(), *sound.options(), "--calibration", "pictures", "-o", "out"],
    ]
    return rng.choices(commands, [4, 2, 1, 1])[0]


def _odd_picture(rng: random.Random) -> bytes:
    change = rng.random()
    if change < 0.12:
        return _bomb(rng)
    content = _picture(rng)
    return odd_bytes(rng, content) if change < 0.55 else content


def _picture(rng: random.Random) -> bytes:
    """A sound picture of any size, mode and format that Pillow writes."""
    width, height = rng.choice(SIZES)
    mode, kind = rng.choice(MODES), rng.choice(FORMATS)
    noise = np.frombuffer(rng.randbytes(min(width * height, 10**5) * 3), np.uint8)
    pixels = np.resize(noise, (height, width, 3))
    try:
        image = Image.fromarray(pixels).convert("L" if mode == "I;16" else mode)
        if mode == "I;16":
            image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
        options: dict[str, Any] = {}
        if rng.random() < 0.3:
            options["exif"] = _odd_exif(rng)
        if rng.random() < 0.2 and kind in ("PNG", "WEBP", "TIFF", "GIF"):
            options |= {"save_all": True, "append_images": [image] * 3}
        if rng.random() < 0.1:
            options["icc_profile"] = rng.randbytes(200)
        if kind == "TIFF":
            options["compression"] = rng.choice(
                ["raw", "tiff_lzw", "tiff_deflate", "packbits", "jpeg"]
            )
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
    except Exception:  # there is no such picture
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _odd_exif(rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return b"Exif\x00\x00" + rng.randbytes(rng.choice([0, 8, 100]))
    exif = Image.Exif()
    exif[0x0112] = rng.choice([0, 1, 2, 3, 5, 6, 8, 9, 65535])
    exif[0x010E] = rng.choice(["x", "x" * 10_000, "\x1b[31m"])
    return odd_bytes(rng, exif.tobytes(), 1) if rng.random() < 0.5 else exif.tobytes()


def _bomb(rng: random.Random) -> bytes:
    """Few bytes that declare, or truly are, many pixels."""
    size = rng.choice([8000, 13_000, 20_000, 65_535, 2**31 - 1])
    depth, colour, channels = rng.choice(
        [(8, 0, 1), (8, 2, 3), (16, 2, 3), (1, 0, 1), (8, 6, 4), (8, 3, 1)]
    )
    rows = min(size, 8000) if rng.random() < 0.7 else 1
    packer, data = zlib.compressobj(9), b""
    for _ in range(rows):
        data += packer.compress(bytes(1 + min(size, 8000) * channels * depth // 8))
    header = struct.pack(">IIBBBBB", size, size, depth, colour, 0, 0, 0)
    parts = [
        (b"IHDR", header),
        (b"PLTE", bytes(6)),
        (b"IDAT", data + packer.flush()),
        (b"IEND", b""),
    ]
    if rng.random() < 0.3:
        parts.insert(1, (b"zTXt", b"x\x00\x00" + zlib.compress(bytes(10**7), 9)))
    content = b"\x89PNG\r\n\x1a\n"
    for name, body in parts:
        check = zlib.crc32(name + body)
        content += struct.pack(">I", len(body)) + name + body + struct.pack(">I", check)
    return content
