"""Matching weights with an architecture: presets, settings, strict keys, configuration."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svit_deploy.errors import InputError, UsageError
from svit_deploy.io.checkpoint import read_checkpoint
from svit_deploy.loading.arch import find_arch, parse_overrides, recognise, resolve_arch
from svit_deploy.loading.layout import (
    detect_family,
    expected_shapes,
    infer_dims,
    to_canonical,
    to_official,
)
from svit_deploy.loading.load import build_model, load_model
from svit_deploy.loading.presets import PRESETS
from svit_deploy.loading.serialise import config_from_dict, config_to_dict
from svit_deploy.methods.families import FAMILIES
from svit_deploy.model.config import ModelConfig
from svit_deploy.model.keys import Dims
from svit_deploy.tasks import TASKS, Task
from tests.told import checkpoint_of, golden_file

NAMES = ("svit_cls", "svit_cls_224", "svit_cls_empty_gate", "deit", "deit_distilled")
HEADS = {"num_heads": "6"}
CLASSIFY = TASKS["classify"]

SMALL_SVIT = Dims("svit", 8, 4, 32, 2, 9, 5, num_gates=3, gate_dim=2)
SMALL_DEIT = Dims("deit", 8, 4, 32, 2, 9, 5)


def official(dims: Dims, **changes: Any) -> dict[str, np.ndarray]:
    """Random weights of these dimensions in the official layout."""
    rng = np.random.default_rng(0)
    shapes = expected_shapes(replace(dims, **changes), CLASSIFY)
    weights = {name: rng.standard_normal(s, np.float32) for name, s in shapes.items()}
    return to_official(weights, dims.family, CLASSIFY)


def golden(name: str) -> dict[str, np.ndarray]:
    pytest.importorskip("torch")
    return read_checkpoint(checkpoint_of(name)).tensors


# --- goldens -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_golden(name: str) -> None:
    pytest.importorskip("torch")
    facts = json.loads(golden_file(name, "meta.json").read_text())["config"]
    path = checkpoint_of(name)
    model = load_model(path, overrides={"num_heads": str(facts["num_heads"])})
    config = model.config
    assert model.arch == "custom"
    assert model.checkpoint is not None
    assert model.checkpoint.path == path
    for field in ("embed_dim", "depth", "num_heads", "num_classes", "patch_size"):
        assert getattr(config, field) == facts[field]
    assert config.image_size == (facts["img_size"], facts["img_size"])
    assert config.num_tokens == model.weights["pos_embed"].shape[1]
    assert config.mlp_dim == 4 * config.embed_dim
    assert config.distilled == (name == "deit_distilled")
    if name.startswith("svit"):
        assert config.gate_blocks == tuple(location - 1 for location in facts["select_loc"])
        assert config.gate_class_token == (False,) * 8 + (True,)
        assert config.thresholds == (0.0,) * 9
        assert (config.block_eps, config.gate_eps, config.norm_eps) == (1e-5, 1e-5, 1e-6)
    else:
        assert config.num_gates == 0
        assert (config.block_eps, config.gate_eps, config.norm_eps) == (1e-6, 1e-6, 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_golden_keys_survive_the_way_there_and_back(name: str) -> None:
    tensors = golden(name)
    family = detect_family(tensors)
    canonical = to_canonical(tensors, infer_dims(tensors, family, CLASSIFY), CLASSIFY)
    back = to_official(canonical, family.name, CLASSIFY)
    assert set(back) == set(tensors)
    assert all(back[key] is tensors[key] for key in tensors)


def test_notes_say_what_was_taken() -> None:
    pytest.importorskip("torch")
    notes = load_model(checkpoint_of("svit_cls"), overrides=HEADS).notes
    assert notes == (
        "model_ema ignored, weights taken from 'model'",
        "trained as svit_s, its arguments say",
    )


# --- layout ------------------------------------------------------------------------------------


@st.composite
def dims(draw: st.DrawFn) -> Dims:
    small = st.integers(1, 5)
    family = draw(st.sampled_from(["svit", "deit"]))
    depth = draw(small)
    return Dims(
        family=family,
        embed_dim=draw(small),
        depth=depth,
        mlp_dim=draw(small),
        patch_size=draw(small),
        num_patches=draw(small) ** 2,
        num_classes=draw(small),
        distilled=family == "deit" and draw(st.booleans()),
        num_gates=draw(st.integers(1, depth)) if family == "svit" else 0,
        gate_dim=draw(small) if family == "svit" else 0,
    )


@given(dims())
@settings(deadline=None)
def test_dims_and_names_follow_from_official_weights(dims: Dims) -> None:
    tensors = official(dims)
    family = detect_family(tensors)
    assert family.name == dims.family
    assert infer_dims(tensors, family, CLASSIFY) == dims
    canonical, shapes = to_canonical(tensors, dims, CLASSIFY), expected_shapes(dims, CLASSIFY)
    assert {name: array.shape for name, array in canonical.items()} == shapes
    assert to_official(canonical, dims.family, CLASSIFY) == tensors


def test_names_of_the_official_svit() -> None:
    keys = set(official(SMALL_SVIT))
    assert {
        "cls_token",
        "blocks.3.TransformerEncoderLayer.self_attn.in_proj_weight",
        "blocks.0.TransformerEncoderLayer.self_attn.out_proj.bias",
        "blocks.0.TransformerEncoderLayer.linear2.weight",
        "blocks.0.TransformerEncoderLayer.norm1.weight",
        "selective_modules.2.mlp.fc1.weight",
    } <= keys


def test_one_sentence_reports_every_kind_of_fault() -> None:
    tensors = official(SMALL_DEIT)
    for i in range(4):
        del tensors[f"blocks.{i}.norm1.weight"]
    tensors["fc_norm.weight"] = np.zeros(8, np.float32)
    tensors["norm.bias"] = np.zeros(7, np.float32)
    tensors["head.bias"] = np.zeros(5, np.int64)
    with pytest.raises(InputError) as caught:
        build_model(tensors, overrides=HEADS)
    sentence = str(caught.value)
    assert "4 missing (blocks.0.norm1.weight, blocks.1.norm1.weight, " in sentence
    assert "blocks.2.norm1.weight and 1 more)" in sentence
    assert "1 unexpected (fc_norm.weight)" in sentence
    assert "norm.bias is float32[7], not float32[8]" in sentence
    assert "head.bias is int64[5], not float32[5]" in sentence


@pytest.mark.parametrize("extra", ["fc_norm.weight", "selective_modules.7.norm.weight"])
def test_svit_with_another_key_is_refused(extra: str) -> None:
    tensors = official(SMALL_SVIT) | {extra: np.zeros(8, np.float32)}
    with pytest.raises(InputError, match=extra if "fc" in extra else "missing"):
        build_model(tensors, overrides=HEADS)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"conv1.weight": np.zeros(1)}, "no known method .*its 1 keys begin with conv1"),
        ({}, "of no known method"),
        ({"level_embed": np.zeros(1)}, "no known method .*ViT-Adapter, .* begin with level_embed"),
        ({"backbone.x": np.zeros(1), "rpn_head.y": np.zeros(1)}, "begin with x, rpn_head.y"),
        (official(SMALL_DEIT) | {"rpn_head.y": np.zeros(1)}, "of --task detect, on a backbone"),
        ({"blocks.0.TransformerEncoderLayer.norm1.weight": np.zeros(1)}, "but no gates"),
        ({"blocks.0.attn.qkv.weight": np.zeros((3, 1))}, "patch_embed.proj.weight is missing"),
    ],
)
def test_other_models_are_refused(tensors: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(InputError, match=words):
        build_model(tensors)


@given(
    st.sampled_from(sorted(official(SMALL_SVIT))),
    st.one_of(st.none(), st.lists(st.integers(0, 3), max_size=5)),
)
def test_a_missing_or_misshapen_tensor_is_always_named(key: str, shape: list[int] | None) -> None:
    tensors = official(SMALL_SVIT)
    if shape is None:
        del tensors[key]
    elif tensors[key].shape != tuple(shape):
        tensors[key] = np.zeros(shape, np.float32)
    else:
        return
    with pytest.raises(InputError):
        build_model(tensors, overrides={"num_heads": "2"})


# --- presets and architecture files ------------------------------------------------------------


def preset_dims(name: str) -> Any:
    return FAMILIES[PRESETS[name].family].dims_from_arch(PRESETS[name])


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_recognised(name: str) -> None:
    """By the sizes, and by the method where others run on such weights; its settings stay open."""
    dims, arch = preset_dims(name), PRESETS[name]
    assert recognise(dims, arch.family) == name
    assert recognise(replace(dims, num_classes=7), arch.family) == name
    larger = replace(dims, embed_dim=dims.embed_dim + 64, depth=11)
    assert recognise(larger, arch.family) is None
    found, called, notes = resolve_arch(None, {"family": arch.family}, dims)
    own = FAMILIES[arch.family].method.settings
    chosen = {field.name for field in fields(own)} if own else set()
    known = {key: value for key, value in arch.settings.items() if key not in chosen}
    assert (found, called) == (replace(arch, settings=known), name)
    assert notes == (f"recognised as {name} by its dimensions",)
    assert resolve_arch(name, {"num_heads": "2"}, dims)[0] == replace(arch, num_heads=2)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_whole(name: str) -> None:
    """With a preset's name nothing else needs to be told."""
    arch, task = PRESETS[name], task_of(name)
    dims = task.heads_from_arch(preset_dims(name), arch)
    shapes = expected_shapes(dims, task)
    empty = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    model = build_model(to_official(empty, dims.family, task), task=task.name, arch=name)
    assert (model.arch, model.config.family) == (name, arch.family)
    assert model.config.num_heads == arch.num_heads
    assert config_from_dict(config_to_dict(model.config), task) == model.config


