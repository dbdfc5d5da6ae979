"""Writing bundles: complete or absent, whatever happens in between; reading them back."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from svit_deploy.bundle import (
    MANIFEST,
    MODEL,
    REFERENCE,
    Bundle,
    open_bundle,
    write_bundle,
    write_manifest,
)
from svit_deploy.errors import EXIT_EXPORT, ExportError
from svit_deploy.export.pipeline import export_model
from svit_deploy.export.settings import ExportSettings
from svit_deploy.io import folder as folders
from svit_deploy.io.files import hash_file
from svit_deploy.methods.families import FAMILIES
from svit_deploy.model.config import TokenMode
from svit_deploy.model.model import Model
from svit_deploy.model.result import stack

Export = Callable[..., Bundle]
GOLDEN = "svit_cls"
NAMES = ["out", "out with spaces", "größe 日本", "out[1]", "*", "a.partial-b", "-o"]


@pytest.fixture
def manifest(export: Export) -> dict[str, object]:
    """The content of a sound manifest, but for what `write_manifest` adds."""
    found = export(GOLDEN, "dynamic").manifest
    return {key: value for key, value in found.items() if key not in ("files", "schema_version")}


def write_one(
    output: Path, manifest: dict[str, object], text: str = "new", **options: bool
) -> None:
    with write_bundle(output, **options) as folder:
        (folder / MODEL).write_text(text)
        write_manifest(folder, manifest)


def content(folder: Path) -> str:
    return (folder / MODEL).read_text()


def refused(output: Path, **options: bool) -> str:
    """The sentence that refuses to write there; also checks that nothing is left behind."""
    before = sorted(output.parent.rglob("*")) if output.parent.is_dir() else None
    with pytest.raises(ExportError) as caught, write_bundle(output, **options) as folder:
        (folder / "file").write_text("x")
    assert caught.value.exit_code == EXIT_EXPORT
    assert "-o" in caught.value.fix
    assert "\n" not in str(caught.value)
    if before is not None:
        assert sorted(output.parent.rglob("*")) == before
    return str(caught.value)


# --- what an export writes ---------------------------------------------------------------------


@pytest.mark.parametrize("mode", [mode.value for mode in FAMILIES["svit"].modes])
def test_exported_bundle_opens(export: Export, mode: str) -> None:
    bundle = export(GOLDEN, mode)
    again = open_bundle(bundle.path / MANIFEST)
    assert again == bundle
    assert again.mode is TokenMode(mode)
    assert again.name == bundle.path.name
    assert again.has_gate_outputs == (mode != "dense")
    assert len(again.budgets) == (9 if mode == "budget" else 0)
    assert sorted(again.manifest["files"]) == [MODEL, REFERENCE]
    assert again.model_sha256 == hash_file(again.model_path)
    assert list(bundle.path.parent.iterdir()) == [bundle.path]


def test_budget_rows_count_the_tokens_always_kept(export: Export) -> None:
    bundle = export(GOLDEN, "budget")
    assert bundle.rows(bundle.config.image_size).tolist() == [197] * 9
    assert [budget.value for budget in bundle.budgets] == [196] * 8 + [197]
    assert export(GOLDEN, "masked").rows((56, 56)) is None


def test_reference_has_the_shapes_that_verify_expects(export: Export) -> None:
    bundle = export(GOLDEN, "masked")
    with np.load(bundle.path / REFERENCE) as npz:
        arrays = {name: npz[name] for name in npz.files}
    count = len(arrays["images"])
    assert {name: array.shape for name, array in arrays.items()} == {
        "images": (count, 3, 56, 56),
        "logits": (count, 20),
        "keep_mask": (count, 9, 197),
        "margin": (count, 9, 197),
    }
    assert arrays["keep_mask"].dtype == bool
    (part,) = bundle.load_samples()
    assert len(part) == len(part.result) == count
    assert np.array_equal([image.pixels for image in part.images], arrays["images"])
    assert [image.name for image in part.images] == [f"sample-{i}" for i in range(count)]
    assert np.array_equal(stack(part.result.outputs, "logits"), arrays["logits"])
    selected = part.result.selected
    assert np.array_equal(selected.keep_mask, arrays["keep_mask"])
    assert np.array_equal(selected.margin, arrays["margin"])


@pytest.mark.parametrize("name", ["größe 日本 out", "out[1]"])
def test_export_to_unusual_paths(tmp_path: Path, digits: Model, name: str) -> None:
    output = tmp_path / "new folder" / name / "bundle"
    assert export_model(digits, output, ExportSettings()).path == output
    (part,) = open_bundle(output).load_samples()
    assert part.result.outputs[0]["logits"].dtype == np.float32


def test_undecodable_file_name_in_the_command(tmp_path: Path, manifest: dict[str, object]) -> None:
    manifest["command"] = ["export", os.fsdecode(b"weights-\xff.pth")]
    write_one(tmp_path / "out", manifest)
    assert "weights-?.pth" in (tmp_path / "out" / MANIFEST).read_text(encoding="utf-8")


# --- complete or absent ------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_folder_appears_when_it_is_complete(
    tmp_path: Path, manifest: dict[str, object], name: str
) -> None:
    output = tmp_path / "made on the way" / name
    with write_bundle(output) as folder:
        (folder / MODEL).write_text("new")
        assert not output.exists()
        write_manifest(folder, manifest)
    assert sorted(file.name for file in output.iterdir()) == [MANIFEST, MODEL]
    assert [folder.name for folder in output.parent.iterdir()] == [name]


def test_folder_has_the_usual_permissions(tmp_path: Path, manifest: dict[str, object]) -> None:
    old = os.umask(0o027)
    try:
        write_one(tmp_path / "out", manifest)
    finally:
        os.umask(old)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), MemoryError()])
def test_failure_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), write_bundle(tmp_path / "out") as folder:
        (folder / MODEL).write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["write", "flush"])
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if step == "flush":
        monkeypatch.setattr(os, "fsync", fail)
    output = tmp_path / "out"
    with (
        pytest.raises(ExportError, match="No space left") as caught,
        write_bundle(output) as folder,
    ):
        (folder / MODEL).write_text("half")
        if step == "write":
            fail()
    assert caught.value.exit_code == EXIT_EXPORT
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root may mount")
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_export_to_a_disk_that_is_full(small_disk: Path, digits: Model) -> None:
    with pytest.raises(ExportError, match=r"cannot write .*bundle \(No space left on device\)"):
        export_model(digits, small_disk / "bundle", ExportSettings())
    assert list(small_disk.iterdir()) == []


def test_read_only_disk(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "Read-only file system" in refused(small_disk / "out")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_read_only_folder(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    parent.mkdir(mode=0o555)
    assert "Permission denied" in refused(parent / "out")


def test_parent_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "cannot write" in refused(tmp_path / "file" / "out")


def test_name_too_long(tmp_path: Path) -> None:
    assert "too long" in refused(tmp_path / ("n" * 250))


# --- what stands there already -----------------------------------------------------------------


def test_bundle_is_replaced_by_force_only(tmp_path: Path, manifest: dict[str, object]) -> None:
    output = tmp_path / "out"
    write_one(output, manifest, "old")
    (output / "verify.json").write_text("of the old model")
    assert "--force" in refused(output)
    assert content(output) == "old"
    write_one(output, manifest, "new", force=True)
    assert content(output) == "new"
    assert sorted(file.name for file in output.iterdir()) == [MANIFEST, MODEL]
    assert [folder.name for folder in tmp_path.iterdir()] == ["out"]


def test_empty_folder_is_used(tmp_path: Path, manifest: dict[str, object]) -> None:
    (tmp_path / "out").mkdir()
    write_one(tmp_path / "out", manifest)
    assert content(tmp_path / "out") == "new"


@pytest.mark.parametrize("force", [False, True])
def test_other_folders_are_never_replaced(tmp_path: Path, force: bool) -> None:
    web_page = tmp_path / "site"
    web_page.mkdir()
    (web_page / MANIFEST).write_text('{"name": "My app", "start_url": "/"}')
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    for output in (web_page, folder, tmp_path / "file"):
        assert "not a sound bundle" in refused(output, force=force)
    (tmp_path / "link").symlink_to(folder)
    assert "is a link" in refused(tmp_path / "link", force=force)


def test_old_bundle_comes_back_if_the_new_one_cannot_be_put_in_place(
    tmp_path: Path, manifest: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    write_one(output, manifest, "old")
    rename = Path.rename

    def fail_once(source: Path, target: Path) -> Path:
        if source.name.startswith(".out.partial-") and "replaced" not in source.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(source, target)

    monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(ExportError, match="Input/output error"):
        write_one(output, manifest, "new", force=True)
    assert content(output) == "old"
    assert [folder.name for folder in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs the exchange of Linux")
def test_old_and_new_bundle_change_places_in_one_step(
    tmp_path: Path, manifest: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(folder: Path, output: Path) -> None:
        raise AssertionError("there is a moment without a bundle")

    monkeypatch.setattr(folders, "_replace", never)
    for text in ("old", "new"):
        write_one(tmp_path / "out", manifest, text, force=True)
    assert content(tmp_path / "out") == "new"
    assert [folder.name for folder in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks: leftovers stay")
@pytest.mark.parametrize("exchange", [False, True])
def test_a_bundle_that_was_being_replaced_comes_back(
    tmp_path: Path, manifest: dict[str, object], monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    """A process was killed between the two steps that the exchange is without the system's help."""
    output, part = tmp_path / "out", tmp_path / ".out.partial-0123456789ab"
    write_one(output, manifest, "old")
    output.rename(f"{part}-replaced")
    part.mkdir()
    if not exchange:
        monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    with pytest.raises(ExportError, match="holds a bundle already"):
        write_one(output, manifest, "new")
    assert content(output) == "old"
    write_one(output, manifest, "new", force=True)
    assert content(output) == "new"
    assert [folder.name for folder in tmp_path.iterdir()] == ["out"]


