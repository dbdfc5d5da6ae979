"""Zip archives as nobody should write them."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zipfile
from collections.abc import Mapping

from tests.fuzz.values import odd_bytes

Members = Mapping[str, bytes]
NAMES = ["../secret", "/etc/passwd", "archive/../../secret", "a" * 3000, "archive/\x1b[31m",
         "archive/data.pkl", "data.pkl", "archive\\data.pkl", "archive/code/x.py", "archive/",
         "archive/constants.pkl", "archive/version", "archive/data/0", "é/data.pkl",
         ".data.pkl"]  # fmt: skip
NUMBERS = [0, 1, 2, 7, 0xFF, 0xFFFF, 0xFFFFFFFE, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000]
# Where the fields of the two kinds of header are, and how they are packed.
LOCAL = {4: "H", 6: "H", 8: "H", 14: "I", 18: "I", 22: "I", 26: "H", 28: "H"}
CENTRAL = {6: "H", 8: "H", 10: "H", 16: "I", 20: "I", 24: "I", 28: "H", 30: "H", 32: "H", 42: "I"}
END = {4: "H", 6: "H", 8: "H", 10: "H", 12: "I", 16: "I", 20: "H"}
HEADERS = {b"PK\x03\x04": LOCAL, b"PK\x01\x02": CENTRAL, b"PK\x05\x06": END}


def zipped(members: Members, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def odd_archive(rng: random.Random, members: Members) -> bytes:
    return rng.choice([_odd_members, _odd_headers, _odd_headers, _damaged, _bomb])(rng, members)


def _odd_members(rng: random.Random, members: Members) -> bytes:
    """Members that are missing, twice there, renamed, damaged or compressed."""
    entries = list(members.items())
    for _ in range(rng.choice([1, 1, 2])):
        place = rng.randrange(len(entries))
        name, content = entries[place]
        changed = {
            "gone": [],
            "twice": [(name, content), (name, odd_bytes(rng, content))],
            "renamed": [(rng.choice(NAMES), content)],
            "added": [(name, content), (rng.choice(NAMES), rng.randbytes(20))],
            "damaged": [(name, odd_bytes(rng, content))],
            "empty": [(name, b"")],
            "longer": [(name, content + bytes(1000))],
        }[rng.choice(["gone", "twice", "renamed", "added", "damaged", "empty", "longer"])]
        entries[place : place + 1] = changed
        if not entries:
            break
    buffer = io.BytesIO()
    how = rng.choice(
        [zipfile.ZIP_STORED] * 3 + [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
    )
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", how) as archive:
        warnings.simplefilter("ignore")  # names that stand twice
        for name, content in entries:
            archive.writestr(name, content)
        if rng.random() < 0.1:
            archive.comment = rng.randbytes(rng.choice([1, 100, 60000]))
    return buffer.getvalue()


def _odd_headers(rng: random.Random, members: Members) -> bytes:
    """Fields of headers that say something else than the file holds."""
    content = bytearray(zipped(members))
    for _ in range(rng.choice([1, 1, 2, 4])):
        mark = rng.choice(list(HEADERS))
        starts = [i for i in range(len(content)) if content.startswith(mark, i)]
        if not starts:
            continue
        offset, kind = rng.choice(list(HEADERS[mark].items()))
        at, size = rng.choice(starts) + offset, struct.calcsize(kind)
        old = int.from_bytes(content[at : at + size], "little")
        new = rng.choice([*NUMBERS, old + 1, max(old - 1, 0), old * 2, rng.getrandbits(32)])
        content[at : at + size] = (new % 256**size).to_bytes(size, "little")
    return bytes(content)


def _damaged(rng: random.Random, members: Members) -> bytes:
    return odd_bytes(rng, zipped(members))


def _bomb(rng: random.Random, members: Members) -> bytes:
    """A member that unpacks to a thousand times its size, and may say another one."""
    name = rng.choice(list(members))
    size = rng.choice([10**6, 10**7, 10**8])
    content = bytearray(zipped({**members, name: bytes(size)}, zipfile.ZIP_DEFLATED))
    if rng.random() < 0.5:
        place = content.rfind(b"PK\x01\x02") + 24
        content[place : place + 4] = rng.choice([1, 1000, 2**32 - 2]).to_bytes(4, "little")
    return bytes(content)
