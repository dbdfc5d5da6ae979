"""What a bundle's manifest says; `open_bundle` compares every file with its hash."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

from svit_deploy.bundle import Bundle, open_bundle
from svit_deploy.inspection.report import Inspection, Section, listed, mebibytes, number
from svit_deploy.model.assumption import in_words, typed

_FACTS = (
    "tool", "checkpoint", "arch", "model", "tokens", "gates", "batch", "precision", "opset",
    "reference", "files",
)  # fmt: skip


def inspect_bundle(path: Path) -> Inspection:
    """Describes a bundle.

    Raises:
        InputError: see `open_bundle`.
    """
    bundle = open_bundle(path)
    manifest = bundle.manifest
    facts = {name: manifest[name] for name in _FACTS} | {"assumed": bundle.assumed}
    facts |= {name: manifest.get(name) for name in ("origin", "class_names")}
    sections = [Section(_overview(bundle))]
    if manifest["gates"]:
        sections.append(_gates(manifest["gates"]))
    files = sorted(manifest["files"].items())
    rows = tuple((name, mebibytes(f["size_bytes"]), f["sha256"][:16]) for name, f in files)
    sections.append(Section(rows, ("file", "size", "sha256, checked")))
    return Inspection("bundle", bundle.name, facts, tuple(sections), tuple(manifest["notes"]))


def _overview(bundle: Bundle) -> tuple[tuple[str, str], ...]:
    manifest, config = bundle.manifest, bundle.config
    tokens, batch, reference = (manifest[key] for key in ("tokens", "batch", "reference"))
    preprocess, checkpoint = config.preprocess, manifest["checkpoint"]
    origin = manifest.get("origin")
    outputs = bundle.task.noun + (" and gate outputs" if bundle.has_gate_outputs else " only")
    source = f"{checkpoint['name']} ({checkpoint['container']})" if checkpoint else "-"
    sizes = (bundle.sizes.min, bundle.sizes.opt, bundle.sizes.max)
    low, size, high = (_sides(bundle.sizes.shape(size)[1:]) for size in sizes)
    if not bundle.sizes.fixed:
        size = f"{low} to {high}, mostly {size}"
    axes, videos = "h x w", ""
    if config.frames:
        told = {name: typed(getattr(config.task, name)) for name in bundle.task.settings}
        axes, videos = "frames x h x w", f"{config.frames} frames of a clip; {in_words(told)}"
    counts, sides = bundle.family.backbone.patches(config)
    return (
        ("made by", f"{manifest['tool']['name']} {manifest['tool']['version']}"),
        ("checkpoint", source),
        ("its sha256", checkpoint["sha256"] if checkpoint else "-"),
        *((("its origin", f"{origin['id']}, revision {origin['revision']}"),) if origin else ()),
        ("architecture", f"{manifest['arch']} ({config.family})"),
        (
            "model",
            f"{config.depth} blocks, {config.embed_dim} channels, {config.num_heads} heads, "
            f"{config.num_classes} classes{', named' if len(bundle.class_names) else ''}",
        ),
        (
            "tokens",
            f"{prod(counts)} patches of {_sides(sides)} in {_sides(counts)} ({axes}) "
            f"+ {config.prefix_tokens}",
        ),
        ("token mode", tokens["mode"]),
        ("outputs", outputs),
        ("batch", f"{batch['min']} to {batch['max']}, mostly {batch['opt']}"),
        ("precision", f"{manifest['precision']}, opset {manifest['opset']}"),
        (
            "preprocessing",
            f"RGB {size} ({axes}), {preprocess.interpolation}, "
            f"crop ratio {preprocess.crop_ratio:g}",
        ),
        ("", f"mean {listed(preprocess.mean)}; std {listed(preprocess.std)}"),
        *((("", videos),) if videos else ()),
        ("reference", f"{reference['images']} images, {reference['source']}"),
        ("assumed", in_words(bundle.assumed) or "-"),
    )


def _sides(sides: Sequence[int]) -> str:
    """`224x224`, of a clip `32x224x224`."""
    return "x".join(map(str, sides))


def _gates(gates: list[dict[str, Any]]) -> Section:
    rows = (
        (
            str(gate["gate"]),
            str(gate["block"]),
            "may be pruned" if gate["sees_class_token"] else "always kept",
            str(gate["gated_tokens"]),
            number(gate["target_keep"]),
            number(gate["measured_keep"]),
            number(gate["threshold"]),
            "-" if gate["budget"] is None else str(gate["budget"]),
        )
        for gate in gates
    )
    headings = ("gate", "block", "class token", "gated", "target", "kept", "threshold", "budget")
    return Section(tuple(rows), headings)
