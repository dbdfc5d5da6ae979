"""The numbers of a benchmark, exact on a fake clock, and once on real graphs."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from svit_deploy.bench.content import fit_sweep, kept_tokens, terciles
from svit_deploy.bench.report import SweepPoint
from svit_deploy.bench.run import run_bench
from svit_deploy.bench.settings import BenchSettings, BenchTarget
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine

pytestmark = pytest.mark.slow


def test_a_drifting_machine_does_not_bend_the_ratio(world):
    def slowing(cost: float) -> Callable[[float], float]:
        return lambda kept: cost * (1 + len(world.runs) / 100)

    report = world.bench(world.dense(slowing(10)), world.dense(slowing(5), label="other"))
    result = report.results[1]
    assert result.speedup.ratio == pytest.approx(2, rel=0.02)
    assert result.latency.drift > 0.3
    assert any("drifted by +" in reason for reason in result.unstable)


def test_the_same_model_twice_is_no_measurable_difference(world):
    noise = np.random.default_rng(0)

    def noisy(kept: float) -> float:
        return 10 + noise.normal()

    report = world.bench(world.dense(noisy), world.dense(noisy, label="other"), min_samples=200)
    assert report.results[0].speedup is None
    assert report.results[1].speedup.verdict == "no measurable difference"


def test_throughput_counts_images(world):
    report = world.bench(world.dense(), batches=(1, 5))
    assert [result.throughput_images_per_s for result in report.results] == [100, 500]


def test_kept_tokens_and_latency_by_content(world):
    (result,) = world.bench(world.pruned(), min_samples=120).results
    kept = result.kept
    assert (kept.tokens, kept.min, kept.p50, kept.mean, kept.max) == (10, 0, 4.5, 4.5, 9)
    assert kept.keep_ratio == pytest.approx(0.45)
    assert kept.per_gate_mean == (4.5, 4.5)
    assert kept.padding == 1
    assert [third.count for third in result.terciles] == [40, 40, 40]
    assert result.terciles[0].kept_min == 0
    assert result.terciles[-1].kept_max == 9
    assert result.terciles[0].p50_ms < result.terciles[1].p50_ms < result.terciles[2].p50_ms
    np.testing.assert_allclose(result.samples_ms[:, 0], 4 + result.kept_of_block)


def test_padding_is_the_fullest_image_over_the_mean():
    masks = np.zeros((1, 2, 2, 4), bool)
    masks[0, 0, 0, :1] = masks[0, 1, 0, :3] = True  # gate 0 keeps 1 and 3, gate 1 nothing
    kept = kept_tokens(masks)
    assert kept.padding == 1.5
    assert kept.per_gate_mean == (2, 0)
    assert kept_tokens(np.zeros((1, 1, 1, 4), bool)).padding is None


def test_no_terciles_where_the_content_does_not_differ():
    assert terciles(np.array([3.0, 3.0, 4.0]), np.ones((3, 2))) == ()


def test_content_is_not_taken_for_noise(world):
    (result,) = world.bench(world.pruned(), min_samples=120).results
    assert result.latency.cv > 0.3
    assert result.repeat_cv == 0
    assert result.unstable == ()


def test_images_that_were_not_timed_are_noted(world):
    (result,) = world.bench(world.pruned(), min_samples=20).results
    assert result.images_timed == 10
    assert result.notes == ("10 of 20 images were timed; raise the duration",)


def test_a_pruned_graph_without_keep_mask_is_noted(world):
    blind = world.dense(content_dependent=True)
    (result,) = world.bench(blind).results
    assert result.kept is None
    assert "no keep mask" in result.notes[0]


def test_worst_case_is_compared_with_the_baseline(world):
    report = world.bench(world.dense(), world.pruned(), worst_case=True)
    assert report.results[0].worst_case is None
    worst = report.results[1].worst_case
    assert worst.latency.p50_ms == 14
    assert worst.speedup.ratio == pytest.approx(10 / 14)
    assert worst.speedup.verdict == "slower"
    assert report.results[1].sweep is None


def test_sweep_fits_a_line_and_finds_the_break_even(world):
    sweep = world.bench(world.dense(), world.pruned(), sweep=True).results[1].sweep
    assert [(p.requested, p.keep_ratio, p.p50_ms) for p in sweep.points] == [
        (0.2, 0.2, 6),
        (0.5, 0.5, 9),
        (0.8, 0.8, 12),
    ]
    assert (sweep.intercept_ms, sweep.slope_ms) == pytest.approx((4, 10))
    assert sweep.baseline_p50_ms == 10
    assert sweep.break_even_keep == pytest.approx(0.6)


def test_a_lone_target_has_worst_case_and_sweep_but_nothing_to_break_even_with(world):
    (result,) = world.bench(world.pruned(), worst_case=True, sweep=True).results
    assert result.worst_case.speedup is None
    assert result.sweep.baseline_p50_ms is None
    assert result.sweep.break_even_keep is None


@pytest.mark.parametrize("baseline", [1.0, 99.0])
def test_no_break_even_outside_zero_to_one(baseline):
    points = [SweepPoint(0.2, 0.2, 6), SweepPoint(0.8, 0.8, 12)]
    assert fit_sweep(points, baseline).break_even_keep is None
    assert fit_sweep(points[:1], 6).break_even_keep is None


def graph(threshold: float | None) -> bytes:
    """Sums the pixels above the threshold: gathers them where there is one, else takes all."""
    batch = ["B", 3, 2, 2]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, batch)]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)]
    if threshold is None:
        nodes, weights = [helper.make_node("ReduceSum", ["x"], ["logits"])], []
    else:
        nodes = [
            helper.make_node("Reshape", ["x", "shape"], ["tokens"]),
            helper.make_node("Greater", ["tokens", "threshold"], ["keep_mask"]),
            helper.make_node("NonZero", ["keep_mask"], ["columns"]),
            helper.make_node("Transpose", ["columns"], ["rows"]),
            helper.make_node("GatherND", ["tokens", "rows"], ["kept"]),
            helper.make_node("ReduceSum", ["kept"], ["logits"]),
        ]
        weights = [
            helper.make_tensor("shape", TensorProto.INT64, [3], [0, 1, -1]),
            helper.make_tensor("threshold", TensorProto.FLOAT, [], [threshold]),
        ]
        outputs.append(helper.make_tensor_value_info("keep_mask", TensorProto.BOOL, ["B", 1, 12]))
    opset = [helper.make_opsetid("", 20)]
    made = helper.make_graph(nodes, "tokens", inputs, outputs, weights)
    return helper.make_model(made, opset_imports=opset, ir_version=10).SerializeToString()


def test_onnx_graphs_end_to_end():
    pixels = np.random.default_rng(0).random((30, 3, 2, 2), dtype=np.float32)
    targets = [
        BenchTarget("all", lambda: OnnxRuntimeEngine(graph(None), threads=1), False, "x", pixels),
        BenchTarget(
            "kept",
            lambda: OnnxRuntimeEngine(graph(0.5), threads=1),
            True,
            "x",
            pixels,
            keep_output="keep_mask",
            variants={
                "worst-case": lambda: OnnxRuntimeEngine(graph(-1.0), threads=1),
                "keep=0.1": lambda: OnnxRuntimeEngine(graph(0.9), threads=1),
                "keep=0.9": lambda: OnnxRuntimeEngine(graph(0.1), threads=1),
            },
        ),
    ]
    settings = BenchSettings(
        batches=(1, 8),
        warmup_s=0,
        duration_s=0,
        min_samples=120,
        threads=1,
        sweep_tokens=Path("sweep.png"),
    )
    report = run_bench(targets, settings)
    json.dumps(report.to_dict(), allow_nan=False)
    kept = report.results[1].kept
    assert kept.tokens == 12
    assert kept.keep_ratio == pytest.approx((pixels > 0.5).mean())
    measured = [point.keep_ratio for point in report.results[1].sweep.points]
    assert measured == pytest.approx([(pixels > 0.9).mean(), (pixels > 0.1).mean()])
    assert report.results[3].kept.padding > 1
    assert report.results[3].images_timed == 30
