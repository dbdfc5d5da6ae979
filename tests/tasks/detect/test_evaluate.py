"""A detector on annotated pictures: evaluate, verify without a checkpoint, COCO's results."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("pycocotools")

from svit_deploy import api
from svit_deploy.bundle import Bundle
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.errors import InputError, UsageError
from svit_deploy.images import load_images
from svit_deploy.tasks.detect.detections import Detections
from tests.tasks.detect.annotated import annotate

NAMES = ("across.png", "upright.png")


def detect(bundle: Bundle, photos: Path) -> list[Detections]:
    """What the graph finds in each picture by itself."""
    found = []
    with OnnxRuntimeEngine(bundle.model_path, threads=1) as engine:
        for picture in load_images(photos).arrays:
            image = bundle.task.prepare(picture, bundle.config, bundle.sizes)
            (outputs,) = bundle.task.read(
                engine.run(bundle.task.feeds([image])), [image], bundle.config
            )
            found.append(Detections.of(outputs))
    return found


@pytest.fixture(scope="module")
def annotated(export: Any, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A bundle, what it finds in each picture, and annotations that call the best of that true."""
    bundle = export("detect", "dynamic", calibration=photos)
    found = detect(bundle, photos)
    sizes = [picture.shape[:2] for picture in load_images(photos).arrays]
    best = [one.above(float(np.sort(one.scores)[-5:].min(initial=1))) for one in found]
    path = tmp_path_factory.mktemp("annotations") / "truth.json"
    return bundle, found, annotate(path, list(zip(NAMES, sizes, best, strict=True)))


@pytest.mark.slow
def test_average_precision_keep_ratios_and_recorded_images(annotated: Any, photos: Path) -> None:
    bundle, _, truth = annotated
    found = api.evaluate(bundle.path, images=photos, annotations=truth, threads=1)
    figures = {one.key: one for one in found.measures}
    assert list(figures) == [f"{k}_{n}" for k in ("box", "mask") for n in ("ap", "ap50", "ap75")]
    assert figures["box_ap"].value > 0.9  # those beyond the best are wrong and come behind
    assert figures["box_ap"].low is None  # of two images nothing can be said
    assert found.images == 2 and found.batch == 1
    assert len(found.kept.gates) == bundle.config.num_gates
    assert 0 < found.kept.kept_tokens <= found.kept.tokens
    count, judgement = found.recorded
    assert count == 2
    both = judgement.results["average_precision"]["box"]
    assert both["exported"] == both["reference"] == pytest.approx(figures["box_ap"].value)
    batched = api.evaluate(bundle.path, images=photos, annotations=truth, threads=1, batch=2)
    assert [one.value for one in batched.measures] == [one.value for one in found.measures]


@pytest.mark.slow
def test_verify_evaluates_without_the_checkpoint(annotated: Any, photos: Path) -> None:
    bundle, _, truth = annotated
    report = api.verify(bundle.path, images=photos, annotations=truth, threads=1)
    assert report.passed, report.verdict
    measures = report.results["evaluation"]["measures"]
    assert measures["box_ap"]["value"] > 0.9
    assert report.results["average_precision"] == {}  # of the samples nobody knows what is right
    said = "  on 2 of them, recorded at export: box AP"
    assert any(line.startswith(said) for line in report.summary)


@pytest.mark.slow
def test_cocos_results_give_the_same_figures(annotated: Any, photos: Path, tmp_path: Path) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    bundle, found, truth = annotated
    output = tmp_path / "found.json"
    assert api.predict(bundle.path, output, images=photos, annotations=truth, threads=1) == [output]
    results = json.loads(output.read_text())
    assert len(results) == sum(map(len, found))  # all of them: no score is too small
    expected = api.evaluate(bundle.path, images=photos, annotations=truth, threads=1)
    figures = {one.key: one.value for one in expected.measures}
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        loaded = coco.loadRes(str(output))
        for kind, name in (("box", "bbox"), ("mask", "segm")):
            evaluation = COCOeval(coco, loaded, name)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            assert evaluation.stats[0] == pytest.approx(figures[f"{kind}_ap"], abs=1e-12)
    fewer = api.predict(
        *(bundle.path, output), images=photos, annotations=truth, threads=1, min_score=0.5
    )
    assert len(json.loads(fewer[0].read_text())) == sum(len(one.above(0.5)) for one in found)


@pytest.mark.slow
def test_detections_as_json_lines(annotated: Any, photos: Path, tmp_path: Path) -> None:
    bundle, found, _ = annotated
    (file,) = api.predict(bundle.path, tmp_path / "a.jsonl", images=photos, min_score=0.06)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["image"] for row in rows] == list(NAMES)
    for row, expected in zip(rows, found, strict=True):
        shown = expected.above(0.06)
        assert [one["label"] for one in row["detections"]] == shown.labels.tolist()
        assert len(row["kept_tokens"]) == bundle.config.num_gates


@pytest.mark.slow
def test_what_cannot_be_evaluated(
    annotated: Any, export: Any, photos: Path, tmp_path: Path
) -> None:
    bundle, found, truth = annotated
    with pytest.raises(UsageError, match="add --annotations FILE"):
        api.evaluate(bundle.path, images=photos)
    with pytest.raises(UsageError, match="--labels has no meaning"):
        api.evaluate(bundle.path, images=photos, annotations=truth, labels=tmp_path / "x")
    backbone = export("backbone", "dynamic")
    with pytest.raises(UsageError, match="gives features, of which nothing says"):
        api.evaluate(backbone.path, images=photos)
    other = annotate(tmp_path / "other.json", [("other.png", (60, 90), found[0])])
    with pytest.raises(InputError, match=r"across.png is not in the annotations"):
        api.evaluate(bundle.path, images=photos, annotations=other)
    none = found[0].above(2)
    empty = annotate(tmp_path / "empty.json", [(name, (60, 90), none) for name in NAMES])
    with pytest.raises(InputError, match="has no object in these pictures"):
        api.evaluate(bundle.path, images=photos, annotations=empty)
    (tmp_path / "twice.txt").write_text(
        f"{photos / 'across.png'}\n{photos}/../{photos.name}/across.png"
    )
    with pytest.raises(InputError, match="is there 2 times"):
        api.evaluate(bundle.path, images=tmp_path / "twice.txt", annotations=truth)
    with pytest.raises(UsageError, match="name pictures and categories by their ids"):
        api.predict(bundle.path, tmp_path / "a.json", images=photos)
    with pytest.raises(UsageError, match="--annotations has no meaning for jsonl"):
        api.predict(bundle.path, tmp_path / "a.jsonl", images=photos, annotations=truth)
    with pytest.raises(UsageError, match="--top-k has no meaning"):
        api.predict(bundle.path, tmp_path / "a.jsonl", images=photos, top_k=2)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "empty.json", "other.json", "twice.txt",
    ]  # fmt: skip


@pytest.mark.slow
def test_some_of_the_annotated_pictures(annotated: Any, photos: Path) -> None:
    bundle, _, truth = annotated
    found = api.evaluate(bundle.path, images=photos / "across.png", annotations=truth, threads=1)
    assert found.notes == ["1 of the 2 annotated pictures are given"]
    assert found.told == "annotations of truth.json"
