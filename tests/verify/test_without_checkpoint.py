"""Verifying with labelled images and no checkpoint: what is compared, what is only evaluated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from svit_deploy import api
from svit_deploy.bundle import Bundle
from svit_deploy.errors import InputError, UsageError
from svit_deploy.images import ImageSet


def test_labelled_images_are_evaluated(
    digits_bundle: Bundle, heldout: ImageSet, tmp_path: Path
) -> None:
    report = api.verify(digits_bundle.path, images=heldout[:40], threads=1)
    assert report.passed, report.verdict
    assert report.images == 8  # compared are the recorded ones
    assert report.verdict.endswith("against the reference recorded at export (8 images)")
    results = report.to_dict()["results"]
    expected = api.evaluate(digits_bundle.path, images=heldout[:40], threads=1).results()
    found = results["evaluation"]
    for name in ("measures", "gates", "mean_kept_tokens", "recorded", "images"):
        assert found[name] == expected[name]
    assert found["recorded"] == {
        "images": 8,
        **dict.fromkeys(("top1_accuracy", "reference_top1_accuracy"), 1.0),
        **dict.fromkeys(("top5_accuracy", "reference_top5_accuracy"), 1.0),
    }
    assert "the exported model on 40 images (labels of the images' own file):" in report.summary
    assert "  on 8 of them, recorded at export: top-1 accuracy 100.00%, reference 100.00%" in (
        report.summary
    )
    assert (
        "what the reference makes of 32 other images is not known without --against CHECKPOINT"
    ) in report.notes
    assert any(note.startswith("without --against CHECKPOINT these") for note in report.notes)
    json.dumps(results, allow_nan=False)


def test_images_that_were_all_recorded_need_no_note(
    digits_bundle: Bundle, heldout: ImageSet
) -> None:
    report = api.verify(digits_bundle.path, images=heldout[:8], threads=1)
    assert not any("is not known" in note for note in report.notes)


def test_wrong_labels_are_no_fault_of_the_export(
    digits_bundle: Bundle, digit_pictures: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("0\n" * 40)
    report = api.verify(digits_bundle.path, images=digit_pictures, labels=labels, threads=1)
    assert report.passed
    assert report.results["evaluation"]["measures"]["top1_accuracy"]["value"] < 0.3


def test_what_is_not_finite_on_the_images_given_is_refused(
    digits_bundle: Bundle, heldout: ImageSet, after_run: Any
) -> None:
    def poison(feeds: Any, found: Any) -> None:
        if len(feeds.get("images", ())) == 12:  # of the images given, and of no check
            found["logits"][3] = np.inf

    after_run(poison)
    report = api.verify(digits_bundle.path, images=heldout[8:20], threads=1)
    assert "finite on the images given: NaN or infinity in 1 of 12 images" in report.verdict


def test_a_broken_bundle_is_not_evaluated(
    digits_bundle: Bundle, heldout: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("svit_deploy.verify.run.evaluate_labelled", fail)
    monkeypatch.setattr(
        "svit_deploy.verify.parity.random_operators", lambda _: ["x (RandomUniform)"]
    )
    report = api.verify(digits_bundle.path, images=heldout[:8], threads=1)
    assert not report.passed
    assert "evaluation" not in report.results


def test_images_that_nothing_labels(digits_bundle: Bundle, digit_pictures: Path) -> None:
    with pytest.raises(UsageError, match="nothing tells the classes"):
        api.verify(digits_bundle.path, images=digit_pictures / "3")
    with pytest.raises(InputError, match="does not exist"):
        api.verify(digits_bundle.path, images=digit_pictures, labels=digit_pictures / "none")
