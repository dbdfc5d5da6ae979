"""Gate thresholds and token budgets that an export chooses from images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

pytest.importorskip("torch")

from svit_deploy.errors import UsageError
from svit_deploy.export.budgets import auto_budgets
from svit_deploy.export.pipeline import export_model
from svit_deploy.export.settings import ExportSettings
from svit_deploy.images import ImageSet
from svit_deploy.model.budget import UNIT, Budget
from svit_deploy.model.config import ModelConfig, TokenMode
from svit_deploy.model.counts import kept_counts
from svit_deploy.model.model import Model
from svit_deploy.model.result import Result, Selected
from svit_deploy.model.sizes import SizeRange
from svit_deploy.tasks import TASKS
from svit_deploy.verify.expected import LiveReference
from svit_deploy.verify.run import verify_against
from svit_deploy.verify.settings import VerifySettings


@pytest.mark.slow
def test_a_calibrated_export_is_verified_with_its_own_thresholds(digits, heldout, tmp_path):
    chosen = ExportSettings(calibrate_gates=heldout[:16], target_keep=(0.5, 0.25))
    bundle = export_model(digits, tmp_path / "bundle", chosen)
    config = bundle.config
    assert config.target_keep == (0.5, 0.5, 0.25, 0.25)
    assert all(threshold != 0 for threshold in config.thresholds)
    measured = [gate["measured_keep"] for gate in bundle.manifest["gates"]]
    np.testing.assert_allclose(measured, config.target_keep, atol=1e-3)
    reference = LiveReference(bundle, digits, heldout[16:32])
    report = verify_against(bundle, reference, VerifySettings(threads=1, repeats=2))
    assert report.passed, report.verdict
    assert report.notes == [
        "the bundle's own thresholds are used, as chosen at export: "
        + ", ".join(f"{threshold:.4g}" for threshold in config.thresholds)
    ]


def test_dense_exports_have_no_gates_to_calibrate(digits, heldout):
    with pytest.raises(UsageError, match="--calibrate-gates has no meaning with --tokens dense"):
        ExportSettings(tokens=TokenMode.DENSE, calibrate_gates=heldout[:2])


def test_targets_that_nobody_knows_are_asked_for(golden, tmp_path):
    found = golden("svit_cls")
    with pytest.raises(UsageError, match="--target-keep"):
        export_model(found.model, tmp_path / "b", ExportSettings(calibrate_gates=found.images))


def chosen(
    keep: np.ndarray, config: ModelConfig, percentile: float, task: str = "classify"
) -> Budget:
    """The budget of the one gate, where the reference keeps `keep [n, 1, S]`."""
    pixels = np.zeros((len(keep), 3, *config.image_size), np.float32)
    images = ImageSet(pixels, tuple(map(str, range(len(keep)))), None, "", "npz")
    todo = list(keep)

    class Keeps:
        def __init__(self, model: Model, task: object) -> None: ...

        def run(self, group: list[object]) -> Result:
            mask = np.stack([todo.pop(0) for _ in group])
            return Result([{}] * len(group), Selected(mask, mask.astype(np.float32)))

    sizes = SizeRange.single(config.image_size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("svit_deploy.tasks.reference.Reference", Keeps)
        model = Model(config, {}, "custom")
        (budget,) = auto_budgets(model, TASKS[task], images, sizes, percentile)
    return budget


def svit(tokens: int, class_token: bool) -> ModelConfig:
    """One gate on `tokens` patches."""
    grid = (1, tokens)
    return ModelConfig("svit", 4, 1, 1, 8, 1, 2, grid, grid, False, (0,), (class_token,))


@given(st.data(), st.integers(1, 20), st.floats(0.1, 100), st.booleans())
def test_budgets_fit_the_share_of_images_asked_for(data, images, percentile, class_token):
    config = svit(12, class_token)
    keep = data.draw(arrays.arrays(bool, (images, 1, 13)))
    keep[:, :, 0] |= not class_token
    budget = chosen(keep, config, percentile)
    counts = kept_counts(keep, config)[:, 0]
    assert 1 <= budget.value <= config.gated_tokens(0) and budget.share is None
    assert budget.always == (not class_token)
    assert (counts <= budget.value).mean() >= percentile / 100 - 1e-9
    if percentile == 100:
        assert budget.value == max(1, counts.max())


def test_budgets_of_a_gate_that_keeps_nothing():
    keep = np.zeros((3, 1, 13), bool)
    keep[:, :, 0] = True
    assert chosen(keep, svit(12, False), 100).value == 1


@given(arrays.arrays(bool, (7, 1, 13)), st.floats(0.1, 100))
def test_shares_for_images_of_many_sizes_fit_too(keep, percentile):
    """In four digits, as the graph counts: rounded up, and never nothing."""
    config = svit(12, True)
    budget = chosen(keep, config, percentile, "backbone")
    assert 1 / UNIT <= budget.value <= 1 and budget.share is not None
    assert budget.share / UNIT == pytest.approx(budget.value, abs=1e-12)
    counts = kept_counts(keep, config)[:, 0]
    assert (counts <= budget.rows(13)).mean() >= percentile / 100 - 1e-9
