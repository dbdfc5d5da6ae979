"""The systems that faults are put into: checkpoints of the tests, and how each is exported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from svit_deploy import api
from svit_deploy.bundle import Bundle
from svit_deploy.images import synthetic_images

ROOT = Path(__file__).parents[2]
GOLDEN, DIGITS = ROOT / "tests" / "data" / "golden", ROOT / "examples" / "digits"
ALL, NO_BFLOAT16 = ("fp32", "fp16", "bf16"), ("fp32", "fp16")
SIZES = "64x64:96x128:128x128"


@dataclass(frozen=True)
class Case:
    """A model and how it is exported.

    Attributes:
        name: the golden's, then the token mode.
        checkpoint: a file, or the name of a preset whose weights `init` draws.
        told: what the weights do not tell, as after `--set`, for the export and for `verify`.
        options: of the export.
        drawn: how many faults are drawn at random in each precision.
    """

    name: str
    checkpoint: Path | str
    told: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    precisions: tuple[str, ...] = ALL
    drawn: int = 0

    @property
    def arch(self) -> str | None:
        """What `--arch` gives, where the weights are no golden's."""
        if isinstance(self.checkpoint, str):
            return self.checkpoint
        return str(DIGITS / "arch.yaml") if self.checkpoint.parent == DIGITS else None

    def weights(self, folder: Path) -> Path:
        """The checkpoint's file; random weights are written to `folder` first."""
        if isinstance(self.checkpoint, Path):
            return self.checkpoint
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


def _golden(name: str, mode: str, drawn: int, heads: int | None = 6, **told: str) -> Case:
    if heads is not None:
        told["num_heads"] = str(heads)
    options = {"tokens": mode} | ({"budget": "0.6"} if mode == "budget" else {})
    return Case(f"{name}/{mode}", GOLDEN / name / "checkpoint.pth", told, options, drawn=drawn)


def _detection(name: str, mode: str, drawn: int, task: str = "backbone") -> Case:
    case = _golden(name, mode, drawn)
    options = {**case.options, "task": task, "image_size": SIZES}
    precisions = NO_BFLOAT16 if task == "detect" else ALL
    return Case(case.name, case.checkpoint, case.told, options, precisions, drawn)


def _digits() -> Case:
    options = {"tokens": "dynamic", "calibration": DIGITS / "heldout.npz"}
    return Case("digits/dynamic", DIGITS / "svit_digits.pth", {}, options, drawn=6)


def _hidden() -> Case:
    case = _golden("svit_cls", "dynamic", 0)
    return Case(
        "svit_cls/hidden", case.checkpoint, case.told, {**case.options, "gate_outputs": False}
    )


_EVIT = {"family": "evit", "keep_rate": "0.7"}
CASES: dict[str, Case] = {
    case.name: case
    for case in (
        _golden("svit_cls", "dynamic", 8),
        _golden("svit_cls", "budget", 6),
        _golden("svit_cls", "masked", 3),
        _golden("svit_cls", "dense", 3),
        _hidden(),
        _golden("svit_cls_224", "dynamic", 2),
        _golden("svit_cls_empty_gate", "budget", 2),
        _digits(),
        _golden("deit", "dense", 8),
        _golden("deit_distilled", "dense", 6),
        _golden("lvvit", "dense", 6, heads=4, skip_lam="2"),
        _golden("dynamicvit", "static", 8),
        _golden("dynamicvit_lvvit", "static", 4, skip_lam="2"),
        _golden("evit_fuse", "static", 6, **_EVIT, fuse="true"),
        _golden("evit_nofuse", "static", 6, fuse="false"),
        _golden("evovit", "static", 8),
        _golden("ats", "dynamic", 6, family="ats"),
        _golden("ats", "masked", 2, family="ats"),
        _golden("tome", "static", 6, family="tome", r="13"),
        _golden("stvitr", "static", 5, heads=None),
        _detection("svit_adapter", "dynamic", 5),
        _detection("svit_adapter", "budget", 3),
        _detection("vit_adapter_dense", "dense", 4),
        _detection("evovit_adapter", "static", 4),
        _detection("svit_mask_rcnn", "dynamic", 6, task="detect"),
    )
}
"""By name."""


def _preset(name: str, **options: Any) -> Case:
    options.setdefault("calibration", synthetic_images(4, (224, 224)))
    return Case(f"init/{name}", name, {}, options)


CONTROLS: dict[str, Case] = CASES | {
    case.name: case
    for case in (
        _preset("deit_tiny"),
        _preset("svit_s"),
        _preset("evovit_t"),
        _preset("tome_t"),
        _preset("mergence_t"),
        _preset("stvit_t"),
        _preset("swin_t"),
        _preset("svit_adapter_t", task="backbone", image_size=SIZES, calibration=None),
    )
}
"""Those whose unbroken bundles must pass: the same, and published sizes with random weights."""
