"""Weights by ids of hubs: found in the hub's cache, and what is said where they are not.

No hub is asked: a cache is laid out as huggingface_hub lays it out, and its client is offline.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

pytest.importorskip("huggingface_hub")

from huggingface_hub import constants, errors

from svit_deploy.errors import CapabilityError, InputError
from svit_deploy.io.checkpoint import read_checkpoint
from svit_deploy.io.hub import HF, fetch, is_id, spelled

COMMIT, OLDER = "0123456789abcdef0123456789abcdef01234567", "f" * 40


class Cache:
    """huggingface_hub's cache: `models--owner--name/{refs,snapshots/COMMIT}`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, repository: str, file: str, commit: str = COMMIT, value: float = 1) -> Path:
        place = self.folder / f"models--{repository.replace('/', '--')}"
        path = place / "snapshots" / commit / file
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"weight": np.full((2, 2), value, np.float32)}, path)
        (place / "refs").mkdir(exist_ok=True)
        if commit == COMMIT:
            (place / "refs" / "main").write_text(commit)
        return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return Cache(tmp_path)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hf://a/b/c.pth", "hf://a/b/c.pth"),
        ("hf:/a/b", "hf://a/b"),
        ("timm:deit_tiny", "timm:deit_tiny"),
        ("hf/a", None),
        ("out/timm:x", None),
        ("C:/timm", None),
    ],
)
def test_ids_survive_paths(text: str, name: str | None) -> None:
    path = Path(text)
    assert is_id(path) == is_id(text) == (name is not None)
    assert spelled(path) == (name or text)


def test_a_file_of_a_repository(cache: Cache) -> None:
    path = cache.add("owner/name", "deep/model.safetensors")
    found = fetch(Path("hf://owner/name/deep/model.safetensors"))
    assert found.path == path
    assert found.origin is not None
    assert found.origin.id == "hf://owner/name/deep/model.safetensors"
    assert found.origin.revision == COMMIT


def test_a_revision(cache: Cache) -> None:
    cache.add("owner/name", "w.safetensors")
    older = cache.add("owner/name", "w.safetensors", OLDER, value=2)
    for name in (f"hf://owner/name@{OLDER}/w.safetensors", f"hf://owner/name@{OLDER}"):
        found = fetch(Path(name))
        assert found.path == older
        assert found.origin is not None and found.origin.revision == OLDER
    checkpoint = read_checkpoint(Path("hf://owner/name"))
    assert checkpoint.tensors["weight"][0, 0] == 1
    assert checkpoint.path.name == "w.safetensors"
    assert checkpoint.notes == (f"weights of hf://owner/name/w.safetensors, revision {COMMIT}",)
    assert checkpoint.origin == fetch(Path("hf://owner/name")).origin
    assert checkpoint.settings == {}


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["model.safetensors", "pytorch_model.bin", "config.json"], "model.safetensors"),
        (["weights.pth"], "weights.pth"),
        (["sub/weights.pt", "README.md"], "sub/weights.pt"),
    ],
)
def test_the_one_clear_file(cache: Cache, files: list[str], chosen: str) -> None:
    for file in files:
        cache.add("owner/name", file)
    found = fetch(Path("hf://owner/name"))
    assert found.origin is not None and found.origin.id == f"hf://owner/name/{chosen}"
    assert found.path.is_file()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["a.safetensors", "b.safetensors"], "several files of weights: a.safetensors, b."),
        (["a.pth", "b.bin"], "name one: hf://owner/name/a.pth"),
        (["README.md"], "holds no weights"),
    ],
)
def test_no_clear_file(cache: Cache, files: list[str], words: str) -> None:
    for file in files:
        cache.add("owner/name", file)
    with pytest.raises(InputError) as caught:
        fetch(Path("hf://owner/name"))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["hf://owner", "hf://a/b/../../x", "hf://a b/c/d.pth", "hf://a/--b--/x.pth"],
)
def test_what_is_no_id(cache: Cache, name: str) -> None:
    with pytest.raises(InputError, match="is no id of Hugging Face's hub; write hf://"):
        fetch(Path(name))


@pytest.mark.parametrize("name", ["hf://owner/other", "hf://owner/name/other.pth"])
def test_offline_and_not_in_the_cache(cache: Cache, name: str) -> None:
    cache.add("owner/name", "w.safetensors")
    with pytest.raises(CapabilityError) as caught:
        fetch(Path(name))
    assert f"{name} is not in the hub's cache, and the hub cannot be reached" in str(caught.value)


