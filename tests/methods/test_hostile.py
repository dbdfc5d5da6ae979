"""What a loader of another method's checkpoint may be given: one sentence, and its fix."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import fields, replace

import numpy as np
import pytest

from svit_deploy.errors import InputError, SvitDeployError, UsageError
from svit_deploy.export.pipeline import export_model
from svit_deploy.export.settings import ExportSettings
from svit_deploy.io.checkpoint import read_checkpoint
from svit_deploy.loading.load import build_model
from svit_deploy.loading.serialise import config_from_dict, config_to_dict
from svit_deploy.methods.families import FAMILIES, family_of
from svit_deploy.model.arch import Arch
from svit_deploy.model.config import TokenMode
from svit_deploy.tasks import TASKS
from tests.methods.conftest import random_tensors, stvitr_tensors

torch = pytest.importorskip("torch")

CLASSIFY = TASKS["classify"]


def tensors(family, **changes):
    """Official weights of a small model of the method."""
    settings = {
        "swin": {"depths": (1, 1, 1, 1)},
        "stvitr": {"depths": (1, 1, 6, 1)},
        "stvit_swin": {"depths": (1, 1, 5, 1), "semantic": 36, "generate_at": 3},
        "convnext": {"depths": (1, 1, 1, 1)},
        "dynamicvit_swin": {"depths": (1, 1, 4, 1)},
        "dynamicvit_convnext": {"depths": (1, 1, 4, 1)},
    }
    size, patch = (224, 4) if family in settings else (56, 4)
    arch = Arch(
        family,
        3,
        24,
        12,
        patch,
        (size, size),
        num_classes=5,
        settings=settings.get(family, {"semantic": 16}),
    )
    return random_tensors(arch, seed=0, **changes)


CASES = {
    "no ratio": ("dynamicvit", {}, "nor the training's arguments tell base_rate of this Dynam"),
    "no rates": ("evit", {}, "tell keep_rate and fuse of this EViT; give --set keep_rate=VALUE"),
    "no schedule": ("tome", {}, "tell r of this ToMe"),
    "no halting": ("avit", {}, "tell gate_scale and gate_center of this A-ViT"),
    "a scale of 0": ("avit", {"gate_scale": "0", "gate_center": "3"}, "gate_scale is 0; give"),
    "ratio above 1": ("dynamicvit", {"base_rate": "1.5"}, "base_rate has a keep ratio of 1.5"),
    "ratio of 0": ("evit", {"keep_rate": "0", "fuse": "true"}, "keep_rate has a keep ratio of 0"),
    "ratios for two of three": (
        "dynamicvit",
        {"base_rate": "0.7,0.49"},
        "base_rate has 2 values for 3 stages; give .* 3 values, or one number for its powers",
    ),
    "ratios for four of three": (
        "dynamicvit_lvvit",
        {"base_rate": "0.8,0.6,0.36,0.216", "skip_lam": "2"},
        "base_rate has 4 values for 3 stages",
    ),
    "no ratios": ("dynamicvit", {"base_rate": ""}, "base_rate= has a bad value; give a number, or"),
    "ratios that rise": ("dynamicvit", {"base_rate": "0.5,0.7,0.3"}, "base_rate 0.5,0.7,0.3 rises"),
    "a ratio of none": (
        "dynamicvit",
        {"base_rate": "0.1"},
        "of 196 patches, base_rate 0.1 keeps none at stage 2; give larger",
    ),
    "stages": (
        "dynamicvit",
        {"base_rate": "0.7", "prune_blocks": "3,6"},
        "prune_blocks has 2 values, the checkpoint has 3 predictors",
    ),
    "places": ("evit", {"keep_rate": "0.7", "fuse": "true", "prune_blocks": "3,99"}, "below 12"),
    "order": ("ats", {"ats_blocks": "5,4"}, "not ascending"),
    "image size": (
        "dynamicvit",
        {"base_rate": "0.7", "image_size": "64"},
        "counts from 196 patches, .* 64x64 has 256; use --image-size 56x56",
    ),
    "evo stages": ("evovit", {"prune_ratio": "0.5"}, "prune_ratio has 1 values for stages"),
    "evo start": (
        "evovit",
        {"prune_blocks": "0,8"},
        "let the first begin after block 0",
    ),
    "evo too few": ("evovit", {"prune_ratio": "0.001,0.5"}, "196 patches are too few"),
    "too long a schedule": ("tome", {"r": ",".join("1" * 13)}, "no schedule for 12 blocks"),
    "below zero": ("tome", {"r": "-3"}, "no schedule for 12 blocks"),
    "too many merges": ("tome", {"r": "60"}, "leaves 2 tokens at block 9, .*smaller r"),
    "stvit on swin, size": (
        "stvit_swin",
        {"image_size": "448"},
        "STViT is defined for images of 224",
    ),
    "stvit on swin, told otherwise": (
        "stvit_swin",
        {"semantic": "16"},
        "semantic is 16, and the weights tell 36",
    ),
    "stvit on lvvit, place": (
        "stvit_lvvit",
        {"skip_lam": "2", "generate_at": "11"},
        "generate_at is 11, .* from 0 to 10",
    ),
    "stvit place": ("stvit", {"generate_at": "11"}, "generate_at is 11, .* from 0 to 10"),
    "swin size": ("swin", {"image_size": "256"}, "do not tile an image of 256x256; .* 224"),
    "stvitr size": ("stvitr", {"image_size": "448"}, "images of 224x224, not 448x448"),
    "told otherwise": ("swin", {"window": "8"}, "window is 8, and the weights tell 7"),
    "no divisor": ("lvvit", {}, "tell skip_lam of this LV-ViT; give --set skip_lam=VALUE"),
    "a divisor of 0": ("lvvit", {"skip_lam": "0"}, "skip_lam is 0; give the number"),
    "another beginning": (
        "dynamicvit_swin",
        {"base_rate": "0.7", "prune_blocks": "4,5,6"},
        "begins with 4, and the weights have fast ways from block 3 on; give 3",
    ),
    "beyond the stage": (
        "dynamicvit_convnext",
        {"base_rate": "0.7", "prune_blocks": "3,4,6"},
        "not all in the third stage; give blocks from 2 to 5",
    ),
    "a rate that falls below 0": (
        "dynamicvit_convnext",
        {"base_rate": "0.4", "prune_blocks": "3,4,5"},
        "the slow way; give shares that leave some",
    ),
    "a map and a half": ("convnext", {"image_size": "240"}, "no whole map of 32x32 .* 256x256"),
    "cheap beyond the start": (
        "multiscale",
        {"keep_rate": "0.7", "cheap_blocks": "4"},
        "cheap_blocks is 4, and both groups become one in front of block 3",
    ),
    "no start": (
        "multiscale",
        {"keep_rate": "0.7", "prune_blocks": "0,4"},
        "leave no block for two groups",
    ),
    "one class token of two": (
        "multiscale",
        {"keep_rate": "0.7", "class_shares": "1"},
        "class_shares has 1 values",
    ),
    "half a patch": (
        "multiscale",
        {"keep_rate": "0.7", "image_size": "60"},
        "a grid of 15x15 patches has no half; use --image-size 56x56|64x64",
    ),
    "two unknowns": ("dynamicvit_lvvit", {}, "tell base_rate and skip_lam of this DynamicViT on L"),
    "foreign setting": ("evit", {"base_rate": "0.7"}, "base_rate is no setting of evit; use keep"),
}


@pytest.mark.parametrize("case", CASES)
def test_settings_that_cannot_be(case):
    family, overrides, words = CASES[case]
    given = {"family": family, "num_heads": "3", **overrides}
    size = None
    if "image_size" in given:
        side = int(given.pop("image_size"))
        size = (side, side)
    with pytest.raises((InputError, UsageError), match=words) as caught:
        build_model(tensors(family), overrides=given, image_size=size)
    assert caught.value.fix and "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["evit", "ats", "avit", "mergence"])
def test_a_distillation_token_could_be_dropped(family):
    overrides = {"family": family, "num_heads": "3", "keep_rate": "0.5", "fuse": "false"}
    overrides |= {"gate_scale": "10", "gate_center": "30"}
    known = {field.name for field in fields(FAMILIES[family].settings)}
    given = {k: v for k, v in overrides.items() if k in known or k in ("family", "num_heads")}
    with pytest.raises(InputError, match="could drop the distillation token"):
        build_model(tensors("deit", distilled=True), overrides=given)


def test_stages_that_are_missing_or_too_many():
    whole = tensors("dynamicvit")
    given = {"base_rate": "0.7", "num_heads": "3"}
    build_model(whole, overrides=given)
    fewer = {k: v for k, v in whole.items() if not k.startswith("score_predictor.2.")}
    with pytest.raises(InputError, match=r"prune_blocks has 3 values, .* has 2 predictors"):
        build_model(fewer, overrides=given)
    two = build_model(fewer, overrides=given | {"prune_blocks": "4,8"})
    assert two.config.gate_blocks == (4, 8)
    gap = {k: v for k, v in whole.items() if not k.startswith("score_predictor.1.")}
    with pytest.raises(InputError, match=r"missing \(score_predictor.1|2 predictors"):
        build_model(gap, overrides=given)
    misshapen = whole | {"score_predictor.0.out_conv.4.weight": np.zeros((3, 6), np.float32)}
    with pytest.raises(InputError, match=r"score_predictor\.0\.out_conv\.4\.weight is float32"):
        build_model(misshapen, overrides=given)


@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("evovit", "qks.5.qk.weight"),
        ("evovit", "projs.0.bias"),
        ("lvvit", "patch_embed.bn2.running_var"),
        ("lvvit", "aux_head.bias"),
        ("dynamicvit_lvvit", "score_predictor.1.out_conv.2.bias"),
        ("stvit", "semantic_tokens"),
        ("stvit_lvvit", "head.bias"),
        ("stvit_swin", "layers.2.blocks.1.attn.q.weight"),
        ("stvit_swin", "layers.2.widen.weight"),
        ("stvit_swin", "layers.3.blocks.0.layer_scale_1"),
        ("multiscale", "lka.conv_spatial.bias"),
        ("multiscale_lvvit", "low_cls_token"),
        ("swin", "layers.1.downsample.reduction.weight"),
        ("swin", "layers.3.blocks.0.attn.relative_position_bias_table"),
        ("dynamicvit_swin", "layers.2.blocks.2.fastmlp.fc1.1.bias"),
        ("dynamicvit_swin", "layers.2.score_predictor.1.out_conv.2.bias"),
        ("dynamicvit_convnext", "stages.2.3.fast_path_gamma"),
        ("dynamicvit_convnext", "stages.1.0.dwconv.bias"),
        ("convnext", "downsample_layers.2.1.bias"),
        ("stvitr", "layers.2.blocks.3.layer_scale_2"),
        ("stvitr", "patch_embed.proj.0.bn.running_var"),
    ],
)
def test_a_missing_tensor_is_named(family, key):
    with pytest.raises(InputError, match=f"missing|{key}|pos_embed"):
        build_model({k: v for k, v in tensors(family).items() if k != key})


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("3.attn.relative_position_bias_table", r"1 unexpected \(layers\.2\.blocks\.4\.attn"),
        ("4.attn.relative_position_bias_table", r"1 missing \(layers\.2\.blocks\.4\.attn"),
        ("1.conv_pos.proj.0.bias", r"1 missing \(layers\.2\.blocks\.1\.conv_pos"),
    ],
)
def test_half_of_what_a_setting_of_stvitr_brings(key, words):
    whole = stvitr_tensors("all")
    del whole[f"layers.2.blocks.{key}"]
    with pytest.raises(InputError, match=words):
        build_model(whole)


def test_positions_where_stvitr_has_none():
    """Blocks in which semantic tokens look at image tokens have no positions in common."""
    table = np.zeros((121, 12), np.float32)
    odd = {"layers.2.blocks.2.attn.relative_position_bias_table": table}
    with pytest.raises(InputError, match=r"1 unexpected \(layers\.2\.blocks\.2\.attn\.relative"):
        build_model(stvitr_tensors("all") | odd)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"SHORTCUT": True, "RELATIVE_POS": True, "USE_GLOBAL": True, "USE_CONV_POS": True}, ""),
        ({"USE_GLOBAL": False}, "use_global is false in the training's arguments, .* tell true"),
        ({"SHORTCUT": "maybe"}, "training's arguments: shortcut=maybe has a bad value; give true"),
    ],
)
def test_the_configuration_beside_stvitr(tmp_path, said, words):
    """Its names are those of the official configuration."""
    weights = {name: torch.from_numpy(array) for name, array in stvitr_tensors("all").items()}
    torch.save({"model": weights, "config": said}, tmp_path / "x.pth")
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    if words:
        with pytest.raises(InputError, match=words):
            build_model(checkpoint)
        return
    settings = build_model(checkpoint).config.settings
    assert all(getattr(settings, name.lower()) for name in said)
    with pytest.raises(InputError, match="relative_pos is false, and the weights tell true"):
        build_model(checkpoint, overrides={"relative_pos": "false"})


def test_a_manifest_of_stvitr_from_before_its_settings():
    model = build_model(stvitr_tensors("none"))
    content = config_to_dict(model.config)
    for name in ("relative_pos", "use_global", "use_conv_pos"):
        del content["settings"][name]
    assert config_from_dict(content, CLASSIFY) == model.config


def test_ratios_of_dynamicvit_as_a_list(tmp_path):
    """In the container, in an architecture file and typed; powers are what one number means."""
    weights, heads = tensors("dynamicvit"), {"num_heads": "3"}
    one = build_model(weights, overrides=heads | {"base_rate": "0.7"}).config
    method, expected = family_of(one).method, (0.7, 0.7**2, 0.7**3)
    assert method.kept(one) == (138, 97, 68)
    text = ",".join(map(str, expected))
    (tmp_path / "a.yaml").write_text(f"family: dynamicvit\nnum_heads: 3\nbase_rate: [{text}]\n")
    torch.save(
        {
            "model": {name: torch.from_numpy(array) for name, array in weights.items()},
            "args": Namespace(base_rate=list(expected)),
        },
        tmp_path / "x.pth",
    )
    for model in (
        build_model(weights, overrides=heads | {"base_rate": text}),
        build_model(weights, arch=str(tmp_path / "a.yaml")),
        build_model(read_checkpoint(tmp_path / "x.pth"), overrides=heads),
    ):
        assert model.config.settings.base_rate == expected
        assert method.kept(model.config) == method.kept(one)
    other = build_model(weights, overrides=heads | {"base_rate": "0.8,0.6,0.25"})
    assert method.kept(other.config) == (157, 118, 50)
    content = config_to_dict(one)
    assert content["settings"]["base_rate"] == [0.7]
    content["settings"]["base_rate"] = 0.7  # as versions before wrote it
    assert config_from_dict(content, CLASSIFY) == one


def test_what_training_alone_needs_is_passed_over():
    spare = {"norm_cls.weight": np.zeros(24, np.float32), "head_cls.bias": np.zeros(5, np.float32)}
    build_model(tensors("evovit") | spare, overrides={"num_heads": "3"})
    with pytest.raises(InputError, match=r"1 unexpected \(norm_clz.weight\)"):
        extra = {"norm_clz.weight": np.zeros(24, np.float32)}
        build_model(tensors("evovit") | extra, overrides={"num_heads": "3"})
    mask = {"blocks.3.attn.out_zero_mask": np.zeros((1, 24), np.float32)}
    build_model(tensors("deit") | mask, overrides={"num_heads": "3"})


def test_weights_that_several_methods_share(tmp_path):
    """They do not tell which tokens to compute: the candidates are named, `dense` is the same."""
    model = build_model(tensors("deit"), overrides={"num_heads": "3"})
    assert model.candidates == ("deit", "evit", "ats", "avit", "tome", "mergence")
    for tokens in (None, FAMILIES["evit"].modes[0]):
        with pytest.raises(UsageError, match="deit, evit, ats, avit, tome, mergence all have"):
            export_model(model, tmp_path / "out", ExportSettings(tokens=tokens))
    assert not list(tmp_path.iterdir())
    chosen = build_model(tensors("deit"), overrides={"num_heads": "3", "family": "deit"})
    assert not chosen.candidates
    assert export_model(chosen, tmp_path / "out", ExportSettings(tokens=None)).config.num_gates == 0


@pytest.mark.parametrize(
    ("args", "settings"),
    [
        (
            {"base_keep_rate": 0.6, "fuse_token": False, "drop_loc": "(2, 4)"},
            {"keep_rate": 0.6, "fuse": False, "prune_blocks": (2, 4)},
        ),
        ({"VIT.ATS_BLOCKS": [4, 5]}, {"ats_blocks": (4, 5)}),
    ],
)
def test_a_container_that_tells_its_method(tmp_path, args, settings):
    """What the training's arguments say is taken; what a user says wins."""
    path = tmp_path / "x.pth"
    weights = {k: torch.from_numpy(v) for k, v in tensors("deit").items()}
    if "VIT.ATS_BLOCKS" in args:
        content = {"model_state": weights, "cfg": "VIT:\n  ATS_BLOCKS: [4, 5]\n", "epoch": 1}
    else:
        content = {"model": weights, "args": args}
    torch.save(content, path)
    model = build_model(read_checkpoint(path), overrides={"num_heads": "3"})
    assert not model.candidates
    assert {name: getattr(model.config.settings, name) for name in settings} == settings
    if "fuse_token" in args:
        told = build_model(
            read_checkpoint(path), overrides={"num_heads": "3", "fuse": "true", "family": "evit"}
        )
        assert told.config.settings == replace(model.config.settings, fuse=True)


