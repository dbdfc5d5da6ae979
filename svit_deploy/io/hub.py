"""Weights by the id of a hub: `hf://owner/name/file` and `timm:name`.

A file is fetched into the hub's own cache, or found there, and is then read as any other: no code
of a repository is run, and none of timm's readers unpickles it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from svit_deploy.errors import CapabilityError, InputError
from svit_deploy.io.text import some
from svit_deploy.machine.packages import require

T = TypeVar("T")
log = logging.getLogger(__name__)

HF, TIMM = "hf://", "timm:"
# A path keeps one of the two slashes.
_HF_ID = re.compile(r"hf:/{1,2}([\w.-]+)/([\w.-]+)(?:@([\w.-]+))?(?:/(.+))?")
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_TIMM_FILES = ("model.safetensors", "pytorch_model.bin")
_HOW = "write hf://OWNER/NAME/FILE or hf://OWNER/NAME, with @REVISION behind NAME if need be"


@dataclass(frozen=True)
class Origin:
    """Where a file came from that was not on the disk.

    Attributes:
        id: with all that was left out.
        revision: the commit that the id stood for.
    """

    id: str
    revision: str


@dataclass(frozen=True)
class Fetched:
    """A file on the disk.

    Attributes:
        origin: None if it was there.
        settings: what its origin tells of the preprocessing, as typed after `--set`.
    """

    path: Path
    origin: Origin | None = None
    settings: dict[str, str] = field(default_factory=dict)


def is_id(path: Path | str) -> bool:
    """Whether it is an id of a hub and no path."""
    return str(path).startswith((HF[:-1], HF[:-2] + "\\", TIMM))


def spelled(path: Path) -> str:
    """A path, or an id with both of its slashes."""
    text = path.as_posix() if is_id(path) else str(path)
    return re.sub(r"^hf:/+", HF, text)


def fetch(path: Path) -> Fetched:
    """Finds the file that a path or an id stands for.

    Raises:
        InputError: no such id, or several files in it.
        CapabilityError: a package is missing, or the hub cannot be reached.
    """
    if not is_id(path):
        return Fetched(path)
    name = spelled(path)
    if name.startswith(TIMM):
        return _from_timm(name)
    found = _HF_ID.fullmatch(name)
    if not found or ".." in (found[4] or "").split("/"):
        raise InputError(f"{name} is no id of Hugging Face's hub", _HOW)
    _require_hub(name)
    owner, repository, revision, file = found.groups()
    return _from_hub(f"{owner}/{repository}", revision, file or None, name)


def _require_hub(name: str) -> None:
    require("huggingface_hub", name, "the download", extra="hub")


def _from_hub(repository: str, revision: str | None, file: str | None, name: str) -> Fetched:
    from huggingface_hub import hf_hub_download

    chosen = file or _only_file(repository, revision, name)
    found = _asked(name, lambda: Path(hf_hub_download(repository, chosen, revision=revision)))
    commit = found.parts[len(found.parts) - len(Path(chosen).parts) - 1]
    return Fetched(found, Origin(f"{HF}{repository}/{chosen}", commit))


def _only_file(repository: str, revision: str | None, name: str) -> str:
    """The one file of weights in a repository; .safetensors before any other.

    Raises:
        InputError: there is none, or there are several.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    def listed() -> Iterable[str]:
        return HfApi().list_repo_files(repository, revision=revision)

    try:
        with _quietly():
            files = list(listed())
    except HfHubHTTPError:
        files = list(_asked(name, listed))  # told in words
    except Exception as error:  # not reached: what each of the hub's clients makes of it
        log.debug("%s is not listed: %s", name, error)
        files = _cached_files(repository, revision)
        if not files:
            raise _unreached(name) from None
    for suffixes in (_SUFFIXES[:1], _SUFFIXES):
        weights = sorted(f for f in files if f.endswith(suffixes))
        if len(weights) == 1:
            return weights[0]
        if weights:
            raise InputError(
                f"{name} holds several files of weights: {some(weights)}",
                f"name one: hf://{repository}/{weights[0]}",
            )
    raise InputError(f"{name} holds no weights", f"give one with {', '.join(_SUFFIXES)}")


