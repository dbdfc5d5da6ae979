"""What a task is: what comes out of a model, and how two results are compared, recorded, drawn.

A task states what differs in one module or folder of this package. The pipeline (export, verify,
bench, predict, ...) asks it and knows none by name; a task knows no bundle, report or engine's
kind.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from svit_deploy import names
from svit_deploy.backbones.writer import GraphWriter
from svit_deploy.engines.base import Engine
from svit_deploy.errors import InputError
from svit_deploy.images import ImageSet
from svit_deploy.images.medium import PICTURES, Medium
from svit_deploy.images.prepared import Prepared
from svit_deploy.model.arch import Arch
from svit_deploy.model.class_names import ClassNames
from svit_deploy.model.config import ModelConfig, Preprocess
from svit_deploy.model.keys import Shape, Tensors
from svit_deploy.model.result import Outputs
from svit_deploy.model.sizes import Size, SizeRange
from svit_deploy.tasks.limits import Limits
from svit_deploy.tasks.painted import paint
from svit_deploy.tasks.runs import Judgement, Part, Runs, Show, StageLimit
from svit_deploy.tasks.scores import Scores, Truth

if TYPE_CHECKING:
    from svit_deploy.backbones.reference import BackboneReference

Arrays = dict[str, np.ndarray]


class Task:
    """What comes out of a model. A task states every attribute without a default.

    Attributes:
        name: as after `--task`.
        noun: what comes out, in the plural.
        many_sizes: whether one graph serves images of many sizes, so that budgets are shares.
        samples: images that an export records.
        painted: of them, how many are painted where none are given.
        calibration_images: most images that choose thresholds and budgets; None for all.
        random_images, random_size: images, and their (height, width), that set the gates of random
            weights; the model's own size if None.
        together: images that the reference and the graph get at once in `verify`.
        engine_batch: batch sizes of an engine, if nobody says.
        limits: by precision; a precision that is missing cannot be exported.
        numbers: frozen dataclass of `ModelConfig.task`; None without numbers of its own.
        settings: names among the numbers that say how images become inputs, given after `--set`.
        crops: whether a configuration's crop ratio and interpolation say how pictures are scaled.
        medium: what images are read from, pictures by default; see `reader`.
        many_rows: whether an image is several rows of the graph's input, so that its batch counts
            those.
        foreign_fields: names in a manifest's configuration that mean nothing to the task.
        prefixes: what the official keys of its heads' weights begin with; empty without heads.
        heads: frozen dataclass of `Dims.heads`; None without heads.
        typical_size: (height, width) of most images; None for the model's own.
        inputs: names of the graph's inputs.
        packages: modules beside PyTorch that the reference needs, with what each is for.
        staged: what `stages` are of, in the plural.
        takes_labels: whether images' classes tell how good a model is.
        takes_truth: whether annotations of images do; see `truth`.
        formats: what `predict` writes, the usual one first.
        shown_by: fields of `Show` that have a meaning.
        shakes: by which share of its size each place of the `inner` values is moved, by precision,
            to see what rounding in front of the heads does to what they find; empty without heads.
        no_results: what a report's results say before the task has judged anything.
    """

    name: ClassVar[str]
    noun: ClassVar[str]
    many_sizes: ClassVar[bool]
    samples: ClassVar[int]
    painted: ClassVar[int]
    calibration_images: ClassVar[int | None] = None
    random_images: ClassVar[int] = 32
    random_size: ClassVar[tuple[int, int] | None] = None
    together: ClassVar[int]
    engine_batch: ClassVar[str]
    limits: ClassVar[Mapping[str, Limits]]
    numbers: ClassVar[type | None] = None
    settings: ClassVar[tuple[str, ...]] = ()
    crops: ClassVar[bool] = True
    medium: ClassVar[Medium] = PICTURES
    many_rows: ClassVar[bool] = False
    foreign_fields: ClassVar[tuple[str, ...]] = ()
    prefixes: ClassVar[tuple[str, ...]] = ()
    heads: ClassVar[type | None] = None
    typical_size: ClassVar[tuple[int, int] | None] = None
    inputs: ClassVar[tuple[str, ...]] = (names.INPUT,)
    packages: ClassVar[tuple[tuple[str, str], ...]] = ()
    draws: ClassVar[bool] = False
    formats: ClassVar[tuple[str, ...]] = ()
    shown_by: ClassVar[tuple[str, ...]] = ()
    staged: ClassVar[str]
    takes_labels: ClassVar[bool] = False
    takes_truth: ClassVar[bool] = False
    shakes: ClassVar[Mapping[str, float]] = MappingProxyType({})
    no_results: ClassVar[Mapping[str, Any]]

    def check_precision(self, precision: str) -> None:
        """Raises UsageError for a precision that the task's results do not survive."""

    # What a checkpoint tells.

    def infer_heads(self, tensors: Tensors, dims: Any) -> Any:
        """A backbone's sizes with those of the task's heads; raises InputError as `Tensors`."""
        return dims

    def heads_from_arch(self, dims: Any, arch: Arch) -> Any:
        """`infer_heads` for random weights."""
        return dims

    def head_shapes(self, dims: Any) -> dict[str, Shape]:
        """Canonical name to shape, for every tensor of the heads; names are the official ones."""
        return {}

    def config_numbers(self, dims: Any, args: Mapping[str, Any]) -> Any:
        """An instance of `numbers`, of what the weights and a training's arguments tell."""
        return None

    def preprocess(self, arch: Arch) -> Preprocess:
        """From a picture to the input, as the model was trained."""
        return Preprocess(arch.mean, arch.std, arch.crop_ratio, arch.interpolation)

    def check(self, config: ModelConfig) -> None:
        """Raises InputError for numbers that the task cannot have."""

    # Images.

    def parse_sizes(self, text: str | None) -> SizeRange | None:
        """The sizes that a user asks for, as after `--image-size`; raises UsageError."""
        raise NotImplementedError

    def sizes(self, config: ModelConfig, wanted: SizeRange | None) -> SizeRange:
        """The sizes that a graph of the model runs.

        Args:
            wanted: what the user asks for, if anything.
        """
        raise NotImplementedError

    def reader(self, config: ModelConfig) -> Medium:
        """The medium, as it is read for a model."""
        return self.medium

    def paint(
        self, config: ModelConfig, sizes: SizeRange, typical: int, seen: Collection[Size] = ()
    ) -> tuple[list[Prepared], ImageSet]:
        """Painted images, of which those of the typical size are so many."""
        return paint(config, sizes, typical, seen)

    def excerpt(self, image: Prepared) -> Prepared:
        """What of an image an export records, `verify` compares and `bench` runs."""
        return image

    def prepare(self, picture: np.ndarray, config: ModelConfig, sizes: SizeRange) -> Prepared:
        """An RGB picture, uint8 `[h, w, 3]`, or what the reader gives, as the graph gets it.

        Raises:
            InputError: it cannot be given a size that the graph runs.
        """
        raise NotImplementedError

    def feeds(self, images: Sequence[Prepared]) -> Arrays:
        """The graph's inputs for images of one size."""
        raise NotImplementedError

    def fed(self, feeds: Mapping[str, np.ndarray]) -> list[Prepared]:
        """The inverse of `feeds`; shapes and types are those of the graph's inputs."""
        return [Prepared.whole(pixels) for pixels in feeds[names.INPUT]]

    # The graph.

    def write(self, writer: GraphWriter) -> None:
        """Writes a whole graph: the backbone's part, and what the task makes of it."""
        raise NotImplementedError

    def outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs that the task is about."""
        raise NotImplementedError

    def inner(self) -> tuple[str, ...]:
        """Values inside the graph that are compared beside its outputs, in the task's order."""
        return ()

    def engine_graph(self, folder: Path, model: str) -> AbstractContextManager[Path]:
        """Lends what of the graph `folder / model` an engine computes; writes the rest beside it.

        By default an engine computes all of it.
        """
        return contextlib.nullcontext(folder / model)

    engine_files: ClassVar[tuple[str, ...]] = ()
    """Files beside an engine that compute what it does not."""

    def with_rest(self, engine: Engine, folder: Path) -> Engine:
        """What runs the whole model, given its engine; see `engine_graph`."""
        return engine

    # The reference.

    def reference_outputs(
        self, backbone: BackboneReference, output: Any, images: Sequence[Prepared], see: Any
    ) -> list[Outputs]:
        """What the plain PyTorch forward makes of a backbone's output, image by image.

        Args:
            output: what the backbone's forward pass returned.
            see: is told of the `inner` values, as `backbones.reference.See`.
        """
        raise NotImplementedError

    # Results.

    def label(self, outputs: Outputs) -> int:
        """The class that outputs tell, of a task that takes labels."""
        raise NotImplementedError

    def read(
        self, outputs: Mapping[str, np.ndarray], images: Sequence[Prepared], config: ModelConfig
    ) -> list[Outputs]:
        """A run's outputs, image by image, as far as the graph shows them."""
        raise NotImplementedError

    def split(self, outputs: Mapping[str, np.ndarray], images: int) -> list[Arrays]:
        """A run's outputs as they are, each image's by themselves, as of a batch of one."""
        return [{name: array[i : i + 1] for name, array in outputs.items()} for i in range(images)]

    def join(self, parts: Sequence[Arrays]) -> Arrays:
        """The inverse of `split`, of some or all outputs.

        Raises:
            InputError: images of different sizes have one of another shape each.
        """
        for name, first in parts[0].items():
            if any(part[name].shape[1:] != first.shape[1:] for part in parts):
                raise InputError(
                    f"{name!r} has another shape for each image size", "give images of one size"
                )
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def record(self, parts: Sequence[Part], config: ModelConfig) -> Arrays:
        """Samples as named arrays, for reference.npz."""
        raise NotImplementedError

    def restore(
        self,
        load: Callable[[Sequence[str]], Arrays],
        count: int,
        config: ModelConfig,
        sizes: SizeRange,
        together: int,
    ) -> list[Part]:
        """The inverse of `record`, of arrays that may come from anywhere.

        Args:
            load: reads those of some names that the file has.
            count: images that the manifest tells of.
            together: images of a part.

        Raises:
            ValueError: an array is missing, or has another type or shape; in words.
        """
        raise NotImplementedError

    # What `predict` shows.

    def shown(self, outputs: Outputs, show: Show) -> Outputs:
        """What of an image's outputs to show."""
        return outputs

    def draw(self, picture: np.ndarray, shown: Outputs, classes: ClassNames) -> np.ndarray:
        """A picture, uint8 `[h, w, 3]`, with what came out over it."""
        return picture

    def describe(self, shown: Outputs, classes: ClassNames) -> dict[str, Any]:
        """What came out for an image, JSON-able."""
        return {}

    # Parity.

    def widened(self, limits: Any, exact: Any, allowed: Mapping[str, float]) -> Any:
        """Limits of a half precision with those of the outputs measured.

        Args:
            exact: the limits of float32.
            allowed: what `stage_errors` may show beside, by name.
        """
        raise NotImplementedError

    def swayed(self, limits: Any, runs: Runs) -> Any:
        """Limits with room for what rounding in front of the heads does to what they find.

        Args:
            runs: the reference with what its heads read off by rounding, and as it is.
        """
        return limits

    def stages(self, limits: Any, alone: bool) -> list[StageLimit]:
        """The task's own stages, behind the backbone's.

        Args:
            limits: those of the precision.
            alone: whether each runs on the reference's values, so that errors do not add up.
        """
        raise NotImplementedError

    def fed_maps(self, config: ModelConfig) -> dict[str, tuple[int | str, ...]]:
        """Inner values that the task's heads are given by themselves, with their shapes."""
        return {}

    def stage_errors(self, runs: Runs) -> dict[str, float]:
        """The error of each of `stages`; the first run was on the reference's values."""
        raise NotImplementedError

    def judge_heads(self, runs: Runs) -> tuple[str, bool, str] | None:
        """A check of the heads by themselves, where `stages` cannot tell."""
        return None

    def compare(self, runs: Runs) -> tuple[bool, str]:
        """Whether two runs on the same decisions agree, and that in words."""
        raise NotImplementedError

    def finite(self, outputs: Outputs) -> bool:
        """Whether what came out is a number everywhere."""
        raise NotImplementedError

    def judge(self, shown: Sequence[Outputs], runs: Runs) -> Judgement:
        """The outputs of the whole model.

        Args:
            shown: of the file as it is.
            runs: the same beside the reference's; images that flipped a decision were run again,
                on the reference's decisions.
        """
        raise NotImplementedError

    def truth(self, path: Path, config: ModelConfig, *, objects: bool = True) -> Truth:
        """Annotations of images; by default a task takes none.

        Args:
            objects: whether to read what is annotated; else ids alone are known.

        Raises:
            SvitDeployError: they cannot be read, or do not fit the model.
        """
        raise NotImplementedError

    # How good a model is.

    def scores(self, config: ModelConfig, truth: Any = None) -> Scores:
        """What collects how good outputs are.

        Args:
            truth: from `truth`, where the task takes it; else images bring their labels.
        """
        raise NotImplementedError

    def judge_scores(self, mine: Scores, theirs: Scores) -> Judgement:
        """How good the exported model is, and the reference, on the same images."""
        raise NotImplementedError