def test_modes_and_options_that_a_method_does_not_have(tmp_path):
    overrides = {"num_heads": "3", "base_rate": "0.7"}
    model = build_model(tensors("dynamicvit"), overrides=overrides)
    for mode in (TokenMode.DYNAMIC, TokenMode.MASKED):
        with pytest.raises(UsageError, match="use --tokens static or dense"):
            export_model(model, tmp_path / "out", ExportSettings(tokens=mode))
    with pytest.raises(UsageError, match="itself says how many tokens remain"):
        settings = ExportSettings(budget="0.5", target="tensorrt")
        export_model(model, tmp_path / "out", settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"settings": None},
        {"settings": {}},
        {"settings": {"base_rate": "0.7", "prune_blocks": [3, 6, 9]}},
        {"settings": {"base_rate": 7.0, "prune_blocks": [3, 6, 9]}},
        {"settings": {"base_rate": [], "prune_blocks": [3, 6, 9]}},
        {"settings": {"base_rate": [0.7, 0.49], "prune_blocks": [3, 6, 9]}},
        {"settings": {"base_rate": 0.7, "prune_blocks": [3, 6, 9], "more": 1}},
        {"thresholds": [0.0, 0.0, 0.0]},
        {"gate_blocks": [3, 6]},
        {"gate_blocks": [3, 6, 8]},
        {"gate_blocks": [3, 6, 12]},
        {"class_token": False},
        {"image_size": [60, 60]},
        {"family": "evit"},
    ],
)
def test_a_manifest_of_anyone(change):
    """`config_from_dict` reads what may come from anywhere."""
    model = build_model(tensors("dynamicvit"), overrides={"num_heads": "3", "base_rate": "0.7"})
    content = config_to_dict(model.config)
    assert config_from_dict(content, CLASSIFY) == model.config
    with pytest.raises(SvitDeployError):
        config_from_dict(content | change, CLASSIFY)
