"""Checkpoints of detectors: keys, shapes, what they tell, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from svit_deploy import api
from svit_deploy.checkpoint import read_checkpoint
from svit_deploy.detection.config import AdapterConfig, SizeRange, Task
from svit_deploy.detection.layout import adapter_to_official, strip_backbone
from svit_deploy.detection.model import build_detector, load_detector
from svit_deploy.errors import InputError, UsageError
from svit_deploy.models import config_from_dict, config_to_dict, load_model

HEADS = {"num_heads": "6"}


def test_weights_tell_the_architecture(golden: Any) -> None:
    model = golden("svit_mask_rcnn").detector
    config = model.config
    assert isinstance(config, AdapterConfig)
    assert (config.family, config.embed_dim, config.depth) == ("svit_adapter", 48, 12)
    assert config.gate_blocks == tuple(range(3, 12)) and all(config.gate_class_token)
    assert config.interaction_blocks == (3, 3, 3, 3) and config.extra_extractors == 2
    assert (config.deform_heads, config.deform_points, config.conv_dim) == (6, 4, 16)
    assert (config.fpn_dim, config.fc_dim, config.num_classes) == (16, 32, 80)
    assert len(config.class_names) == 80 and config.class_names[1] == "c1"
    assert config.block_eps == 1e-5
    assert "training checkpoint" in model.checkpoint.container


def test_sparse_and_dense_are_told_apart(golden: Any) -> None:
    dense = golden("vit_adapter_dense").backbone.config
    assert (dense.family, dense.num_gates, dense.block_eps) == ("vit_adapter", 0, 1e-6)
    assert golden("svit_adapter").backbone.config.num_gates == 9


def test_a_whole_detector_serves_as_a_backbone(golden: Any) -> None:
    backbone = golden("svit_mask_rcnn").backbone
    assert not backbone.config.has_heads
    assert not any(name.startswith(("neck", "rpn_head", "roi_head")) for name in backbone.weights)


def test_configuration_survives_json(golden: Any) -> None:
    config = golden("svit_mask_rcnn").detector.config
    assert config_from_dict(config_to_dict(config)) == config


def test_names_go_both_ways(golden: Any) -> None:
    found = golden("svit_mask_rcnn")
    tensors = read_checkpoint(found.path).tensors
    official = adapter_to_official(found.detector.weights, "svit_adapter")
    assert set(official) == {key for key in tensors if "num_batches" not in key}


def test_backbone_alone_has_no_detections(golden: Any) -> None:
    with pytest.raises(InputError, match=r"backbone alone.*--task backbone"):
        load_detector(golden("svit_adapter").path, Task.DETECT, overrides=HEADS)


def test_classification_checkpoint_is_refused(golden: Any) -> None:
    path = golden("svit_adapter").path.parent.parent / "svit_cls" / "checkpoint.pth"
    with pytest.raises(InputError, match="needs a ViT-Adapter"):
        load_detector(path, Task.BACKBONE)


def test_detection_checkpoint_needs_a_task(golden: Any) -> None:
    with pytest.raises(InputError, match="detection model; export it with --task detect"):
        load_model(golden("svit_mask_rcnn").path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_classes": "20"}, "num_classes 20 .the checkpoint has 80"),
        ({"num_heads": "5"}, "embed_dim 48 is not divisible by num_heads 5"),
        ({"deform_heads": "5"}, "24 samples per query are no multiple of 5"),
        ({"interaction_blocks": "6,6"}, "has 2 values, the checkpoint has 4"),
        ({"interaction_blocks": "3,3,3,4"}, "do not share out 12 blocks"),
    ],
)
def test_contradicting_settings_are_refused(
    golden: Any, overrides: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_detector(golden("svit_mask_rcnn").path, Task.DETECT, overrides=HEADS | overrides)


def test_incomplete_and_foreign_weights_are_refused(golden: Any) -> None:
    tensors = dict(read_checkpoint(golden("svit_mask_rcnn").path).tensors)
    del tensors["backbone.spm.conv3.1.running_var"]
    tensors["roi_head.mask_head.convs.4.conv.weight"] = np.zeros((1,), np.float32)
    tensors["backbone.up.bias"] = np.zeros(3, np.float32)
    with pytest.raises(InputError, match=r"1 missing.*conv3.1.running_var.*1 unexp.*1 misshap"):
        build_detector(tensors, Task.DETECT, overrides=HEADS)


def test_gates_that_were_never_trained_are_refused(golden: Any) -> None:
    tensors = strip_backbone(golden("svit_adapter").backbone.checkpoint.tensors)
    tensors = {key: array for key, array in tensors.items() if "selective" not in key}
    with pytest.raises(InputError, match="no gates"):
        build_detector(tensors, Task.BACKBONE, overrides=HEADS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("800x1210", "multiple of 32; use, for example, 800x1216"),
        ("64x64:32x64:96x96", "out of order"),
        ("64:96", "not a size or a range"),
        ("64:big:96", "not a size"),
    ],
)
def test_bad_sizes_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SizeRange.parse(text)


def test_sizes_outside_the_range_are_refused() -> None:
    sizes = SizeRange.parse("64x96:96x128:160x128")
    sizes.check((160, 96))
    with pytest.raises(InputError, match=r"90x128 pixels is not a multiple of 32"):
        sizes.check((90, 128))
    with pytest.raises(InputError, match=r"32 high.*exported for 64 to 160"):
        sizes.check((32, 96))
    with pytest.raises(InputError, match="160 wide"):
        sizes.check((96, 160))


def test_init_writes_a_detector_that_loads(tmp_path: Path) -> None:
    arch = tmp_path / "tiny.yaml"
    arch.write_text(
        "family: svit_adapter\nnum_heads: 3\nembed_dim: 24\ndepth: 4\ndeform_heads: 2\n"
        "gate_blocks: [2, 3]\nnum_classes: 5\ninteraction_blocks: [2, 2]\n"
    )
    made = api.init(str(arch), tmp_path / "tiny.pth", keep_ratio="0.7,0.4")
    assert made.keep_ratios == pytest.approx((0.7, 0.4), abs=0.01)
    model = load_detector(made.path, Task.DETECT, arch=str(arch))
    assert model.config.num_classes == 5 and model.config.interaction_blocks == (2, 2)


def test_presets_are_recognised() -> None:
    from svit_deploy.detection.random import adapter_dims
    from svit_deploy.models.presets import PRESETS, recognise

    for name in ("svit_adapter_t", "svit_adapter_s", "vit_adapter_t", "vit_adapter_s"):
        assert recognise(adapter_dims(PRESETS[name])) == name


def test_inspect_tells_what_the_weights_tell(golden: Any) -> None:
    facts = api.inspect(golden("svit_mask_rcnn").path).to_dict()
    text = json.dumps(facts)
    assert '"svit_adapter"' in text and '"interaction_blocks"' in text
    model = {fact["name"]: fact for fact in facts["model"]}
    assert model["tasks"]["value"] == ["backbone", "detect"]
    assert model["fpn_dim"]["value"] == 16 and model["num_gates"]["value"] == 9
    assert model["num_heads"]["source"] == "needed"
    backbone = api.inspect(golden("vit_adapter_dense").path).to_dict()
    assert {f["name"]: f["value"] for f in backbone["model"]}["tasks"] == ["backbone"]
