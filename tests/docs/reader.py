"""A reader of the pages: types their commands, with a small model and small pictures.

What cannot run here is read by the very same command line, up to where its work would begin.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import io
import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from packaging.requirements import Requirement
from PIL import Image

from svit_deploy import api
from svit_deploy.bench.labels import split_target
from svit_deploy.bench.settings import BenchSettings
from svit_deploy.cli import main
from svit_deploy.images import synthetic_images
from svit_deploy.loading.presets import PRESETS
from svit_deploy.methods.families import FAMILIES
from svit_deploy.model.arch import Arch
from svit_deploy.model.sizes import SizeRange
from svit_deploy.tasks import features
from tests.docs.pages import ROOT, Block
from tests.docs.project import EXTRAS
from tests.told import checkpoint_of

CHECKPOINTS = {"svit_s": "svit_cls", "svit_adapter_s": "svit_mask_rcnn", "deit_s": "deit"}
CHECKPOINTS |= {"video_swin_t": "video_swin"}
SMALLER = {"64x64:800x1216:1344x1344": "64x64:96x128:128x160", "800x1216": "96x128"}
QUICK = {
    "bench": {"warmup_s": 0, "duration_s": 0, "min_samples": 1, "threads": 1},
    "verify": {"threads": 1, "repeats": 2},
    "evaluate": {"threads": 1},
    "tune": {
        "quick": True,
        "threads": "1",
        "modes": "dynamic,dense",
        "engines": "onnxruntime",
        "precisions": "fp32",
        "verify_images": 2,
    },
    "predict": {"threads": 1},
    "visualize": {"threads": 1},
}
OUTPUTS = ("output", "sweep_tokens")
ELSEWHERE = ("tensorrt_include",)  # not the reader's: a folder of the machine


def lay_out(folder: Path) -> None:
    """What a reader has: checkpoints, pictures, labels and annotations."""
    for name, golden in CHECKPOINTS.items():
        shutil.copy(checkpoint_of(golden), folder / f"{name}.pth")
    for name, count in (("val", 8), ("train", 8), ("val2017", 2)):
        (folder / name).mkdir()
        for i, picture in enumerate(synthetic_images(count, (60, 80), seed=count).arrays):
            Image.fromarray(picture).save(folder / name / f"{i:012d}.jpg")
    for name in ("clips/a", "clips/b"):
        shutil.copytree(folder / "val", folder / name)
    (folder / "clips.txt").write_text("a,3\nb,3\n")
    shutil.copy(folder / "val2017" / f"{0:012d}.jpg", folder / "street.jpg")
    (folder / "val.txt").write_text("3\n" * 8)
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "height": 60, "width": 80} for i in range(2)]
    square = {"bbox": [10, 10, 20, 20], "area": 400, "segmentation": [[10, 10, 30, 10, 30, 30]]}
    truth = [{"id": 1, "image_id": 0, "category_id": 1, "iscrowd": 0, **square}]
    classes = [{"id": 1 + i, "name": f"class {i}"} for i in range(80)]
    annotations = {"images": images, "annotations": truth, "categories": classes}
    (folder / "instances_val2017.json").write_text(json.dumps(annotations))


class Reader:
    """Types blocks, one after the other, in one folder."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.patch, self.made, self.names = patch, set[Path](), dict[str, Any]()
        lay_out(folder)
        patch.chdir(folder)
        # The goldens' sizes; their depth, heads and gates are those of the published models.
        for name, changes in (
            ("svit_s", {"embed_dim": 48, "patch_size": 4, "image_size": (32, 32)}),
            ("svit_adapter_s", {"embed_dim": 48}),
        ):
            patch.setitem(PRESETS, name, dataclasses.replace(PRESETS[name], **changes))
        backbone = type(FAMILIES["svit_adapter"].backbone)
        official = backbone.dims_from_arch

        def smaller(self: Any, family: str, arch: Arch) -> Any:
            return dataclasses.replace(official(self, family, arch), conv_dim=16)

        patch.setattr(backbone, "dims_from_arch", smaller)
        sizes = SizeRange.parse(SMALLER["64x64:800x1216:1344x1344"], features.STEP)
        patch.setattr(features, "DEFAULT_SIZES", sizes)
        patch.setattr(features.Features, "typical_size", sizes.opt)
        for name, options in QUICK.items():
            verb = getattr(api, name)
            quick = functools.update_wrapper(functools.partial(verb, **options), verb)
            patch.setattr(api, name, quick)

    def read(self, block: Block) -> None:
        """Runs a block, or parses its commands if it says why it cannot run."""
        if block.language == "python":
            exec(compile(block.content, str(block), "exec"), self.names)
            return
        for program, *words in block.commands:
            print(f"{block}: {program} {' '.join(words)}")
            for full, small in SMALLER.items():
                words = [word.replace(full, small) for word in words]
            if "|" in (line := [program, *words]):
                end = line.index("|")
                piped = io.TextIOWrapper(io.BytesIO(tried(line[:end]).encode()))
                self.patch.setattr(sys, "stdin", piped)
                program, *words = line[end + 1 :]
            getattr(self, f"_{program.replace('-', '_')}")(block, words)

    def _svit_deploy(self, block: Block, args: list[str]) -> None:
        if block.reason is None:
            assert main(args) == 0
            return
        with self.patch.context() as patch:
            for module, name in self._work():
                patch.setattr(f"{module}.{name}", self._stop(getattr(sys.modules[module], name)))
            assert main(args) == 0

    @staticmethod
    def _work() -> Iterator[tuple[str, str]]:
        """Where the commands' work begins."""
        import svit_deploy.plugins.build

        for name, value in vars(api).items():
            if callable(value) and getattr(value, "__module__", "") == api.__name__:
                yield api.__name__, name
        yield svit_deploy.plugins.build.__name__, "build_plugins"
        yield svit_deploy.plugins.__name__, "library_path"

    def _stop(self, work: Callable[..., Any]) -> Callable[..., None]:
        def stop(*args: Any, **options: Any) -> None:
            self._check(inspect.signature(work).bind(*args, **options).arguments)
            raise typer.Exit

        return stop

    def _check(self, arguments: Mapping[str, Any]) -> None:
        """What a command reads is there, or an earlier one makes it; nothing is made twice."""
        for name, path in paths_in(arguments):
            known = path.exists() or bool(self.made & {path, *path.parents})
            if name in OUTPUTS:
                assert not known or arguments.get("force"), f"{path} was made before"
                self.made.add(path)
            else:
                assert known or name in ELSEWHERE, f"nothing made {path}"

    def _python(self, block: Block, args: list[str]) -> None:
        """A script of the project, up to where it has read its options."""
        assert block.reason is not None, "scripts measure for minutes"
        folders = (ROOT, (ROOT / block.page).parent)
        script = next(f / args[0] for f in folders if (f / args[0]).is_file())
        parse = argparse.ArgumentParser.parse_args

        def stop(parser: argparse.ArgumentParser, *rest: Any) -> None:
            self._check(vars(parse(parser, *rest)))
            raise SystemExit

        with self.patch.context() as patch, pytest.raises(SystemExit) as end:
            patch.setattr(argparse.ArgumentParser, "parse_args", stop)
            patch.setattr(sys, "argv", [str(script), *args[1:]])
            patch.syspath_prepend(str(script.parent))
            runpy.run_path(str(script), run_name="__main__")
        assert not end.value.code

    def _make(self, block: Block, args: list[str]) -> None:
        tried(["make", "--dry-run", "--directory", str(ROOT), *args])

    def _pip(self, block: Block, args: list[str]) -> None:
        assert args[0] == "install"
        for wanted in map(Requirement, args[1:]):
            assert wanted.name != "svit-deploy" or wanted.extras <= EXTRAS.keys()

    def _cmake(self, block: Block, args: list[str]) -> None:
        """Only whether there is something to build; tests/examples builds it."""
        assert block.reason is not None
        if "-S" in args:
            assert (ROOT / args[args.index("-S") + 1] / "CMakeLists.txt").is_file()

    def _svit_run(self, block: Block, args: list[str]) -> None:
        assert block.reason is not None
        self._check({"bundle": Path(args[0]), "picture": Path(args[1])})

    def _polygraphy(self, block: Block, args: list[str]) -> None:
        self._check({"model": Path(args[1])})
        tried([str(Path(sys.executable).with_name("polygraphy")), *args, "--gen-script", "-"])


def paths_in(arguments: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """The paths among values, in settings and lists, too, by the names of their arguments.

    What runs a path, behind its @, is read and left out.
    """
    for name, value in arguments.items():
        if dataclasses.is_dataclass(value):
            yield from paths_in({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, Path):
                yield name, split_target(item, BenchSettings())[0]


def tried(command: Sequence[str]) -> str:
    """What a program of others prints."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    return done.stdout
