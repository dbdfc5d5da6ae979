"""The systems that faults are put into: checkpoints of the tests, and how each is exported."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from svit_deploy import api
from svit_deploy.bundle import Bundle
from svit_deploy.images import synthetic_images

ROOT = Path(__file__).parents[2]
GOLDEN, DIGITS = ROOT / "tests" / "data" / "golden", ROOT / "examples" / "digits"
_TOLD = runpy.run_path(str(ROOT / "tests" / "told.py"))
TOLD: Mapping[str, Mapping[str, str]] = _TOLD["SETTINGS"]
"""What the weights of each golden do not tell."""
CHECKPOINT_OF: Callable[[str], Path] = _TOLD["checkpoint_of"]
ALL, NO_BFLOAT16 = ("fp32", "fp16", "bf16"), ("fp32", "fp16")
SIZES = "64x64:96x128:128x128"


@dataclass(frozen=True)
class Case:
    """A model and how it is exported.

    Attributes:
        name: the golden's and the token mode, or `init` and a preset.
        checkpoint: a file, the folder of a golden, or the name of a preset whose weights `init`
            draws.
        told: what the weights do not tell, as after `--set`, for the export and for `verify`.
        options: of the export.
        precisions: that it may be exported in.
    """

    name: str
    checkpoint: Path | str
    told: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    precisions: tuple[str, ...] = ALL

    @property
    def arch(self) -> str | None:
        """What `--arch` gives, where the weights are no golden's."""
        if isinstance(self.checkpoint, str):
            return self.checkpoint
        return str(DIGITS / "arch.yaml") if self.checkpoint.parent == DIGITS else None

    def weights(self, folder: Path) -> Path:
        """The checkpoint's file; random weights are written to `folder` first."""
        if isinstance(self.checkpoint, Path):
            golden = self.checkpoint.parent == GOLDEN
            return CHECKPOINT_OF(self.checkpoint.name) if golden else self.checkpoint
        path = folder / f"{self.checkpoint}.safetensors"
        if not path.exists():
            api.init(self.checkpoint, path)
        return path

    def export(self, folder: Path, precision: str) -> Bundle:
        return api.export(
            self.weights(folder),
            folder / f"{self.name.replace('/', '-')}-{precision}",
            arch=self.arch,
            overrides=dict(self.told),
            precision=precision,
            **self.options,
        )


def _golden(name: str, mode: str) -> Case:
    options = {"tokens": mode} | ({"budget": "0.6"} if mode == "budget" else {})
    return Case(f"{name}/{mode}", GOLDEN / name, TOLD[name], options)


def _detection(name: str, mode: str, task: str = "backbone") -> Case:
    case = _golden(name, mode)
    options = {**case.options, "task": task, "image_size": SIZES}
    precisions = ALL if task == "backbone" else NO_BFLOAT16
    return Case(case.name, case.checkpoint, case.told, options, precisions)


def _video(name: str) -> Case:
    case = _golden(name, "dense")
    return Case(case.name, case.checkpoint, case.told, {**case.options, "task": "video"})


def _digits() -> Case:
    options = {"tokens": "dynamic", "calibration": DIGITS / "heldout.npz"}
    return Case("digits/dynamic", DIGITS / "svit_digits.pth", {}, options)


def _hidden() -> Case:
    case = _golden("svit_cls", "dynamic")
    return Case(
        "svit_cls/hidden", case.checkpoint, case.told, {**case.options, "gate_outputs": False}
    )


def _preset(name: str) -> Case:
    """A published size with random weights, of a method that no golden has."""
    return Case(f"init/{name}", name, {}, {"calibration": synthetic_images(4, (224, 224))})


CASES: dict[str, Case] = {
    case.name: case
    for case in (
        _golden("svit_cls", "dynamic"),
        _golden("svit_cls", "budget"),
        _golden("svit_cls", "masked"),
        _golden("svit_cls", "dense"),
        _hidden(),
        _golden("svit_cls_224", "dynamic"),
        _golden("svit_cls_empty_gate", "budget"),
        _digits(),
        _golden("deit", "dense"),
        _golden("deit_distilled", "dense"),
        _golden("lvvit", "dense"),
        _golden("dynamicvit", "static"),
        _golden("dynamicvit_lvvit", "static"),
        _golden("dynamicvit_swin", "static"),
        _golden("dynamicvit_convnext", "static"),
        _golden("evit_fuse", "static"),
        _golden("evit_nofuse", "static"),
        _golden("evovit", "static"),
        _golden("ats", "dynamic"),
        _golden("ats", "masked"),
        _golden("avit", "dynamic"),
        _golden("tome", "static"),
        _golden("stvitr", "static"),
        _detection("svit_adapter", "dynamic"),
        _detection("svit_adapter", "budget"),
        _detection("vit_adapter_dense", "dense"),
        _detection("evovit_adapter", "static"),
        _detection("vit_window_adapter", "dense"),
        _detection("svit_mask_rcnn", "dynamic", task="detect"),
        _detection("evovit_mask_rcnn", "static", task="detect"),
        _detection("swin_cascade", "dense", task="cascade"),
        _detection("stvitr_cascade", "static", task="cascade"),
        _video("video_swin"),
        *map(_preset, ("mergence_t", "stvit_t", "swin_t", "stvit_swin_t", "stvit_lvvit_t")),
    )
}
"""By name."""


def precision_of(case: str, seed: int) -> str:
    """Precisions take turns, and with another seed a case has its next one."""
    precisions = CASES[case].precisions
    return precisions[(list(CASES).index(case) + seed) % len(precisions)]