def _cached_files(repository: str, revision: str | None) -> list[str]:
    """Those in the hub's cache."""
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return []
    wanted = revision or "main"
    return [
        file.file_path.relative_to(known.snapshot_path).as_posix()
        for one in repositories
        if (one.repo_id, one.repo_type) == (repository, "model")
        for known in one.revisions
        if wanted in known.refs or wanted == known.commit_hash
        for file in known.files
    ]


def _from_timm(name: str) -> Fetched:
    """By the repository that timm's own table names; only its weights are taken."""
    require("timm", name, "the table of its models", extra="timm")
    from timm.models import get_pretrained_cfg, list_models

    wanted = name.removeprefix(TIMM)
    try:
        known = get_pretrained_cfg(wanted)
    except RuntimeError:  # a model without this tag
        known = None
    if known is None:
        near = get_close_matches(wanted, list_models(pretrained=True), 1)
        like = f"use one such as {TIMM}{near[0]}" if near else "use another"
        raise InputError(
            f"timm has no pretrained model {wanted!r:.80}",
            f"{like}; timm.list_models(pretrained=True) lists them",
        )
    full = f"{TIMM}{known.architecture}" + (f".{known.tag}" if known.tag else "")
    hub = known.hf_hub_id or ""
    if known.custom_load or not (hub or known.file):
        where = f", at {known.url}" if known.url else ""
        raise InputError(
            f"{full} has weights in a form of its own, or not on Hugging Face's hub{where}",
            "download them, and give the file",
        )
    settings = _settings(known)
    if known.file:
        return Fetched(Path(known.file), Origin(full, Path(known.file).name), settings)
    _require_hub(name)
    names = (known.hf_hub_filename,) if known.hf_hub_filename else _TIMM_FILES
    repository, _, revision = hub.partition("@")
    found = _first(repository, revision or None, names, full)
    assert found.origin is not None
    return Fetched(found.path, Origin(full, found.origin.revision), settings)


def _first(repository: str, revision: str | None, names: Iterable[str], name: str) -> Fetched:
    """The first of some files that is there."""
    failures: list[InputError | CapabilityError] = []
    for file in names:
        try:
            return _from_hub(repository, revision, file, name)
        except (InputError, CapabilityError) as error:
            failures.append(error)
    raise failures[0]


def _settings(known: Any) -> dict[str, str]:
    """How timm prepares pictures for a model."""
    return {
        "mean": ",".join(map(str, known.mean)),
        "std": ",".join(map(str, known.std)),
        "crop_ratio": str(known.crop_pct),
        "interpolation": known.interpolation,
    }


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the hub's warnings of every attempt: what comes of them is told in one sentence."""
    from huggingface_hub.utils import logging as hub_logging

    level = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        hub_logging.set_verbosity(level)


def _asked(name: str, ask: Callable[[], T]) -> T:
    """What the hub answers; its refusals in words."""
    from huggingface_hub import errors

    log_in = "check the id; for a closed one log in with `hf auth login`"
    try:
        with _quietly():
            return ask()
    except errors.LocalEntryNotFoundError:
        raise _unreached(name) from None
    except errors.GatedRepoError:
        raise InputError(f"{name} is closed to you on the hub", log_in) from None
    except errors.RepositoryNotFoundError:
        raise InputError(f"{name} is not on the hub", log_in) from None
    except (errors.EntryNotFoundError, errors.RevisionNotFoundError):
        raise InputError(f"{name} has no such file or revision on the hub", _HOW) from None
    except errors.HFValidationError:
        raise InputError(f"{name} is no id of Hugging Face's hub", _HOW) from None
    except (OSError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise CapabilityError(
            f"{name} cannot be fetched ({reason})", "try again, or download it and give the file"
        ) from None


def _unreached(name: str) -> CapabilityError:
    return CapabilityError(
        f"{name} is not in the hub's cache, and the hub cannot be reached",
        "run the command where it can, copy the cache (HF_HOME), or give a file",
    )
