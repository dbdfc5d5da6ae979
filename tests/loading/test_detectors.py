"""Checkpoints of detectors: keys, shapes, what they tell, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from svit_deploy.backbones.adapter.sizes import AdapterSizes
from svit_deploy.errors import InputError
from svit_deploy.io.checkpoint import read_checkpoint
from svit_deploy.loading.layout import to_official, unwrap
from svit_deploy.loading.load import build_model, load_model
from svit_deploy.loading.random import init_checkpoint
from svit_deploy.loading.serialise import config_from_dict, config_to_dict
from svit_deploy.model.config import Preprocess
from svit_deploy.tasks import TASKS
from svit_deploy.tasks.numbers import DetectorNumbers, FeatureNumbers
from tests.told import checkpoint_of

HEADS = {"num_heads": "6"}
DETECT = TASKS["detect"]


@pytest.fixture(scope="session")
def golden(detection_golden: Any) -> Any:
    return detection_golden


def test_weights_tell_the_architecture(golden: Any) -> None:
    model = golden("svit_mask_rcnn").detector
    config = model.config
    assert isinstance(config.backbone, AdapterSizes)
    assert isinstance(config.task, DetectorNumbers)
    assert (config.family, config.embed_dim, config.depth) == ("svit_adapter", 48, 12)
    assert config.gate_blocks == tuple(range(3, 12)) and all(config.gate_class_token)
    assert config.settings.interaction_blocks == (3, 3, 3, 3)
    assert config.settings.deform_heads == 6
    sizes, task = config.backbone, config.task
    assert (sizes.extra_extractors, sizes.deform_points, sizes.conv_dim) == (2, 4, 16)
    assert (task.fpn_dim, task.fc_dim, config.num_classes) == (16, 32, 80)
    assert len(task.class_names) == 80 and task.class_names[1] == "c1"
    assert task.resize == (800, 1333)
    assert config.preprocess == Preprocess(crop_ratio=1.0, interpolation="bilinear")
    assert not config.class_token
    assert config.block_eps == 1e-5
    assert "training checkpoint" in model.checkpoint.container


def test_sparse_and_dense_are_told_apart(golden: Any) -> None:
    dense = golden("vit_adapter_dense").backbone.config
    assert (dense.family, dense.num_gates, dense.block_eps) == ("vit_adapter", 0, 1e-6)
    assert golden("svit_adapter").backbone.config.num_gates == 9


def test_a_whole_detector_serves_as_a_backbone(golden: Any) -> None:
    backbone = golden("svit_mask_rcnn").backbone
    assert backbone.config.task == FeatureNumbers()
    assert not any(name.startswith(("neck", "rpn_head", "roi_head")) for name in backbone.weights)


def test_configuration_survives_json(golden: Any) -> None:
    found = golden("svit_mask_rcnn")
    content = config_to_dict(found.detector.config)
    assert config_from_dict(content, DETECT) == found.detector.config
    backbone = found.backbone.config
    assert config_from_dict(config_to_dict(backbone), TASKS["backbone"]) == backbone


def test_backbones_of_earlier_bundles_are_read(golden: Any) -> None:
    """They name a detector's numbers, too, which mean nothing to them."""
    found = golden("svit_mask_rcnn")
    backbone, unused = found.backbone.config, config_to_dict(found.detector.config)
    content = {**unused, **config_to_dict(backbone)}
    assert config_from_dict(content, TASKS["backbone"]) == backbone
    with pytest.raises(InputError, match=r"lacks or adds box_iou, .*, resize"):
        config_from_dict({**content, "family": "svit"}, TASKS["classify"])
    with pytest.raises(InputError, match="task's part of the configuration lacks or adds fc_dim"):
        config_from_dict({k: v for k, v in unused.items() if k != "fc_dim"}, DETECT)


@pytest.mark.parametrize(("family", "task"), [("svit_adapter", "classify"), ("svit", "detect")])
def test_a_configuration_of_another_task_is_refused(golden: Any, family: str, task: str) -> None:
    content = config_to_dict(golden("svit_mask_rcnn").detector.config)
    with pytest.raises(InputError, match=f"a {family} is not for the task {task}"):
        config_from_dict({**content, "family": family}, TASKS[task])


def test_names_go_both_ways(golden: Any) -> None:
    found = golden("svit_mask_rcnn")
    tensors = read_checkpoint(found.path).tensors
    official = to_official(found.detector.weights, "svit_adapter", DETECT)
    assert set(official) == {key for key in tensors if "num_batches" not in key}


def test_backbone_alone_has_no_detections(golden: Any) -> None:
    with pytest.raises(InputError, match=r"backbone alone.*--task backbone"):
        load_model(golden("svit_adapter").path, task="detect", overrides=HEADS)


def test_classification_checkpoint_is_refused() -> None:
    path = checkpoint_of("svit_cls")
    with pytest.raises(
        InputError, match=r"needs a ViT-Adapter or Swin, .* is of SViT; use --task class"
    ):
        load_model(path, task="backbone")


def test_detection_checkpoint_needs_a_task(golden: Any) -> None:
    with pytest.raises(InputError, match=r"is of SViT-Adapter; use --task backbone or --task det"):
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
        load_model(golden("svit_mask_rcnn").path, task="detect", overrides=HEADS | overrides)


def test_incomplete_and_foreign_weights_are_refused(golden: Any) -> None:
    tensors = dict(read_checkpoint(golden("svit_mask_rcnn").path).tensors)
    del tensors["backbone.spm.conv3.1.running_var"]
    tensors["roi_head.mask_head.convs.4.conv.weight"] = np.zeros((1,), np.float32)
    tensors["backbone.up.bias"] = np.zeros(3, np.float32)
    with pytest.raises(InputError, match=r"1 missing.*conv3.1.running_var.*1 unexp.*1 misshap"):
        build_model(tensors, task="detect", overrides=HEADS)


def test_gates_that_were_never_trained_are_refused(golden: Any) -> None:
    tensors, _ = unwrap(golden("svit_adapter").backbone.checkpoint.tensors)
    tensors = {key: array for key, array in tensors.items() if "selective" not in key}
    with pytest.raises(InputError, match="no gates"):
        build_model(tensors, task="backbone", overrides=HEADS)


@pytest.mark.slow
def test_init_writes_a_detector_that_loads(tmp_path: Path) -> None:
    arch = tmp_path / "tiny.yaml"
    arch.write_text(
        "family: svit_adapter\nnum_heads: 3\nembed_dim: 24\ndepth: 4\ndeform_heads: 2\n"
        "gate_blocks: [2, 3]\nnum_classes: 5\ninteraction_blocks: [2, 2]\n"
    )
    made = init_checkpoint(str(arch), tmp_path / "tiny.pth", keep_ratio=(0.7, 0.4))
    assert made.keep_ratios == pytest.approx((0.7, 0.4), abs=0.01)
    model = load_model(made.path, task="detect", arch=str(arch))
    assert model.config.num_classes == 5 and model.config.settings.interaction_blocks == (2, 2)
