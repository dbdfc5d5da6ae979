"""The report of a GPU, on the fake one: what runs is measured, what does not is a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

import gpu

from svit_deploy.engines.providers import CUDA
from tests.engines.fake_onnxruntime import install_providers
from tests.engines.tensorrt.fake.cuda import Device
from tests.engines.tensorrt.fake.engines import install

ROOT = Path(__file__).parents[2]
ARCH = {
    "family": "svit", "embed_dim": 24, "depth": 4, "num_heads": 3, "patch_size": 8,
    "image_size": 32, "num_classes": 5, "gate_blocks": [1, 2, 3],
    "gate_class_token": [False, False, True], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
    "crop_ratio": 1.0, "interpolation": "bicubic",
}  # fmt: skip


@pytest.fixture
def arguments(tmp_path) -> list[str]:
    """For a small model."""
    arch = tmp_path / "small.yaml"
    arch.write_text(json.dumps(ARCH))
    return ["--arch", str(arch), "--seconds", "0", "--batches", "1,2"]


def test_without_a_gpu_it_says_so(arguments, tmp_path, monkeypatch, capsys):
    device = Device()
    device.count = 0
    install(monkeypatch, device)
    assert gpu.main([*arguments, "--output", str(tmp_path / "out")]) == 4
    assert "no NVIDIA GPU was found" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_every_way_that_there_is(arguments, tmp_path, monkeypatch, fake_process, capsys):
    """One TensorRT, one provider, no plugin library; the page keeps what is around the table."""
    device = Device()
    install(monkeypatch, device)
    install_providers(monkeypatch, device, (CUDA,))
    monkeypatch.setattr(gpu, "TARGETS", {"tensorrt": "tensorrt"})
    page = tmp_path / "gpu.md"
    page.write_text((ROOT / "docs" / "gpu.md").read_text())
    output = tmp_path / "out"
    more = ["--precisions", "fp32", "--page", str(page), "--output", str(output)]
    assert gpu.main([*arguments, *more]) == 0
    rows = [row["cells"] for row in json.loads((output / "gpu.json").read_text())]
    assert [(row[0], row[2], row[3]) for row in rows] == [
        *(("tensorrt", graph, batch) for batch in "12" for graph in ("dense", "budget")),
        *(("ONNX Runtime, cuda", graph, batch) for batch in "12" for graph in gpu.GRAPHS),
    ]
    for row in rows:
        named = dict(zip(gpu.HEADINGS, row, strict=True))
        assert named["verify"] == "passed"
        assert float(named["host to host, ms"]) > 0 and float(named["on the GPU, ms"]) == 2
        assert bool(named["speed-up"]) == bool(named["speed-up of that"]) == (row[2] != "dense")
        assert named["in flight"].endswith(" (2)")
        assert named["CUDA graph"] == ("no" if row[2] == "dynamic" else "yes")
    text = page.read_text()
    assert "Nothing yet" not in text and "NVIDIA Fake 9000 (sm90)" in text
    assert text.index("## Measured") < text.index("| tensorrt | fp32 |") < text.index("## How to")
    assert "no TensorRT plugin library" in text and "provider tensorrt: " in text
    assert capsys.readouterr().out.strip() in text


def test_marks_of_the_page_are_there():
    """Else the command would have nowhere to write to."""
    page = (ROOT / "docs" / "gpu.md").read_text()
    assert "some figures" in gpu.put_between(page, "some figures")
    with pytest.raises(ValueError, match="the page has no"):
        gpu.put_between("# A page", "some figures")


def test_a_cell_does_not_break_the_table():
    row = gpu.Row(("a | b", *[""] * (len(gpu.HEADINGS) - 1)))
    lines = gpu.table([row])
    assert {line.count("|") for line in lines} == {len(gpu.HEADINGS) + 1}
