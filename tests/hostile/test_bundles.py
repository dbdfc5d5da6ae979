"""Damaged, contradictory and malicious bundles: one sentence, exit code 3, nothing changed.

Each is made from a sound one here, so that the repository holds none.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from svit_deploy.bundle import MANIFEST, MODEL, REFERENCE, Bundle, open_bundle
from svit_deploy.bundle.manifest import SCHEMA
from svit_deploy.errors import EXIT_INPUT, InputError
from svit_deploy.inspection import inspect_path
from svit_deploy.io.files import hash_file
from svit_deploy.io.strict_json import MAX_BYTES

Manifest = dict[str, Any]


@pytest.fixture
def bundle(tmp_path: Path, export: Callable[..., Bundle]) -> Path:
    """A copy of a sound bundle."""
    return Path(shutil.copytree(export("svit_cls", "budget").path, tmp_path / "bundle"))


def refusal(path: Path, read: Callable[[Path], object] = open_bundle) -> str:
    """The sentence that refuses the bundle; also checks its form, and that nothing changed."""
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(InputError) as caught:
        read(path)
    assert caught.value.exit_code == EXIT_INPUT
    assert caught.value.fix
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 1000
    assert sorted(path.parent.rglob("*")) == before
    return sentence


def read(bundle: Path) -> Manifest:
    return json.loads((bundle / MANIFEST).read_text())


def write(bundle: Path, manifest: Manifest) -> None:
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def accept_changes(bundle: Path) -> None:
    """Makes the manifest fit the files, as an attacker who can write the folder would."""
    manifest = read(bundle)
    for name in manifest["files"]:
        file = bundle / name
        manifest["files"][name] = {"size_bytes": file.stat().st_size, "sha256": hash_file(file)}
    write(bundle, manifest)


# --- not a bundle ------------------------------------------------------------------------------


def test_other_paths(tmp_path: Path, bundle: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "missing")
    assert "does not exist" in refusal(tmp_path / "missing" / MANIFEST)
    assert "is not a bundle" in refusal(bundle / MODEL)
    (tmp_path / "empty").mkdir()
    assert "has no manifest.json" in refusal(tmp_path / "empty")


def test_unfinished_export(bundle: Path) -> None:
    (bundle / MANIFEST).unlink()
    assert "run the export again" in refusal(bundle)


# --- the manifest as a file --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "damaged"),
        (b"{", "damaged"),
        (b"[]", "'it' is not an object"),
        (b"null", "'it' is not an object"),
        (b"\xff\xfe{}", "utf-8"),
        (b'{"schema_version": "1"}', "'schema_version' is not a whole number"),
        (b'{"schema_version": true}', "'schema_version' is not a whole number"),
        (b'{"schema_version": 2, "files": 7}', "upgrade svit-deploy"),
        (b'{"schema_version": 0}', "is missing"),
        (b'{"schema_version": NaN}', "not a finite number"),
        (b'{"schema_version": Infinity}', "not a finite number"),
        (b'{"schema_version": 1e999}', "not a finite number"),
        (b'{"schema_version": 1' + b"0" * 5000 + b"}", "too large"),
        (b'{"schema_version": 1, "schema_version": 1}', "twice"),
        (b'{"a": ' * 100_000, "recursion"),
        (b"[" * 100_000, "recursion"),
        (b" " * (MAX_BYTES + 1), "larger than"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_content(bundle: Path, content: bytes, words: str) -> None:
    (bundle / MANIFEST).write_bytes(content)
    for reader in (open_bundle, inspect_path):
        assert words in refusal(bundle, reader)


def test_truncated_manifest(bundle: Path) -> None:
    content = (bundle / MANIFEST).read_bytes()
    for share in (0.1, 0.5, 0.99):
        (bundle / MANIFEST).write_bytes(content[: int(len(content) * share)])
        assert "damaged" in refusal(bundle)


@pytest.mark.parametrize("name", [MANIFEST, MODEL, REFERENCE])
def test_links_in_the_folder(tmp_path: Path, bundle: Path, name: str) -> None:
    (bundle / name).rename(tmp_path / name)
    (bundle / name).symlink_to(tmp_path / name)
    assert f"{name} is a link" in refusal(bundle)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads anything")
@pytest.mark.parametrize("name", [MANIFEST, MODEL])
def test_unreadable_files(bundle: Path, name: str) -> None:
    (bundle / name).chmod(0)
    assert "cannot be read" in refusal(bundle)


# --- keys and values of the manifest -----------------------------------------------------------


def kind(wanted: Any) -> type:
    """The JSON type that SCHEMA asks for; a tuple lets null pass too."""
    wanted = wanted[0] if isinstance(wanted, tuple) else wanted
    return wanted if isinstance(wanted, type) else type(wanted)


WRONG_TYPES = [
    (key, value)
    for key, wanted in SCHEMA.items()
    for value in ([None] if not isinstance(wanted, tuple) else []) + ["text", 7, 1.5, True, [], {}]
    if type(value) is not kind(wanted)
]


@pytest.mark.parametrize(("key", "value"), WRONG_TYPES)
def test_keys_of_other_types(bundle: Path, key: str, value: Any) -> None:
    write(bundle, read(bundle) | {key: value})
    assert f"'{key}' is not" in refusal(bundle)


@pytest.mark.parametrize("key", sorted(SCHEMA))
def test_missing_keys(bundle: Path, key: str) -> None:
    manifest = read(bundle)
    del manifest[key]
    write(bundle, manifest)
    assert f"'{key}' is missing" in refusal(bundle)


NESTED = [("tokens",), ("model",), ("batch",), ("gates", 0), ("files", MODEL), ("checkpoint",)]


@pytest.mark.parametrize("path", [(), *NESTED], ids=str)
def test_unknown_keys(bundle: Path, path: tuple[Any, ...]) -> None:
    manifest = target = read(bundle)
    for step in path:
        target = target[step]
    target["\x1b[31mextra" + "x" * 5000] = 1
    write(bundle, manifest)
    sentence = refusal(bundle)
    assert "extra" in sentence
    assert "\x1b" not in sentence


def set_value(*path: Any) -> Callable[[Manifest], None]:
    """Sets the value at `path[:-1]` to `path[-1]`."""

    def change(manifest: Manifest) -> None:
        target = manifest
        for step in path[:-2]:
            target = target[step]
        target[path[-2]] = path[-1]

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_value("tokens", "mode", "fast"), "TokenMode"),
        (set_value("tokens", "mode", "dynamic"), "budgets"),
        (set_value("tokens", "mode", "dense"), "9 gates in token mode dense"),
        (set_value("tokens", "budgets", [1]), "budgets"),
        (set_value("tokens", "budgets", []), "budgets"),
        (set_value("tokens", "budgets", [0] * 9), "budgets"),
        (set_value("tokens", "budgets", [10**6] * 9), "budgets"),
        (set_value("tokens", "budgets", [True] * 9), "not a whole number"),
        (set_value("tokens", "gate_outputs", 1), "not true or false"),
        (set_value("precision", "fp7"), "precision 'fp7' of --task classify"),
        (set_value("batch", "min", 0), "batch range"),
        (set_value("batch", "max", -1), "batch range"),
        (set_value("gates", []), "0 gates of 9"),
        (set_value("gates", 3, "threshold", "high"), "'gates[3].threshold' is not a number"),
        (set_value("gates", 3, "threshold", 0.25), "gate 3 has threshold 0.25 and 0.0"),
        (set_value("gates", 2, "block", 9), "gate 2 has block 9 and 5"),
        (set_value("gates", 1, "budget", 7), "gate 1 has budget 7 and 196"),
        (set_value("preprocess", "mean", [0.5] * 3), "preprocessing is told twice"),
        (set_value("model", "num_heads", 0), "num_heads"),
        (set_value("model", "num_heads", 5), "divisible"),
        (set_value("model", "image_size", [57, 56]), "patch"),
        (set_value("model", "depth", 10**30), "too large"),
        (set_value("model", "thresholds", [0.0]), "thresholds"),
        (set_value("model", "target_keep", [7.0] * 9), "keep ratio"),
        (set_value("model", "preprocess", "std", [0.0, 0.0, 0.0]), "std"),
        (set_value("files", MODEL, "size_bytes", "12"), "not a whole number"),
        (set_value("files", MODEL, None), "not an object"),
        (set_value("class_names", ["a", "b"]), "2 of 20 classes are named"),
        (set_value("class_names", [1] * 20), "'class_names[0]' is not a string"),
        (set_value("origin", {"id": "timm:x"}), "'origin.revision' is missing"),
        (set_value("origin", "timm:x"), "'origin' is not an object"),
    ],
)  # fmt: skip
def test_values_that_contradict(
    bundle: Path, change: Callable[[Manifest], None], words: str
) -> None:
    manifest = read(bundle)
    change(manifest)
    write(bundle, manifest)
    sentence = refusal(bundle)
    assert words in sentence
    assert str(bundle / MANIFEST) in sentence


# --- the files it lists ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../secret", "/etc/passwd", "sub/file", "", ".", "..", "./model.onnx", "x/../y", "nul\x00"],
)
def test_names_outside_the_folder(bundle: Path, name: str) -> None:
    os.mkfifo(bundle.parent / "secret")  # whoever opens it hangs
    manifest = read(bundle)
    manifest["files"][name] = {"size_bytes": 0, "sha256": "0" * 64}
    write(bundle, manifest)
    assert f"lists {name!r}, which is no file of its folder" in refusal(bundle)


@pytest.mark.parametrize(
    ("name", "words"),
    [("missing.bin", "is missing"), ("größe", "is missing"), ("n" * 300, "cannot be read")],
)
def test_names_of_no_file(bundle: Path, name: str, words: str) -> None:
    manifest = read(bundle)
    manifest["files"][name] = {"size_bytes": 0, "sha256": "0" * 64}
    write(bundle, manifest)
    assert words in refusal(bundle)


@pytest.mark.parametrize("name", [MODEL, REFERENCE])
def test_files_that_are_not_those_exported(bundle: Path, name: str) -> None:
    file = bundle / name
    content = file.read_bytes()
    flipped = bytes([content[-1] ^ 1])
    for changed in (content[:-1], content + b"\0", content[:-1] + flipped, b""):
        file.write_bytes(changed)
        assert "not the file that was exported" in refusal(bundle)
    file.unlink()
    assert f"{name} is missing" in refusal(bundle)
    file.mkdir()
    assert f"{name} is missing" in refusal(bundle)
    file.rmdir()
    os.mkfifo(file)
    assert f"{name} is missing" in refusal(bundle)


@pytest.mark.parametrize("name", [MODEL, REFERENCE])
def test_files_that_are_not_listed(bundle: Path, name: str) -> None:
    manifest = read(bundle)
    del manifest["files"][name]
    write(bundle, manifest)
    assert f"{name} is not listed" in refusal(bundle)


def test_reports_may_lie_beside_the_model(bundle: Path) -> None:
    (bundle / "verify.json").write_text("{}")
    (bundle / "maps").mkdir()
    open_bundle(bundle)


def test_model_with_weights_elsewhere_although_its_hash_fits(bundle: Path) -> None:
    (bundle.parent / "secret").write_bytes(bytes(2**20))
    model = onnx.load(bundle / MODEL)
    for tensor in model.graph.initializer[:1]:
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../secret")
    (bundle / MODEL).write_bytes(model.SerializeToString())
    accept_changes(bundle)
    assert "in another file ('../secret')" in refusal(bundle)


def test_model_that_is_no_model_although_its_hash_fits(bundle: Path) -> None:
    (bundle / MODEL).write_bytes(b"not a model")
    accept_changes(bundle)
    assert "is not an ONNX model" in refusal(bundle)


# --- reference.npz -----------------------------------------------------------------------------


def reference_refusal(bundle: Path) -> str:
    accept_changes(bundle)
    opened = open_bundle(bundle)
    return refusal(bundle, lambda _: opened.load_samples())


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"text"])
def test_reference_that_is_no_archive(bundle: Path, content: bytes) -> None:
    (bundle / REFERENCE).write_bytes(content)
    assert REFERENCE in reference_refusal(bundle)


@pytest.mark.parametrize("share", [0.2, 0.7, 0.999])
def test_truncated_reference(bundle: Path, share: float) -> None:
    content = (bundle / REFERENCE).read_bytes()
    (bundle / REFERENCE).write_bytes(content[: int(len(content) * share)])
    assert REFERENCE in reference_refusal(bundle)


def change_reference(bundle: Path, **changes: Any) -> None:
    with np.load(bundle / REFERENCE) as arrays:
        content = {name: arrays[name] for name in arrays.files} | changes
    np.savez_compressed(bundle / REFERENCE, **{k: v for k, v in content.items() if v is not None})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"logits": None}, "has no array 'logits'"),
        ({"logits": np.zeros((3, 21), np.float32)}, "float32[3, 21], not float32[3, 20]"),
        ({"logits": np.zeros((3, 20))}, "float64[3, 20], not float32[3, 20]"),
        ({"keep_mask": np.zeros((3, 9, 197), np.uint8)}, "uint8[3, 9, 197], not bool[3, 9, 197]"),
        ({"margin": np.zeros((3, 9), np.float32)}, "'margin'"),
        ({"labels": np.zeros(4, np.int64)}, "int64[4], not int64[3]"),
        ({"images": np.array([{"a": 1}], dtype=object)}, "cannot be read"),
    ],
)
def test_reference_of_another_model(bundle: Path, changes: Manifest, words: str) -> None:
    change_reference(bundle, **changes)
    assert words in reference_refusal(bundle)


def test_reference_with_other_arrays_and_labels_is_read(bundle: Path) -> None:
    change_reference(bundle, labels=np.zeros(3, np.int64), other=np.zeros(5))
    accept_changes(bundle)
    (part,) = open_bundle(bundle).load_samples()
    assert [image.label for image in part.images] == [0, 0, 0]
    assert "other" not in part.result.values


def put_array(bundle: Path, header: bytes, data: bytes) -> None:
    """Replaces the logits by an .npy file made by hand."""
    with zipfile.ZipFile(bundle / REFERENCE, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("logits.npy", header + data)


def npy_header(shape: str) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize("shape", ["(1099511627776,)", "(3, 20)", "(-1,)", "(9,) * 9", "'x'"])
def test_array_larger_than_its_data(bundle: Path, shape: str) -> None:
    put_array(bundle, npy_header(shape), bytes(16))
    assert REFERENCE in reference_refusal(bundle)


def test_reference_that_is_a_zip_bomb(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("svit_deploy.bundle.bundle.MAX_REFERENCE_BYTES", 10**7)
    put_array(bundle, npy_header("(5000000,)"), bytes(20_000_000))
    assert (bundle / REFERENCE).stat().st_size < 100_000
    assert "would unpack to 200000" in reference_refusal(bundle)


def test_zip_bomb_that_declares_little(bundle: Path) -> None:
    """The archive's directory says 100 bytes, its data unpack to 20 MB."""
    put_array(bundle, npy_header("(5000000,)"), bytes(20_000_000))
    content = io.BytesIO((bundle / REFERENCE).read_bytes())
    with zipfile.ZipFile(content) as archive:
        size = archive.getinfo("logits.npy").file_size.to_bytes(4, "little")
    (bundle / REFERENCE).write_bytes(content.getvalue().replace(size, (100).to_bytes(4, "little")))
    assert "cannot be read" in reference_refusal(bundle)
