"""What torch.save writes, with another program in its pickle, or broken around it."""

from __future__ import annotations

import io
import pickletools
import random
import zipfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tests.fuzz.kinds.archives import odd_archive, zipped
from tests.fuzz.sound import Sound
from tests.fuzz.values import TEXTS, odd_bytes

GLOBALS = ["os system", "builtins eval", "builtins exec", "builtins getattr", "subprocess Popen",
           "collections OrderedDict", "collections Counter", "collections defaultdict",
           "argparse Namespace", "builtins set", "pathlib PosixPath", "_codecs encode",
           "yacs.config CfgNode", "numpy.core.multiarray _reconstruct", "numpy dtype",
           "torch FloatStorage", "torch LongStorage", "torch BFloat16Storage", "torch Size",
           "torch device", "torch float8_e4m3fn", "torch.storage UntypedStorage",
           "torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2",
           "torch._utils _rebuild_tensor_v3", "torch._utils _rebuild_parameter",
           "torch._utils _rebuild_parameter_with_state", "torch._utils _rebuild_qtensor",
           "torch._utils _rebuild_sparse_tensor", "torch._utils _rebuild_nested_tensor",
           "torch._utils _rebuild_meta_tensor_no_storage", "torch._tensor _rebuild_from_type_v2",
           "torch._utils _rebuild_wrapper_subclass", "torch.serialization _get_layout",
           "torch.nn.parameter Parameter", "torch.nn Linear", "\x1b[31m x",
           "a" * 3000 + " b"]  # fmt: skip
WHOLE = [0, 1, -1, 3, 255, 65536, 2**31 - 1, 2**31, 2**40, 2**62, 2**63, -(2**63), 2**100]

VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "NONE", "NEWTRUE", "NEWFALSE",
          "EMPTY_TUPLE", "EMPTY_DICT", "EMPTY_LIST", "BINFLOAT"}  # fmt: skip
KEEP, AGAIN = b"r\xf0\xff\xff\x00", b"j\xf0\xff\xff\x00"
"""Puts the value on the stack in the memo, and gets it from there."""


def make(rng: random.Random, folder: Path, sound: Sound) -> Sequence[Any]:
    path = folder / rng.choice(["weights.pth", "weights.pth", "weights.bin", "weights"])
    if rng.random() < 0.75:
        members = dict(_members(sound))
        if rng.random() < 0.65:
            members["archive/data.pkl"] = odd_pickle(rng, members["archive/data.pkl"])
            content = zipped(members)
        else:
            content = odd_archive(rng, members)
    else:
        content = _legacy(sound)
        if rng.random() < 0.6:  # the fourth pickle is the object's
            start, end = _pickle_spans(content)[3]
            content = content[:start] + odd_pickle(rng, content[start:end]) + content[end:]
        else:
            content = odd_bytes(rng, content)
    path.write_bytes(content)
    if rng.random() < 0.75:
        return ["inspect", path.name]
    return ["export", path.name, *sound.options(), "-o", "out"]


def odd_pickle(rng: random.Random, content: bytes) -> bytes:
    """A pickle with a few of its operations changed, or others among them."""
    try:
        parts = _operations(content)
    except Exception:  # changed before
        return odd_bytes(rng, content)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        place = rng.randrange(len(parts))
        change = rng.choice(
            ["value", "value", "value", "drop", "double", "swap", "global", "insert"]
        )
        if change == "value":
            parts[place] = _odd_operation(rng, parts[place])
        elif change == "drop":
            del parts[place]
        elif change == "double":
            parts.insert(place, parts[place])
        elif change == "swap":
            other = rng.randrange(len(parts))
            parts[place], parts[other] = parts[other], parts[place]
        elif change == "global":
            named = [i for i, part in enumerate(parts) if part[:1] == b"c"] or [place]
            parts[rng.choice(named)] = _named(rng)
        else:
            parts.insert(place, _program(rng))
    return b"".join(parts)


def _operations(content: bytes) -> list[bytes]:
    starts = [position for _, _, position in pickletools.genops(content)]
    ends = [*starts[1:], len(content)]
    return [content[start:end] for start, end in zip(starts, ends, strict=True)]