# --- several processes -------------------------------------------------------------------------

WRITER = """
import sys, time
from pathlib import Path
from svit_deploy.bundle import write_bundle
with write_bundle(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("x")
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other_export() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Starts another process that is in the middle of writing a bundle."""
    processes = []

    def start(output: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WRITER, str(output)]
        root = Path(__file__).parents[2]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no such locks: leftovers stay")
@pytest.mark.parametrize("name", ["out", "out[1]", "*"])
def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_stay(
    tmp_path: Path,
    manifest: dict[str, object],
    other_export: Callable[[Path], subprocess.Popen[str]],
    name: str,
) -> None:
    neighbour = tmp_path / ".elsewhere.partial-123"
    neighbour.mkdir()
    process = other_export(tmp_path / name)
    (partial,) = (folder for folder in tmp_path.iterdir() if folder != neighbour)
    write_one(tmp_path / name, manifest, "first")
    assert (partial / "half").exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (partial / "half").exists()
    write_one(tmp_path / name, manifest, "second", force=True)
    assert content(tmp_path / name) == "second"
    assert sorted(tmp_path.iterdir()) == sorted([neighbour, tmp_path / name])


@pytest.mark.parametrize("force", [False, True])
def test_export_that_was_overtaken(
    tmp_path: Path, manifest: dict[str, object], force: bool
) -> None:
    """Only --force replaces the bundle of another export that ended first."""
    output = tmp_path / "out"
    slow = write_bundle(output, force=force)
    folder = slow.__enter__()
    (folder / MODEL).write_text("slow")
    write_manifest(folder, manifest)
    write_one(output, manifest, "fast")
    if force:
        slow.__exit__(None, None, None)
    else:
        with pytest.raises(ExportError, match="holds a bundle already"):
            slow.__exit__(None, None, None)
    assert content(output) == ("slow" if force else "fast")
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("force", [False, True])
def test_many_exports_at_once(tmp_path: Path, manifest: dict[str, object], force: bool) -> None:
    """Without --force one of them wins; with it the last one does, and none is left over."""
    output, outcomes = tmp_path / "out", []
    barrier = threading.Barrier(8)

    def write(number: int) -> None:
        barrier.wait()
        try:
            write_one(output, manifest, str(number), force=force)
        except ExportError:
            return
        outcomes.append(str(number))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert content(output) in outcomes
    assert len(outcomes) == 1 or force
    assert not [folder for folder in tmp_path.iterdir() if "replaced" not in folder.name][1:]
