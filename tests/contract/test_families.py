"""The contract: every family, in each of its modes and for each of its tasks, does what all must.

Random weights of small sizes; what only one family does is tested where it lives.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("torchvision")

from svit_deploy.bundle import Bundle, open_bundle
from svit_deploy.errors import InputError, UsageError
from svit_deploy.export.pipeline import build_graph, export_model
from svit_deploy.export.settings import ExportSettings
from svit_deploy.graph.parts import OTHER, SELECTION, block_of, kind_of
from svit_deploy.images import ImageSet
from svit_deploy.images.prepared import Prepared
from svit_deploy.loading.layout import to_official
from svit_deploy.loading.load import build_model
from svit_deploy.methods.families import FAMILIES
from svit_deploy.model.config import TokenMode
from svit_deploy.model.model import without_gates
from svit_deploy.model.profiles import BatchRange, parse_batches
from svit_deploy.model.sizes import SizeRange
from svit_deploy.tasks import TASKS
from svit_deploy.tasks.reference import Reference
from svit_deploy.verify.expected import LiveReference, StoredReference
from svit_deploy.verify.run import verify_against
from svit_deploy.verify.settings import VerifySettings
from tests.small_models import has_own_dense, small_model

CASES = [
    (family.name, task, mode)
    for family in FAMILIES.values()
    for task in family.backbone.tasks
    for mode in family.modes
]
ONE_BY_ONE = ("classify", TokenMode.DYNAMIC)
VERIFY = VerifySettings(threads=1, repeats=2)


def noise(size: tuple[int, int], frames: int = 0) -> ImageSet:
    """Two images, or videos of two views, without flat parts: convolutions make zeros of these."""
    shape = (2, 2, 3, frames, *size) if frames else (2, 3, *size)
    pixels = np.random.default_rng(1).standard_normal(shape, np.float32)
    return ImageSet(pixels, ("noise-0", "noise-1"), None, "0" * 64, "npz")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def make(
        family: str, task: str, mode: TokenMode, batch: tuple[BatchRange, ...] | None = None
    ) -> Bundle:
        many = TASKS[task].many_sizes
        budget = "0.6" if mode is TokenMode.BUDGET else None
        config = small_model(family, task).config
        images = noise((64, 96) if many else config.image_size, config.frames)
        settings = ExportSettings(
            task=task, tokens=mode, budget=budget, calibration=images, batch=batch
        )
        sizes = TASKS[task].parse_sizes("64x64:64x96:128x128") if many else None
        folder = tmp_path_factory.mktemp(f"{family}-{task}-{mode.value}")
        return export_model(small_model(family, task), folder / "out", settings, sizes=sizes)

    return make


@pytest.mark.slow
@pytest.mark.parametrize(("family", "task", "mode"), CASES)
def test_it_exports_verifies_and_equals_its_reference(exported, family, task, mode):
    bundle = exported(family, task, mode)
    again = open_bundle(bundle.path)
    assert (again.family.name, again.task.name, again.mode) == (family, task, mode)
    references = [LiveReference(bundle, small_model(family, task))]
    if mode is not TokenMode.DENSE or has_own_dense(family):  # else it is another family's file
        references.append(StoredReference(bundle))
    for reference in references:
        report = verify_against(bundle, reference, VERIFY)
        assert report.passed, report.verdict
        assert len(report.gates) == bundle.config.num_gates


@pytest.mark.slow
@pytest.mark.parametrize("family", [case[0] for case in CASES if case[1:] == ONE_BY_ONE])
def test_a_graph_for_one_image_at_a_time_equals_it_too(exported, family):
    bundle = exported(family, *ONE_BY_ONE, parse_batches("1"))
    report = verify_against(bundle, LiveReference(bundle, small_model(family, "classify")), VERIFY)
    assert report.passed, report.verdict
    graphs = bundle.load_model().graph, exported(family, *ONE_BY_ONE).load_model().graph
    assert graphs[0].input[0].type.tensor_type.shape.dim[0].dim_value == 1
    assert len(graphs[0].node) < len(graphs[1].node) - 10 * bundle.config.num_gates


@pytest.mark.slow
@pytest.mark.parametrize(("family", "task", "mode"), CASES)
def test_its_operators_have_a_place_in_a_profile(exported, family, task, mode):
    nodes = exported(family, task, mode).load_model().graph.node
    kinds = {node.name: kind_of([node.name], node.op_type) for node in nodes}
    placed = [node for node in nodes if block_of([node.name])]
    assert len(placed) > 0.8 * len(nodes)
    costly = {"Gemm", "MatMul", "Conv", "Softmax", "LayerNormalization", "Gelu", "Gather"}
    for node in placed:
        assert kinds[node.name] != OTHER or node.op_type not in costly, node.name
    assert list(kinds.values()).count(OTHER) < 0.12 * len(nodes)
    selects, dense = SELECTION in kinds.values(), mode is TokenMode.DENSE
    assert not (selects and dense)
    assert selects or dense or not FAMILIES[family].method.trained_gates


@cache
def dense_nodes(family: str) -> set[tuple[str, ...]]:
    """What stands in each block, and in front of and behind them."""
    task = TASKS[FAMILIES[family].backbone.tasks[0]]
    model = without_gates(small_model(family, task.name))
    sizes = SizeRange.single(model.config.image_size)
    if task.many_sizes:
        sizes = task.parse_sizes("64x64:64x96:128x128")
    settings = ExportSettings(task=task.name, tokens=TokenMode.DENSE)
    found: dict[str, list[str]] = {}
    for node in build_graph(model, settings, (), sizes, {}).graph.node:
        found.setdefault(node.name.split("/")[0], []).append(node.op_type)
    return {("block" if "block" in name else name, *ops) for name, ops in found.items()}


@pytest.mark.parametrize(
    "family", [family.name for family in FAMILIES.values() if TokenMode.DENSE in family.modes]
)
def test_its_dense_twin_is_its_backbones(family):
    """Node for node the graph of the family without a method: engines need to run one of them."""
    backbone = type(FAMILIES[family].backbone)
    plain = [
        other.name
        for other in FAMILIES.values()
        if type(other.backbone) is backbone and other.modes == (TokenMode.DENSE,)
    ]
    assert plain
    same = dense_nodes(family) in map(dense_nodes, plain)
    assert same == (family in plain or not has_own_dense(family))


@pytest.mark.parametrize(("family", "task"), sorted({case[:2] for case in CASES}))
def test_it_refuses_what_it_cannot_do(tmp_path, family, task):
    model, modes = small_model(family, task), FAMILIES[family].modes
    for mode in TokenMode:
        if mode not in modes:
            with pytest.raises(UsageError, match=f"use --tokens {modes[0].value}"):
                export_model(model, tmp_path / "no", ExportSettings(task=task, tokens=mode))
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_it_refuses_tasks_that_its_backbone_does_not_serve(family):
    served = FAMILIES[family].backbone.tasks
    weights = to_official(
        small_model(family, served[0]).weights, FAMILIES[family].keys_of or family, TASKS[served[0]]
    )
    for task in set(TASKS) - set(served):
        with pytest.raises(InputError, match=f"use --task {served[0]}"):
            build_model(weights, task=task)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_does_not_depend_on_its_batch(family):
    task = FAMILIES[family].backbone.tasks[0]
    model = small_model(family, task)
    reference = Reference(model, TASKS[task])
    size = (64, 96) if TASKS[task].many_sizes else model.config.image_size
    images = [Prepared.whole(one) for one in noise(size, model.config.frames).arrays]
    together = reference.run(images)
    for i, image in enumerate(images):
        alone = reference.run([image])
        np.testing.assert_array_equal(together.selected.keep_mask[i], alone.selected.keep_mask[0])
        for name, array in alone.outputs[0].items():
            np.testing.assert_allclose(together.outputs[i][name], array, rtol=0, atol=1e-4)


def test_every_folder_of_weights_is_recognised():
    """The keys of a family's own weights name it, and no other's."""
    for family in FAMILIES.values():
        if not family.keys_of:
            task = TASKS[family.backbone.tasks[0]]
            weights = to_official(small_model(family.name, task.name).weights, family.name, task)
            stripped = {key.removeprefix("backbone.") for key in weights}
            assert next(f.name for f in FAMILIES.values() if f.matches(stripped)) == family.name