def _odd_operation(rng: random.Random, part: bytes) -> bytes:
    """The same kind of operation with another argument, or a program in the place of a value."""
    name = pickletools.code2op[part[:1].decode("latin-1")].name
    if name in VALUES and rng.random() < 0.2:
        return _program(rng)
    if "INT" in name or "LONG" in name:
        return _number(rng.choice(WHOLE))
    if "UNICODE" in name:
        return _text(rng.choice([*TEXTS, "cuda:0", "meta", "0", "1", "storage"]))
    if name in VALUES:
        return rng.choice(
            [b"\x88", b"\x89", b"N", b")", b"}", b"]", b"K\x07", b"\x8f", b"G" + bytes(8)]
        )
    if len(part) > 1:
        return part[:1] + odd_bytes(rng, part[1:], 1)
    return rng.choice(
        [b"0", b"1", b"2", b"(", b"e", b"u", b"s", b"t", b"\x85", b"\x86", b"R", b"b", b"."]
    )


def _number(value: int) -> bytes:
    """As the restricted unpickler takes it."""
    if -(2**31) <= value < 2**31:
        return b"J" + value.to_bytes(4, "little", signed=True)
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def _text(text: str) -> bytes:
    content = text.encode("utf-8", "surrogatepass")
    return b"X" + len(content).to_bytes(4, "little") + content


def _named(rng: random.Random) -> bytes:
    module, name = rng.choice(GLOBALS).split(" ")
    return f"c{module}\n{name}\n".encode()


def _program(rng: random.Random) -> bytes:
    """Operations that an attacker might put in; all leave one value."""
    count = rng.choice([10, 60, 2000])
    tree = b"K\x01" + KEEP + (AGAIN + b"\x86" + KEEP) * count  # ((1, 1), (1, 1)), ...: 2 ** count
    return rng.choice(
        [
            b"cos\nsystem\n(" + _text("touch stolen") + b"tR",
            b"cbuiltins\neval\n(" + _text("open('../secret').read()") + b"tR",
            b"cpathlib\nPosixPath\n(" + _text("../secret") + b"tR",
            b"(" * count,
            b"]" * count + b"a" * (count - 1),
            tree,
            b"}(" + tree + b"K\x01u",
            b"ccollections\nOrderedDict\n)R(" + tree + b"K\x01u",
            b"]" + KEEP + (AGAIN + b"a") * count,  # a list that holds itself
            b"}" + KEEP + b"(" + _text("model") + AGAIN + b"u",
            b"\x8a\xff" + b"\xff" * 255,
            _named(rng),
            _named(rng) + b")R",
            _named(rng) + b"(K\x01K\x02tR",
            _named(rng) + b"(" + _text("x") + b"}tR",
            _named(rng) + b")\x81",
            _named(rng) + b")\x81}(" + _text("__class__") + b"K\x01ub",
            b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
            b"B\xff\xff\xff\x7f",
            b"\x80\xff",
        ]
    )


@cache
def _saved(sound: Sound, zip_format: bool) -> bytes:
    import argparse

    import torch

    content = {
        "model": {name: torch.from_numpy(array) for name, array in sound.weights().items()},
        "epoch": 7,
        "args": argparse.Namespace(model="svit", input_size=56, keep_ratio=[0.7, 0.5], lr=0.1),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zip_format)
    return buffer.getvalue()


@cache
def _members(sound: Sound) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(_saved(sound, True))) as archive:
        names = archive.namelist()
        return {f"archive/{name.partition('/')[2]}": archive.read(name) for name in names}


def _legacy(sound: Sound) -> bytes:
    return _saved(sound, False)


def _pickle_spans(content: bytes) -> list[tuple[int, int]]:
    """Where the five pickles of the format before torch 1.6 begin and end."""
    stream, spans = io.BytesIO(content), []
    for _ in range(5):
        start = stream.tell()
        for _operation in pickletools.genops(stream):
            pass
        spans.append((start, stream.tell()))
    return spans
