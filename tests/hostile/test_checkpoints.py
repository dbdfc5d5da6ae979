"""Damaged, mistaken and malicious checkpoints: one sentence, exit code 3, and no code is run.

Each file is made here, so that the repository holds none.
"""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svit_deploy.errors import EXIT_INPUT, InputError, SvitDeployError
from svit_deploy.io.checkpoint import read_checkpoint
from svit_deploy.io.pickles import pickle_globals
from tests.told import checkpoint_of

torch = pytest.importorskip("torch")

WEIGHTS = {"w": torch.ones(2, 3)}


class Touch:
    """Unpickling this makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


class Harmless:
    """A class that no reader of weights knows."""


def refusal(path: Path, **options: Any) -> str:
    """The sentence that refuses the file; also checks its form and exit code."""
    with pytest.raises(InputError) as caught:
        read_checkpoint(path, **options)
    assert caught.value.exit_code == EXIT_INPUT
    assert caught.value.fix
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# --- not a checkpoint at all -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b"\n\n<html lang=en>quota exceeded</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
        (b"epoch: 3\nlr: 0.1\n", "text file"),
        ("légende: oui\n".encode(), "text file"),
        (bytes(range(1, 256)) * 9, "neither safetensors nor"),
        (b"\x7fELF" + bytes(600), "neither safetensors nor"),
        (b"PK\x03\x04" + bytes(600), "truncated or damaged zip"),
    ],
)
@pytest.mark.parametrize("name", ["weights.pth", "weights with spaces é.bin"])
def test_other_files(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = write(tmp_path / name, content)
    sentence = refusal(path)
    assert words in sentence
    assert str(path) in sentence


def test_no_file(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "missing.pth")
    assert "is a directory" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe.pth")
    assert "not a file" in refusal(tmp_path / "pipe.pth")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads anything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = write(tmp_path / "w.pth", b"x")
    path.chmod(0)
    assert "cannot be read" in refusal(path)


def test_foreign_zip(tmp_path: Path) -> None:
    np.savez(tmp_path / "arrays.npz", a=np.ones(2))
    assert "zip archive that torch.save did not write" in refusal(tmp_path / "arrays.npz")


# --- damaged -----------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.9999])
def test_truncated_zip(tmp_path: Path, share: float) -> None:
    content = checkpoint_of("deit").read_bytes()
    path = write(tmp_path / "w.pth", content[: int(len(content) * share)])
    assert "truncated or damaged" in refusal(path)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_truncated_legacy_file(tmp_path: Path, share: float) -> None:
    torch.save({"w": torch.ones(1000)}, tmp_path / "w", _use_new_zipfile_serialization=False)
    content = (tmp_path / "w").read_bytes()
    assert "damaged" in refusal(write(tmp_path / "cut.pth", content[: int(len(content) * share)]))


def test_not_finite_values_are_named(tmp_path: Path) -> None:
    torch.save(
        {"good": torch.ones(2), "bad.weight": torch.tensor([1, torch.nan])}, p := tmp_path / "w"
    )
    assert "NaN or infinite values in bad.weight" in refusal(p)
    torch.save({f"w{i}": torch.tensor(float("-inf")) for i in range(9)}, p)
    assert "w0, w1, w2, w3 and 5 more" in refusal(p)
    torch.save({"big": torch.tensor(1e300, dtype=torch.float64)}, p)
    assert "in big" in refusal(p)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"optimizer": {"state": {}, "param_groups": []}, "epoch": 3}, "optimizer state but no"),
        ({"state": {}, "param_groups": [{"lr": 0.1}]}, "optimizer state but no"),
        ({"teacher_of_it": WEIGHTS}, "'teacher_of_it'"),
        ({"model": {}}, "no model weights"),
        ({"w": torch.ones(2), "epoch": 3}, "'w', 'epoch'"),
        ({}, "no model weights"),
        ([torch.ones(2)], "holds a list"),
        (torch.ones(2), "holds a Tensor"),
        ({"w": torch.eye(3).to_sparse()}, "sparse"),
        ({"w": torch.ones(2, device="meta")}, "without data"),
        ({"w": torch.ones(2, dtype=torch.complex64)}, "is complex64"),
        ({"w": torch.ones(2).to(torch.float8_e4m3fn)}, "is float8_e4m3fn"),
    ],
)
def test_no_weights_inside(tmp_path: Path, content: Any, words: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert words in refusal(tmp_path / "w.pth")


# --- files that want to run code ---------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("allow_pickle", [False, True])
def test_plain_pickle_is_never_run(tmp_path: Path, protocol: int, allow_pickle: bool) -> None:
    marker = tmp_path / "ran"
    path = write(tmp_path / "w.pth", pickle.dumps(Touch(marker), protocol))
    sentence = refusal(path, allow_pickle=allow_pickle)
    assert f"{os.system.__module__}.system" in sentence
    assert "not run" in sentence
    assert not marker.exists()


def save_payload(path: Path, marker: Path, **options: Any) -> Path:
    torch.save({"model": WEIGHTS, "args": Touch(marker)}, path, **options)
    return path


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_payload_in_torch_file_is_named_and_not_run(
    tmp_path: Path, zipped: bool, protocol: int
) -> None:
    marker = tmp_path / "ran"
    path = save_payload(
        tmp_path / "w.pth",
        marker,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=zipped,
    )
    sentence = refusal(path)
    assert f"{os.system.__module__}.system" in sentence
    assert "only for a file you trust, give --allow-pickle" in sentence
    assert "torch._utils" not in sentence
    assert not marker.exists()


def test_allowed_pickle_is_logged_before_it_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    marker = tmp_path / "ran"
    path = save_payload(tmp_path / "w.pth", marker)
    with caplog.at_level(logging.WARNING):
        checkpoint = read_checkpoint(path, allow_pickle=True)
    assert marker.exists()
    assert f"{os.system.__module__}.system" in caplog.text
    assert list(checkpoint.tensors) == ["w"]


def test_allow_pickle_runs_nothing_where_it_is_not_needed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read_checkpoint(checkpoint_of("deit"), allow_pickle=True)
    assert caplog.text == ""


def test_unknown_class_is_named(tmp_path: Path) -> None:
    torch.save({"model": WEIGHTS, "config": Harmless(), "acc": np.float64(1)}, tmp_path / "w.pth")
    sentence = refusal(tmp_path / "w.pth")
    assert "test_checkpoints.Harmless" in sentence
    assert "multiarray.scalar" in sentence
    assert list(read_checkpoint(tmp_path / "w.pth", allow_pickle=True).tensors) == ["w"]


def test_pickled_module(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(torch.nn.Linear(2, 3), path)
    assert "torch.nn.modules.linear.Linear" in refusal(path)
    assert "state_dict()" in refusal(path)
    assert set(read_checkpoint(path, allow_pickle=True).tensors) == {"weight", "bias"}


def test_class_that_cannot_be_imported(tmp_path: Path) -> None:
    torch.save({"model": WEIGHTS, "x": Harmless()}, path := tmp_path / "w.pth", pickle_protocol=2)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "x.pth", "w") as target:
        for entry in source.infolist():
            content = source.read(entry).replace(b"Harmless", b"Harmlos_")
            target.writestr(entry.filename, content)
    assert "cannot be unpickled" in refusal(tmp_path / "x.pth", allow_pickle=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_torchscript_archive(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 3), torch.ones(1, 2)), tmp_path / "w.pth")
    assert "TorchScript" in refusal(tmp_path / "w.pth")


def test_pickle_globals_follow_the_memo() -> None:
    """Protocol 4 keeps the strings of a global in the memo: the second use has to be found."""
    content = pickle.dumps([Touch(Path("a")), os.path.join, Harmless(), Harmless()], 4)
    named = pickle_globals(io.BytesIO(content), pickles=1)
    assert f"{os.system.__module__}.system" in named
    assert f"{os.path.join.__module__}.join" in named
    assert f"{Harmless.__module__}.Harmless" in named


# --- sizes that lie ----------------------------------------------------------------------------


def handmade_pickle(elements: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """`{"w": tensor}` as torch.save pickles it, with free choice of what it declares."""

    def part(value: Any) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    storage = part("storage") + b"ctorch\nFloatStorage\n" + part("0") + part("cpu") + part(elements)
    return (
        (b"\x80\x02}" + part("w") + b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage + b"tQK\x00")
        + (part(shape) + part(stride) + b"\x89" + b"ccollections\nOrderedDict\n)RtRs.")
    )  # fmt: skip


def handmade_zip(
    path: Path, data_pkl: bytes, storage: bytes, method: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("w/data.pkl", data_pkl)
        archive.writestr("w/byteorder", "little")
        archive.writestr("w/data/0", storage)
        archive.writestr("w/version", "3\n")
    return path


def test_handmade_zip_is_read(tmp_path: Path) -> None:
    path = handmade_zip(tmp_path / "w.pth", handmade_pickle(4, (2, 2), (2, 1)), bytes(16))
    assert read_checkpoint(path).tensors["w"].tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("elements", "shape", "stride"),
    [
        (2**40, (2**40,), (1,)),
        (4, (2**40,), (1,)),
        (4, (8,), (1,)),
        (4, (2, 2), (2**40, 1)),
        (4, (2**33,), (0,)),
        (4, (-3,), (1,)),
        (4, (2**62, 2**62), (1, 1)),
    ],
)
def test_tensor_larger_than_its_storage(
    tmp_path: Path, elements: int, shape: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    data_pkl = handmade_pickle(elements, shape, stride)
    path = handmade_zip(tmp_path / "w.pth", data_pkl, bytes(16))
    assert "damaged" in (sentence := refusal(path)) or "more data than" in sentence


def test_legacy_tensor_larger_than_its_storage(tmp_path: Path) -> None:
    torch.save(
        {"w": torch.ones(1000)}, path := tmp_path / "w", _use_new_zipfile_serialization=False
    )
    content = path.read_bytes()
    size, huge = pickle.dumps((1000,), 2)[2:-1], pickle.dumps((2**27,), 2)[2:-1]
    found = content.replace(size[:-1].removesuffix(b"q\x00"), huge[:-1].removesuffix(b"q\x00"), 1)
    assert found != content
    sentence = refusal(write(path, found))
    assert "damaged" in sentence or "more data than" in sentence


DOUBLED = b"K\x01q\x00" + b"h\x00\x86q\x00" * 60
"""((1, 1), (1, 1)), and so on: 2 ** 60 leaves."""


@pytest.mark.parametrize(
    "value",
    [
        b"}(" + DOUBLED + b"K\x01u",
        b"}" + DOUBLED + b"K\x01s",
        b"\x8f(" + DOUBLED + b"\x90",
        b"ccollections\nCounter\n(](" + DOUBLED + b"etR",
        b"}(K\x01" + b"\x85" * 1_000_000 + b"K\x01u",
        b"}(K\x01" + b"\x85" * 2000 + b"K\x01u",
    ],
    ids=["items", "item", "set", "counter", "deep", "deep enough"],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_pickle_bomb(tmp_path: Path, value: bytes, legacy: bool) -> None:
    path = tmp_path / "w.pth"
    if legacy:
        numbers = [pickle.dumps(n, 2) for n in (0x1950A86A20F9469CFC6C, 1001, {})]
        write(path, b"".join(numbers) + b"\x80\x02" + value + b"." + pickle.dumps([], 2))
    else:
        handmade_zip(path, b"\x80\x02" + value + b".", bytes(16))
    assert "beyond any measure" in refusal(path)


def test_many_values_are_no_bomb(tmp_path: Path) -> None:
    """Sizes that many tensors share, long tuples, and lists in lists."""
    nested: Any = []
    for _ in range(100):
        nested = [nested]
    names, shared = tuple(map(str, range(20_000))), (3, 4)
    extra = {"names": names, "nested": nested, "sizes": [(shared, shared)] * 1000}
    torch.save({"model": WEIGHTS, **extra}, path := tmp_path / "w.pth")
    assert read_checkpoint(path).tensors.keys() == WEIGHTS.keys()


@pytest.mark.parametrize("record", ["data", pytest.param("pickle", marks=pytest.mark.slow)])
def test_zip_bomb(tmp_path: Path, record: str) -> None:
    elements = 25_000_000
    data_pkl = handmade_pickle(elements, (elements,), (1,))
    if record == "pickle":
        data_pkl = b"\x80\x02" + b"N0" * 50_000_000 + b"}."
    path = handmade_zip(tmp_path / "w.pth", data_pkl, bytes(4 * elements), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2_000_000
    assert "compressed archive" in refusal(path)


def test_zip_of_overlapping_entries(tmp_path: Path) -> None:
    """Many directory entries that point at the same bytes."""
    path = handmade_zip(tmp_path / "w.pth", handmade_pickle(4, (4,), (1,)), bytes(100_000))
    with zipfile.ZipFile(path, "a") as archive:
        entry = archive.getinfo("w/data/0")
        for number in range(1, 50):
            double = zipfile.ZipInfo(f"w/data/{number}")
            double.header_offset, double.CRC = entry.header_offset, entry.CRC
            double.file_size = double.compress_size = entry.file_size
            archive.filelist.append(double)
        archive._didModify = True
    assert path.stat().st_size < 200_000
    assert "declare" in refusal(path)


def test_many_names_for_one_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("svit_deploy.io.torch_file.MAX_BYTES", 10_000)
    shared = torch.ones(1000)
    torch.save({f"w{i}": shared for i in range(9)}, tmp_path / "w.pth")
    assert "declares more data" in refusal(tmp_path / "w.pth")


def test_file_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("svit_deploy.io.checkpoint.MAX_BYTES", 1000)
    assert "larger than" in refusal(checkpoint_of("deit"))


# --- safetensors -------------------------------------------------------------------------------


def handmade_safetensors(path: Path, header: Any, data: bytes = bytes(64)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return write(path, struct.pack("<Q", len(text)) + text + data)


def entry(start: int, end: int, shape: tuple[int, ...] = (8,), dtype: str = "F32") -> Any:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(0, 32), "b": entry(16, 48)},
        {"a": entry(0, 32), "b": entry(0, 32)},
        {"a": entry(0, 32), "b": entry(40, 64, (6,))},
        {"a": entry(0, 2**60, (2**58,))},
        {"a": entry(32, 0)},
        {"a": entry(0, 32, (9,))},
        {"a": entry(0, 32, (2**63, 2))},
        {"a": entry(0, 32)},
        {"a": entry(0, 64, dtype="F33")},
        b"{" * 4000,
        b'{"a": ' + b"[" * 100_000,
        b"not json at all, at any length",
    ],
    ids=lambda header: str(header)[:40],
)
def test_bad_safetensors(tmp_path: Path, header: Any) -> None:
    assert "safetensors" in refusal(handmade_safetensors(tmp_path / "w.safetensors", header))


@pytest.mark.parametrize("length", [2**24, 10**9, 2**40, 2**63 - 1, 2**64 - 1])
def test_safetensors_with_giant_header(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "w.safetensors", struct.pack("<Q", length) + b"{}" + bytes(1000))
    assert "safetensors" in refusal(path)


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.5, 0.99])
def test_truncated_safetensors(tmp_path: Path, share: float) -> None:
    content = safetensors.numpy.save({"w": np.ones(10_000, np.float32)})
    path = write(tmp_path / "w.safetensors", content[: int(len(content) * share)])
    assert "damaged safetensors" in refusal(path)


def test_safetensors_contents(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    path.write_bytes(safetensors.numpy.save({"bad": np.array([np.inf], np.float16)}))
    assert "NaN or infinite values in bad" in refusal(path)
    path.write_bytes(safetensors.numpy.save({"bad": np.array([1], np.int8)}))
    assert "type I8" in refusal(path)
    path.write_bytes(safetensors.numpy.save({}))
    assert "no tensors" in refusal(path)


# --- anything else -----------------------------------------------------------------------------


def damage(content: bytes, changes: list[tuple[int, int]]) -> bytes:
    damaged = bytearray(content)
    for position, value in changes:
        damaged[position % len(damaged)] = value
    return bytes(damaged)


def zip_bytes(tmp_path: Path) -> bytes:
    torch.save({"model": WEIGHTS, "epoch": 3}, tmp_path / "seed")
    return (tmp_path / "seed").read_bytes()


def legacy_bytes(tmp_path: Path) -> bytes:
    torch.save({"model": WEIGHTS}, tmp_path / "seed", _use_new_zipfile_serialization=False)
    return (tmp_path / "seed").read_bytes()


def safetensors_bytes(tmp_path: Path) -> bytes:
    return safetensors.numpy.save({"w": np.ones((2, 3), np.float16)})


@pytest.mark.slow
@pytest.mark.parametrize("make", [zip_bytes, legacy_bytes, safetensors_bytes])
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    changes=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=6)
)
def test_damaged_bytes_never_escape_as_another_error(
    tmp_path: Path, make: Callable[[Path], bytes], changes: list[tuple[int, int]]
) -> None:
    path = write(tmp_path / "w.pth", damage(make(tmp_path), changes))
    try:
        read_checkpoint(path)
    except SvitDeployError as error:
        assert error.fix
