"""Sound files, the raw material: checkpoints, bundles, images, labels, annotations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from svit_deploy import api
from svit_deploy.images.synthetic import paint_scene
from svit_deploy.loading.layout import to_official
from svit_deploy.methods.families import FAMILIES
from svit_deploy.tasks import TASKS
from svit_deploy.verify.checkpoint import settings_from_manifest
from tests.small_models import small_model
from tests.told import as_options

SIZE = "64x64:64x96:128x128"
"""Of tasks whose images have many sizes."""
CLASSES = 5
QUICK = ["--warmup", "0", "--duration", "0", "--min-samples", "1", "--threads", "1", "--batch", "1"]
"""The shortest bench."""


class Sound:
    """A folder of files, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def weights(self, family: str = "svit", task: str = "classify") -> dict[str, np.ndarray]:
        """A checkpoint's tensors by their official names."""
        keys = FAMILIES[family].keys_of or family
        return to_official(small_model(family, task).weights, keys, TASKS[task])

    def checkpoint(self, family: str = "svit", task: str = "classify") -> Path:
        from safetensors.numpy import save_file

        return self._once(
            f"{family}-{task}.safetensors",
            lambda path: save_file(self.weights(family, task), path),
        )

    def told(self, family: str = "svit", task: str = "classify") -> dict[str, str]:
        """All that a checkpoint's weights do not tell."""
        return settings_from_manifest(small_model(family, task).config, TASKS[task])

    def options(self, family: str = "svit", task: str = "classify") -> list[str]:
        return as_options(self.told(family, task))

    def sizes(self, task: str) -> list[str]:
        """A task, and the image sizes that keep its exports small."""
        size = ["--image-size", SIZE] if TASKS[task].many_sizes else []
        return ["--task", task, *size]

    def arch(self, family: str = "svit") -> dict[str, object]:
        """A whole architecture file."""
        task = FAMILIES[family].backbone.tasks[-1]
        config = small_model(family, task).config
        told = {key: yaml.safe_load(value) for key, value in self.told(family, task).items()}
        sizes = {name: getattr(config, name) for name in ("embed_dim", "depth", "patch_size")}
        gates = {"target_keep": [0.7] * config.num_gates} if "gate_blocks" in told else {}
        return {**told, **sizes, "num_classes": CLASSES, **gates}

    def arch_file(self, family: str = "svit") -> Path:
        text = yaml.safe_dump(self.arch(family))
        return self._once(f"{family}.yaml", lambda path: path.write_text(text))

    def bundle(self, family: str = "svit", task: str = "classify", mode: str | None = None) -> Path:
        """An export, in the method's own token mode by default."""
        many, frames = TASKS[task].many_sizes, small_model(family, task).config.frames
        images = self.videos if frames else self.photos if many else self.images
        return self._once(
            f"{family}-{task}-{mode or 'own'}",
            lambda path: api.export(
                self.checkpoint(family, task),
                path,
                task=task,
                tokens=mode,
                budget="0.6" if mode == "budget" else None,
                calibration=images(),
                image_size=SIZE if many else None,
                overrides=self.told(family, task),
            ),
        )

    def pipeline(self) -> Path:
        """Two exports, to `out` in the folder where it is run."""
        steps = [
            {
                "export": {
                    "source": str(self.checkpoint()),
                    "output": f"out/{mode}",
                    "tokens": mode,
                    "set": self.told(),
                }
            }
            for mode in ("dense", "masked")
        ]
        text = yaml.safe_dump({"steps": steps})
        return self._once("pipeline.yaml", lambda path: path.write_text(text))

    def images(self, count: int = 3) -> Path:
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (count, 60, 56, 3), np.uint8)
        labels = np.arange(count) % CLASSES

        def save(path: Path) -> None:
            with path.open("wb") as file:
                np.savez(file, images=pixels, labels=labels)

        return self._once(f"{count}/images.npz", save)

    def videos(self) -> Path:
        pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 28, 30, 3), np.uint8)

        def save(path: Path) -> None:
            with path.open("wb") as file:
                np.savez(file, videos=pixels)

        return self._once("videos.npz", save)

    def photos(self) -> Path:
        """A folder of two painted pictures."""

        def paint(folder: Path) -> None:
            folder.mkdir()
            for name, size in (("across", (60, 90)), ("upright", (90, 50))):
                picture = paint_scene(*size, np.random.default_rng(len(name)))
                Image.fromarray(picture).save(folder / f"{name}.png")

        return self._once("photos", paint)

    def annotations(self) -> dict[str, object]:
        """COCO's format, for the photos: a polygon, an RLE, and a compressed one."""
        from pycocotools import mask

        sizes = {"across.png": (60, 90), "upright.png": (90, 50)}
        corner = [4, 4, 34, 4, 34, 40, 4, 40]
        crowd = {"size": [90, 50], "counts": [100, 200, 90 * 50 - 300]}
        packed = crowd | {"counts": mask.frPyObjects(crowd, 90, 50)["counts"].decode()}
        shapes: list[Any] = [[corner], crowd, packed]
        return {
            "info": {"description": "two pictures"},
            "images": [
                {"id": i, "file_name": name, "height": height, "width": width}
                for i, (name, (height, width)) in enumerate(sizes.items(), 1)
            ],
            "annotations": [
                {
                    "id": i,
                    "image_id": image,
                    "category_id": category,
                    "bbox": [4, 4, 30, 36],
                    "area": 1080,
                    "iscrowd": int(isinstance(shape, dict)),
                    "segmentation": shape,
                }
                for i, (image, category, shape) in enumerate(
                    zip((1, 2, 2), (1, 2, CLASSES), shapes, strict=True), 1
                )
            ],
            "categories": [{"id": i, "name": f"class {i}"} for i in range(1, CLASSES + 1)],
        }

    def copy(self, bundle: Path, folder: Path) -> Path:
        """A bundle of one's own, in a case's folder."""
        return Path(shutil.copytree(bundle, folder / "bundle"))

    def _once(self, name: str, make: Callable[[Path], object]) -> Path:
        path = self.folder / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            part = path.with_name(f"part-{path.name}")
            make(part)
            part.rename(path)
        return path


def accept_changes(bundle: Path) -> None:
    """Makes the manifest fit the files, as whoever can write the folder would."""
    from svit_deploy.io.files import hash_file

    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in manifest["files"]:
        file = bundle / name
        manifest["files"][name] = {"size_bytes": file.stat().st_size, "sha256": hash_file(file)}
    path.write_text(json.dumps(manifest))
