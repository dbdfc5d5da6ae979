"""Drift of keep ratios: found where there is some, and not where chance explains it."""

from __future__ import annotations

import numpy as np
import pytest

from svit_deploy.serve.drift import FEWEST, WINDOW, Drift


def drift_of(samples: np.ndarray, served: np.ndarray) -> Drift:
    drift = Drift(samples, threshold=0.25)
    for ratios in served:
        drift.add(ratios)
    return drift


@pytest.mark.parametrize("samples", [4, 16, 100])
def test_the_same_images_are_hardly_ever_called_drift(samples: int) -> None:
    random = np.random.default_rng(0)
    wrong = 0
    for _ in range(50):
        ratios = random.beta(8, 4, (samples + 400, 4))
        drift = drift_of(ratios[:samples], ratios[samples:])
        wrong += int((drift.index() > drift.limit()).sum())
    assert wrong <= 4  # of 200


def test_other_shares_are_drift_in_their_gate_alone() -> None:
    random = np.random.default_rng(1)
    ratios = random.beta(8, 4, (316, 3))
    ratios[16:, 1] *= 0.5
    drift = drift_of(ratios[:16], ratios[16:])
    assert (drift.index() > drift.limit()).tolist() == [False, True, False]


@pytest.mark.parametrize("other", [0.5, 0.8])
def test_a_share_that_never_changed_and_now_does(other: float) -> None:
    drift = drift_of(np.full((16, 1), 0.7), np.full((200, 1), other))
    assert drift.index()[0] > drift.limit()
    same = drift_of(np.full((16, 1), 0.7), np.full((200, 1), 0.7))
    assert same.index()[0] == pytest.approx(0)


def test_the_index_is_the_sum_over_bins() -> None:
    drift = drift_of(
        np.array([[0.1], [0.2], [0.3], [0.4]]), np.array([[0.05], [0.15], [0.9], [0.95]])
    )
    # The quartiles of all eight are 0.125, 0.25 and 0.525.
    p = (np.array([1, 1, 2, 0]) + 0.25) / 5
    q = (np.array([1, 1, 0, 2]) + 0.25) / 5
    assert drift.index()[0] == pytest.approx(((q - p) * np.log(q / p)).sum())


def test_few_images_say_nothing_and_old_ones_are_forgotten() -> None:
    samples = np.linspace(0.4, 0.6, 20)[:, None]
    drift = drift_of(samples, np.full((FEWEST - 1, 1), 0.9))
    assert drift.limit() == np.inf
    for ratio in np.resize(samples, (WINDOW, 1)):
        drift.add(ratio)
    assert drift.index()[0] < 0.1
    assert drift.compared == WINDOW