def task_of(preset: str) -> Task:
    """The last that its backbone serves: that of the whole model."""
    return TASKS[FAMILIES[PRESETS[preset].family].backbone.tasks[-1]]


def test_svit_s() -> None:
    """The published model, with random weights of its full size."""
    model = build_model(official(preset_dims("svit_s")))
    config = model.config
    assert model.arch == "svit_s"
    assert (config.embed_dim, config.depth, config.num_heads, config.mlp_dim) == (384, 12, 6, 1536)
    assert config.gate_blocks == (3, 4, 5, 6, 7, 8, 9, 10, 11)
    assert config.target_keep == (0.7, 0.7, 0.7, 0.49, 0.49, 0.49, 0.343, 0.343, 0.343)
    assert [config.gated_tokens(gate) for gate in range(9)] == [196] * 8 + [197]
    assert sum(array.size for array in model.weights.values()) == pytest.approx(22.1e6, rel=0.02)


def test_unrecognised_weights_need_their_heads() -> None:
    with pytest.raises(InputError, match=r"do not tell num_heads.*--arch \(deit_tiny, .*--set num"):
        build_model(official(SMALL_DEIT))


def test_settings_by_hand() -> None:
    model = build_model(
        official(SMALL_SVIT),
        overrides={
            "num_heads": "4",
            "gate_blocks": "0,2,3",
            "gate_class_token": "true, FALSE,true",
            "target_keep": "0.7, 0.5, 1",
            "mean": "0.5,0.5,0.5",
            "crop_ratio": "1",
            "interpolation": "bilinear",
            "num_classes": "5",
            "image_size": "8x10",
        },
    )
    config = model.config
    assert config.gate_blocks == (0, 2, 3)
    assert config.gate_class_token == (True, False, True)
    assert config.target_keep == (0.7, 0.5, 1.0)
    assert config.preprocess.mean == (0.5, 0.5, 0.5)
    assert (config.preprocess.crop_ratio, config.preprocess.interpolation) == (1.0, "bilinear")
    assert (config.image_size, config.native_grid, config.grid) == ((8, 10), (3, 3), (4, 5))
    assert model.weights["pos_embed"].shape == (1, 10, 8)
    assert model.notes == ("position embedding resized from 6x6 to 8x10 pixels",)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("heads", "6"),
        ("", "6"),
        ("num_heads", "six"),
        ("num_heads", "0"),
        ("num_heads", "-2"),
        ("num_heads", "6.0"),
        ("num_heads", ""),
        ("gate_blocks", "3,,4"),
        ("gate_blocks", "3-5"),
        ("gate_class_token", "yes"),
        ("gate_class_token", "1"),
        ("target_keep", "0.7;0.5"),
        ("target_keep", "nan"),
        ("mean", "inf,0,0"),
        ("distilled", "maybe"),
        ("family", "vit"),
        ("image_size", "224x"),
        ("image_size", "0"),
        ("image_size", "1x2x3"),
    ],
)
def test_bad_settings(key: str, text: str) -> None:
    with pytest.raises(UsageError, match=f"--set {key}") as caught:
        parse_overrides({key: text})
    assert caught.value.exit_code == 2
    assert "use one of family, num_heads" in str(caught.value) or "give" in caught.value.fix