def response(code: int) -> Any:
    return SimpleNamespace(status_code=code, headers={}, request=None)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.RepositoryNotFoundError("x", response=response(404)), "is not on the hub"),
        (errors.GatedRepoError("x", response=response(403)), "is closed to you"),
        (errors.RevisionNotFoundError("x", response=response(404)), "no such file or revision"),
        (errors.RemoteEntryNotFoundError("x", response=response(404)), "no such file or revision"),
    ],
)
@pytest.mark.parametrize("name", ["hf://owner/name/x.pth", "hf://owner/name"])
def test_what_the_hub_refuses(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str, name: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", refuse)
    with pytest.raises(InputError) as caught:
        fetch(Path(name))
    assert f"{name} " in str(caught.value) and words in str(caught.value)
    assert caught.value.fix


def test_a_download_that_fails(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise errors.HfHubHTTPError("503 Server Error\nmore", response=response(503))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(CapabilityError, match=r"cannot be fetched \(503 Server Error\); try again"):
        fetch(Path("hf://owner/name/x.pth"))


def test_weights_are_read_as_any_other_file(cache: Cache) -> None:
    """Nothing of a repository runs: a file that asks for code is refused as one on the disk."""
    import pickle

    path = cache.add("owner/name", "pytorch_model.bin")
    path.write_bytes(pickle.dumps(print))
    with pytest.raises(InputError, match=r"torch.save did not write; it was not run"):
        read_checkpoint(Path("hf://owner/name"))


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CapabilityError, match=r"pip install 'svit-deploy\[hub\]'"):
        fetch(Path("hf://owner/name/x.pth"))
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(CapabilityError, match=r"pip install 'svit-deploy\[timm\]'"):
        fetch(Path("timm:deit_tiny"))


# --- timm's table -------------------------------------------------------------------------------

KNOWN = {
    "architecture": "deit_x", "tag": "fb", "hf_hub_id": "timm/deit_x.fb", "hf_hub_filename": None,
    "custom_load": False, "file": None, "url": "", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5),
    "crop_pct": 0.9, "interpolation": "bicubic",
}  # fmt: skip


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a table of one model in the place of timm's."""

    def put(**changes: Any) -> None:
        known = SimpleNamespace(**KNOWN | changes)

        def get(name: str) -> Any:
            if name.startswith("deit_x."):
                raise RuntimeError("Invalid pretrained tag")
            return known if name == "deit_x" else None

        models = SimpleNamespace(
            get_pretrained_cfg=get, list_models=lambda pretrained: ["deit_x.fb", "other"]
        )
        monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(models=models))
        monkeypatch.setitem(sys.modules, "timm.models", models)

    return put


def test_a_model_of_timm(cache: Cache, table: Callable[..., None]) -> None:
    table()
    path = cache.add("timm/deit_x.fb", "pytorch_model.bin")
    checkpoint = fetch(Path("timm:deit_x"))
    assert checkpoint.path == path
    assert checkpoint.origin is not None
    assert (checkpoint.origin.id, checkpoint.origin.revision) == ("timm:deit_x.fb", COMMIT)
    assert checkpoint.settings == {
        "mean": "0.5,0.5,0.5", "std": "0.5,0.5,0.5", "crop_ratio": "0.9",
        "interpolation": "bicubic",
    }  # fmt: skip
    better = cache.add("timm/deit_x.fb", "model.safetensors")
    assert fetch(Path("timm:deit_x")).path == better


def test_a_model_of_timm_in_a_named_file(cache: Cache, table: Callable[..., None]) -> None:
    table(hf_hub_filename="x.pth", hf_hub_id=f"timm/deit_x.fb@{OLDER}")
    path = cache.add("timm/deit_x.fb", "x.pth", OLDER)
    found = fetch(Path("timm:deit_x"))
    assert found.path == path
    assert found.origin is not None and found.origin.revision == OLDER


def test_a_model_of_timm_that_lies_on_the_disk(tmp_path: Path, table: Callable[..., None]) -> None:
    table(file=str(tmp_path / "x.pth"))
    assert fetch(Path("timm:deit_x")).path == tmp_path / "x.pth"


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        (
            {},
            "timm:deit_y",
            "no pretrained model 'deit_y'; use one such as timm:deit_x.fb",
        ),
        ({}, "timm:deit_x.none", "timm has no pretrained model 'deit_x.none'"),
        ({"custom_load": True}, "timm:deit_x", "has weights in a form of its own"),
        ({"hf_hub_id": None, "url": "https://x/y.pth"}, "timm:deit_x", "at https://x/y.pth"),
    ],
)
def test_models_that_timm_does_not_have(
    cache: Cache, table: Callable[..., None], changes: dict[str, Any], name: str, words: str
) -> None:
    table(**changes)
    with pytest.raises(InputError) as caught:
        fetch(Path(name))
    assert words in str(caught.value)


def test_a_model_of_timm_offline(cache: Cache, table: Callable[..., None]) -> None:
    table()
    with pytest.raises(CapabilityError, match=r"timm:deit_x.fb is not in the hub's cache"):
        fetch(Path("timm:deit_x"))


def test_a_path_is_no_id(tmp_path: Path) -> None:
    assert fetch(tmp_path / "x").path == tmp_path / "x"
    assert fetch(tmp_path / "x").origin is None
    assert HF == "hf://"
