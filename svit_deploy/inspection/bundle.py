"""What a bundle's manifest says; `open_bundle` compares every file with its hash."""

from __future__ import annotations

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
    low, size, high = (
        "x".join(map(str, size)) for size in (bundle.sizes.min, bundle.sizes.opt, bundle.sizes.max)
    )
    if not bundle.sizes.fixed:
        size = f"{low} to {high}, mostly {size}"
    videos: tuple[tuple[str, str], ...] = ()
    if config.frames:
        told = {name: typed(getattr(config.task, name)) for name in bundle.task.settings}
        videos = (("", f"{config.frames} frames of a clip; {in_words(told)}"),)
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
            f"{config.num_patches} patches of {config.token_size}x{config.token_size} "
            f"+ {config.prefix_tokens}",
        ),
        ("token mode", tokens["mode"]),
        ("outputs", outputs),
        ("batch", f"{batch['min']} to {batch['max']}, mostly {batch['opt']}"),
        ("precision", f"{manifest['precision']}, opset {manifest['opset']}"),
        (
            "preprocessing",
            f"RGB {size} (h x w), {preprocess.interpolation}, crop ratio {preprocess.crop_ratio:g}",
        ),
        ("", f"mean {listed(preprocess.mean)}; std {listed(preprocess.std)}"),
        *videos,
        ("reference", f"{reference['images']} images, {reference['source']}"),
        ("assumed", in_words(bundle.assumed) or "-"),
    )


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