@given(st.lists(st.integers(0, 99), min_size=1), st.lists(st.floats(0, 1), min_size=1))
def test_lists_survive_their_text(blocks: list[int], ratios: list[float]) -> None:
    values = parse_overrides(
        {"gate_blocks": ",".join(map(str, blocks)), "target_keep": ",".join(map(repr, ratios))}
    )
    assert values == {"gate_blocks": tuple(blocks), "target_keep": tuple(ratios)}


def test_architecture_file(tmp_path: Path) -> None:
    path = tmp_path / "my arch.yaml"
    path.write_text(
        "family: svit\n"
        "num_heads: 2\n"
        "gate_blocks: [1, 2, 3]\n"
        "gate_class_token: [false, false, true]\n"
        "target_keep: 0.7,0.5,0.3\n"
        "image_size: 6\n"
        "std: [1, 1, 1.5]\n"
    )
    model = build_model(official(SMALL_SVIT), arch=str(path), overrides={"target_keep": "0.9"})
    assert model.arch == "my arch.yaml"
    assert model.config.target_keep == (0.9, 0.9, 0.9)
    assert model.config.preprocess.std == (1.0, 1.0, 1.5)
    assert model.notes == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("family: svit\nnum_heads: 6\nheads: 6\n", "heads is unknown; use one of family"),
        ("family: svit\n", "lacks the field num_heads;"),
        ("", "lacks the field family and num_heads"),
        ("- family\n- num_heads\n", "lacks the field"),
        ("family num_heads", "lacks the field"),
        ("3", "lacks the field"),
        ("family: [svit\n", "not readable YAML"),
        ("family: svit\nnum_heads: !!python/object/apply:os.system [x]\n", "not readable YAML"),
        ("family: svit\nnum_heads: true\n", "num_heads=True has a bad value"),
        ("family: svit\nnum_heads: 6.5\n", "num_heads=6.5 has a bad value"),
        ("family: svit\nnum_heads: [6]\n", "has a bad value"),
        ("family: 3\nnum_heads: 6\n", "family=3"),
        (
            "family: vit\nnum_heads: 6\n",
            "family=vit has a bad value; give one of dynamicvit_lvvit, multiscale_lvvit",
        ),
        ("family: svit\nnum_heads: 6\ngate_blocks: {a: 1}\n", "gate_blocks"),
        ("family: svit\nnum_heads: 6\nimage_size: [1, 2, 3]\n", "image_size"),
        ("family: svit\nnum_heads: 6\n3: 4\n", "3 is unknown"),
        ("\x00", "not readable YAML"),
        ("family: svit\nnum_heads: 3\nx: " + "1, " * 50_000, "more than 100000 characters"),
        (f"family: svit\nnum_heads: 0x{'f' * 9000}\n", "num_heads=a huge int has a bad value"),
        (f"family: svit\nnum_heads: 3\n? 0x{'f' * 9000}\n: 1\n", "a huge int is unknown"),
        ('family: svit\nnum_heads: 3\n"\\e[31m": 1\n', "?[31m is unknown"),
    ],
)
def test_bad_architecture_file(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "arch.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        find_arch(str(path))
    assert words in str(caught.value)
    assert "arch.yaml" in str(caught.value)


def test_unknown_architecture() -> None:
    with pytest.raises(UsageError, match=r"'svit_xl' is neither .* use one of svit_s, stvit_"):
        find_arch("svit_xl")
    with pytest.raises(UsageError, match=r"use one of svit_s, .*, deit_tiny, .*, or the path"):
        find_arch("resnet50")


# --- contradictions ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dims", "arch", "overrides", "words"),
    [
        (SMALL_DEIT, "svit_s", {}, "its gates would be random"),
        (SMALL_DEIT, None, {"family": "svit", **HEADS}, "its gates would be random"),
        (SMALL_SVIT, "deit_small", {}, "SViT with 3 gates, and deit_small is of the family deit"),
        (SMALL_SVIT, "evit_s", {}, "is an SViT with 3 gates, and evit_s is of the family evit"),
        (preset_dims("swin_t"), "svit_s", {}, "is a Swin, and svit_s is of the family svit; use"),
        (preset_dims("lvvit_t"), "svit_s", {}, "is an LV-ViT, and svit_s"),
        (preset_dims("evovit_t"), "svit_s", {}, "is an Evo-ViT, and svit_s"),
        (SMALL_DEIT, "deit_tiny", {}, r"embed_dim 192 \(the checkpoint has 8\), depth 12"),
        (preset_dims("deit_tiny"), "deit_small", {}, r"has 192\); use --arch deit_tiny"),
        (preset_dims("deit_tiny"), "svit_s", {}, "use --arch deit_tiny"),
        (preset_dims("deit_tiny"), "deit_tiny_distilled", {}, r"distilled True \(the checkpoint"),
        (preset_dims("deit_tiny"), None, {"num_classes": "10"}, "num_classes 10 .* has 1000"),
        (SMALL_SVIT, None, {"num_heads": "3"}, "8 is not divisible by num_heads 3"),
        (SMALL_SVIT, "svit_s", {}, "embed_dim 384"),
        (SMALL_SVIT, None, {"gate_blocks": "1,2"}, "has 2 values, the checkpoint has 3 gates"),
        (SMALL_SVIT, None, {"gate_blocks": "1,3,2"}, "not ascending"),
        (SMALL_SVIT, None, {"gate_blocks": "1,2,2"}, "not ascending"),
        (SMALL_SVIT, None, {"gate_blocks": "1,2,4"}, "below 4"),
        (SMALL_SVIT, None, {"gate_blocks": "-1,2,3"}, "below 4"),
        (SMALL_DEIT, None, {"gate_blocks": "1"}, "gate_blocks is no setting of deit"),
        (replace(SMALL_SVIT, num_gates=5), None, {}, "5 gates for 4 blocks"),
        (SMALL_SVIT, None, {"mean": "1,2"}, "mean has 2 values"),
        (SMALL_SVIT, None, {"std": "1,0,1"}, "not positive"),
        (SMALL_SVIT, None, {"crop_ratio": "1.5"}, "crop_ratio"),
        (SMALL_SVIT, None, {"interpolation": "cubic"}, "interpolation 'cubic'"),
        (
            SMALL_SVIT,
            None,
            {"image_size": "7"},
            "7x7 is not a multiple of the patch size 2; .* 8x8",
        ),
        (SMALL_SVIT, None, {"image_size": "1"}, "not a multiple"),
        (replace(SMALL_DEIT, num_patches=10), None, {}, "10 patches, which is no square grid"),
        (replace(SMALL_DEIT, num_patches=0), None, {}, "no square grid"),
    ],
)
def test_contradictions(
    dims: Dims, arch: str | None, overrides: dict[str, str], words: str
) -> None:
    given = overrides if arch or recognise(dims) else {"num_heads": "2", **overrides}
    with pytest.raises(InputError, match=words):
        build_model(official(dims), arch=arch, overrides=given)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"target_keep": "0.7,0.5"}, "target_keep has 2 values for a model with 3 gates"),
        ({"gate_class_token": "true,false"}, "gate_class_token has 2 values"),
        ({"target_keep": "0"}, "keep ratio of 0"),
        ({"target_keep": "0.5,0.5,1.01"}, "keep ratio of 1.01"),
        ({"target_keep": "-0.5"}, "keep ratio of -0.5"),
    ],
)
def test_bad_values_per_gate(overrides: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build_model(official(SMALL_SVIT), overrides={"num_heads": "2", **overrides})


def test_stage_values_spread_over_gates() -> None:
    model = build_model(official(preset_dims("svit_s")), overrides={"target_keep": "0.9,0.6,0.3"})
    assert model.config.target_keep == (0.9,) * 3 + (0.6,) * 3 + (0.3,) * 3


# --- image sizes -------------------------------------------------------------------------------


def test_weights_of_another_image_size_win_over_the_preset() -> None:
    dims = replace(preset_dims("deit_tiny"), num_patches=24 * 24)
    model = build_model(official(dims), arch="deit_tiny")
    assert model.config.image_size == (384, 384)
    assert model.notes == ("image size 384x384 taken from the weights",)
    model = build_model(official(dims), arch="deit_tiny", image_size=(224, 320))
    assert (model.config.image_size, model.config.native_grid) == ((224, 320), (24, 24))
    assert model.config.num_tokens == 14 * 20 + 1
    assert model.notes == ("position embedding resized from 384x384 to 224x320 pixels",)


def test_grid_that_is_not_square() -> None:
    tensors = official(SMALL_DEIT, num_patches=12)
    for options in (
        {"image_size": (6, 8), "overrides": {"num_heads": "2"}},
        {"overrides": {"num_heads": "2", "image_size": "6x8"}},
    ):
        config = build_model(tensors, **options).config  # type: ignore[arg-type]
        assert (config.native_grid, config.image_size) == ((3, 4), (6, 8))
    square = official(SMALL_DEIT, num_patches=36)
    config = build_model(square, overrides={"num_heads": "2", "image_size": "18x8"}).config
    assert config.native_grid == (9, 4)
    config = build_model(square, overrides={"num_heads": "2"}, image_size=(18, 8)).config
    assert config.native_grid == (6, 6)


# --- configuration as JSON ---------------------------------------------------------------------


def example() -> ModelConfig:
    overrides = {"num_heads": "2", "target_keep": "0.7,0.5,1"}
    return build_model(official(SMALL_SVIT), overrides=overrides).config


def test_config_survives_json() -> None:
    for config in (example(), build_model(official(preset_dims("deit_tiny_distilled"))).config):
        content = json.loads(json.dumps(config_to_dict(config)))
        assert config_from_dict(content, CLASSIFY) == config
        assert content == config_to_dict(config)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depth": None}, "depth of the model configuration is None"),
        ({"depth": "4"}, "depth"),
        ({"depth": True}, "depth"),
        ({"depth": 4.0}, "depth"),
        ({"depth": 0}, "depth is 0"),
        ({"num_heads": 3}, "not divisible"),
        ({"family": "vit"}, "family 'vit' is unknown"),
        ({"family": "deit"}, "a deit has no gates"),
        ({"gate_blocks": []}, "has 3 values for 0 gates"),
        ({"gate_blocks": [1, 2]}, "has 3 values for 2 gates"),
        ({"gate_blocks": [3, 2, 1]}, "not ascending"),
        ({"gate_blocks": "123"}, "gate_blocks"),
        ({"gate_class_token": [0, 0, 1]}, "gate_class_token"),
        ({"thresholds": [0.0]}, "thresholds has 1 values"),
        ({"thresholds": [None] * 3}, "thresholds"),
        ({"target_keep": [0.5]}, "target_keep has 1 values"),
        ({"image_size": [6]}, "image_size"),
        ({"image_size": [6, 7]}, "not a multiple"),
        ({"image_size": [0, 0]}, "not a multiple"),
        ({"native_grid": [3, 0]}, "is empty"),
        ({"preprocess": {}}, "preprocess lacks or adds"),
        ({"preprocess": [1]}, "preprocess lacks or adds"),
        ({"extra": 1}, "lacks or adds extra"),
    ],
)
def test_malformed_configuration(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        config_from_dict({**config_to_dict(example()), **changes}, CLASSIFY)


def test_svit_may_run_without_its_gates() -> None:
    """The dense baseline of an SViT keeps its own LayerNorm eps."""
    none: dict[str, Any] = dict.fromkeys(
        ("gate_blocks", "gate_class_token", "target_keep", "thresholds"), ()
    )
    dense = replace(example(), **none)
    assert config_from_dict(config_to_dict(dense), CLASSIFY) == dense
    assert dense.block_eps == 1e-5


def test_configuration_that_is_no_dictionary() -> None:
    for content in ({}, [], None, "text"):
        with pytest.raises(InputError, match="lacks or adds"):
            config_from_dict(content, CLASSIFY)  # type: ignore[arg-type]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@given(st.sampled_from(sorted(config_to_dict(example()))), json_values)
def test_any_json_value_is_read_or_refused(field: str, value: Any) -> None:
    content = {**config_to_dict(example()), field: value}
    try:
        config = config_from_dict(content, CLASSIFY)
    except (InputError, UsageError):
        return
    assert config_from_dict(config_to_dict(config), CLASSIFY) == config or value != value
