"""SViT-S in float32 and in int8 on ONNX Runtime and OpenVINO, interleaved in one run.

Random weights from `svit-deploy init`, as in svit_s.py.

    python benchmarks/int8.py --output /tmp/int8
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from svit_s import IMAGES, RATIOS, markdown, measure

from svit_deploy import api
from svit_deploy.images import synthetic_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engines", default="onnxruntime,openvino")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--seconds", type=float, default=20.0, help="per graph and batch size")
    options = parser.parse_args()
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    images = output / "images.npz"
    np.savez(images, images=np.stack(synthetic_images(IMAGES, (224, 224)).arrays))
    checkpoint = output / "svit_s.pth"
    api.init("svit_s", checkpoint, keep_ratio=RATIOS, force=True)
    bundles = []
    for precision in ("fp32", "int8"):
        for tokens in ("dense", "dynamic", "budget"):
            bundles.append(output / f"{tokens}-{precision}")
            api.export(
                checkpoint,
                bundles[-1],
                tokens=tokens,
                budget=RATIOS if tokens == "budget" else None,
                precision=precision,
                calibration=images,
                batch="1:8:32",
                force=True,
            )
    engines = options.engines.split(",")
    targets = [Path(f"{bundle}@{engine}") for engine in engines for bundle in bundles]
    print(markdown(measure(targets, images, options)))


if __name__ == "__main__":
    main()
