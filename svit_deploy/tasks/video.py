"""Recognition of videos: a class for each video, out of the views that are taken of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from svit_deploy import names
from svit_deploy.errors import InputError
from svit_deploy.images import ImageSet
from svit_deploy.images.medium import Medium
from svit_deploy.images.prepared import Prepared
from svit_deploy.images.preprocess import normalise
from svit_deploy.images.sets import synthetic_videos
from svit_deploy.images.videos import Sampling, Videos
from svit_deploy.model.arch import Arch
from svit_deploy.model.class_names import ClassNames
from svit_deploy.model.config import ModelConfig, Preprocess
from svit_deploy.model.result import Outputs
from svit_deploy.model.sizes import Size, SizeRange
from svit_deploy.tasks.accuracy import Accuracy
from svit_deploy.tasks.classify import LABELS, PROBABILITIES, Classify
from svit_deploy.tasks.recorded import Wanted
from svit_deploy.tasks.samples import prepare_all
from svit_deploy.tasks.scores import Scores
from svit_deploy.tasks.task import Arrays

if TYPE_CHECKING:
    from collections.abc import Collection

    from svit_deploy.backbones.reference import BackboneReference

VIEW_LOGITS = "view_logits"
PROB, SCORE, NONE = AVERAGES = "prob", "score", "none"
VIEWS = 2
"""Of a sample: more would show nothing else of a graph that runs each view by itself."""
MOST = {"clips": 100, "interval": 1000}


@dataclass(frozen=True)
class VideoNumbers:
    """How a video becomes views, and their results one; the defaults are those of Kinetics.

    Attributes:
        interval: from one frame of a clip to the next.
        clips: of a video.
        crops: of a clip, 1 or 3 along its longer side.
        uniform: one clip of the whole video instead, its frames at even distances.
        average: over the views, of their probabilities (`prob`) or logits (`score`); or `none`.
    """

    interval: int = 2
    clips: int = 4
    crops: int = 3
    uniform: bool = False
    average: str = PROB


class Video(Classify):
    """A sample is a video, `[views, 3, T, H, W]`; the graph's batch is of views.

    `logits` `[K]` of a video are the logarithm of its probabilities, the mean of those of its
    views, or the mean of their logits; without an average `[views, K]`.
    """

    name = "video"
    samples = painted = 2
    calibration_images = 32
    together = 1
    engine_batch = "1:4:4"
    numbers: ClassVar[type | None] = VideoNumbers
    settings: ClassVar[tuple[str, ...]] = ("interval", "clips", "crops", "uniform", "average")
    prefixes = ("cls_head.",)
    crops = False
    medium: ClassVar[Medium] = Videos()
    many_rows = True
    compared = VIEW_LOGITS

    def config_numbers(self, dims: Any, args: Mapping[str, Any]) -> VideoNumbers:
        return VideoNumbers()

    def preprocess(self, arch: Arch) -> Preprocess:
        return Preprocess(arch.mean, arch.std, 1.0, "bilinear")

    def check(self, config: ModelConfig) -> None:
        numbers = config.task
        for name, most in MOST.items():
            if not 1 <= (value := getattr(numbers, name)) <= most:
                raise InputError(f"{name} is {value}", f"give 1 to {most}")
        if numbers.crops not in (1, 3):
            raise InputError(f"crops is {numbers.crops}", "give 1 or 3")
        if numbers.average not in AVERAGES:
            raise InputError(f"average is {numbers.average!r:.40}", f"give {', '.join(AVERAGES)}")
        if numbers.uniform and numbers.clips != 1:
            raise InputError(
                f"uniform takes one clip of a video, and clips is {numbers.clips}",
                "add --set clips=1, or leave uniform out",
            )

    # Videos.

    def sizes(self, config: ModelConfig, wanted: SizeRange | None) -> SizeRange:
        return SizeRange.single(config.image_size, frames=config.frames)

    def reader(self, config: ModelConfig) -> Videos:
        told: VideoNumbers = config.task
        return Videos(
            Sampling(config.frames, told.interval, told.clips, told.uniform, config.image_size)
        )

    def prepare(self, picture: np.ndarray, config: ModelConfig, sizes: SizeRange) -> Prepared:
        """The views of clips uint8 `[clips, T, h, w, 3]`, crop by crop."""
        if picture.ndim != 5:
            raise InputError("a picture is no video", f"give {self.medium.forms}")
        places = crop_places(picture.shape[2:4], sizes.opt, config.task.crops)
        height, width = sizes.opt
        crops = [
            crop
            for top, left in places
            for crop in picture[:, :, top : top + height, left : left + width]
        ]
        views = np.empty((len(crops), *config.at(sizes.opt).input_shape), np.float32)
        for view, crop in zip(views, crops, strict=True):
            for number, frame in enumerate(crop):
                view[:, number] = normalise(frame, config.preprocess)
        return Prepared.whole(views)

    def paint(
        self, config: ModelConfig, sizes: SizeRange, typical: int, seen: Collection[Size] = ()
    ) -> tuple[list[Prepared], ImageSet]:
        videos = synthetic_videos(typical, config.frames, sizes.opt)
        return list(map(self.excerpt, prepare_all(videos, self, config, sizes))), videos

    def excerpt(self, image: Prepared) -> Prepared:
        """The first views: a copy, or all of them would stay in memory."""
        return replace(image, pixels=image.pixels[:VIEWS].copy())

    def feeds(self, images: Sequence[Prepared]) -> Arrays:
        """Views, those of one video after those of another."""
        if not images:
            raise InputError("there is no video to run", "give one or more")
        return {names.INPUT: np.concatenate([image.pixels for image in images])}

    def fed(self, feeds: Mapping[str, np.ndarray]) -> list[Prepared]:
        """Views that nothing says to be of one video are one each."""
        return [Prepared.whole(pixels[None]) for pixels in feeds[names.INPUT]]

    # Results.

    def reference_outputs(
        self, backbone: BackboneReference, output: Any, images: Sequence[Prepared], see: Any
    ) -> list[Outputs]:
        rows = super().reference_outputs(backbone, output, images, see)
        logits = np.stack([row[names.LOGITS] for row in rows])
        return self.read({names.LOGITS: logits}, images, backbone.config)

    def read(
        self, outputs: Mapping[str, np.ndarray], images: Sequence[Prepared], config: ModelConfig
    ) -> list[Outputs]:
        ends = np.cumsum([len(image.pixels) for image in images])
        views = np.split(outputs[names.LOGITS], ends[:-1])
        average = config.task.average
        return [{names.LOGITS: averaged(one, average), VIEW_LOGITS: one} for one in views]

    def label(self, outputs: Outputs) -> int:
        return int(np.argmax(np.atleast_2d(outputs[names.LOGITS]).mean(axis=0)))

    def sample_shape(self, config: ModelConfig) -> tuple[int, ...]:
        return (-1, *config.input_shape)

    def wanted(self, config: ModelConfig) -> Wanted:
        views = (np.float32, (-1, config.num_classes))
        whole = views if config.task.average == NONE else (np.float32, (config.num_classes,))
        return {names.LOGITS: whole, VIEW_LOGITS: views}

    def check_sample(self, image: Prepared, outputs: Outputs) -> None:
        views = {len(image.pixels), len(outputs[VIEW_LOGITS])}
        if len(views) > 1 or 0 in views:
            raise ValueError(f"a video has {' or '.join(map(str, sorted(views)))} views")

    # How good a model is, and what `predict` shows.

    def scores(self, config: ModelConfig, truth: Any = None) -> Scores:
        return EachView(config.num_classes)

    def describe(self, shown: Outputs, classes: ClassNames) -> dict[str, Any]:
        if shown[LABELS].ndim == 1:
            return super().describe(shown, classes)
        views = zip(shown[LABELS], shown[PROBABILITIES], strict=True)
        told = (
            super(Video, self).describe({LABELS: a, PROBABILITIES: b}, classes) for a, b in views
        )
        return {"views": [one["classes"] for one in told]}


class EachView(Accuracy):
    """Where views have no common result, each counts by itself."""

    def add(self, image: Prepared, outputs: Outputs) -> None:
        for logits in np.atleast_2d(outputs[names.LOGITS]):
            super().add(image, {names.LOGITS: logits})


def averaged(views: np.ndarray, average: str) -> np.ndarray:
    """Logits of a video, of those of its views `[views, K]`."""
    if average == NONE:
        return views
    exact = views.astype(np.float64)
    if average == PROB:
        exact -= exact.max(axis=1, keepdims=True)
        exact -= np.log(np.exp(exact).sum(axis=1, keepdims=True))
        most = exact.max(axis=0)
        return (most + np.log(np.exp(exact - most).mean(axis=0))).astype(np.float32)
    mean: np.ndarray = exact.mean(axis=0)
    return mean.astype(np.float32)


def crop_places(whole: tuple[int, ...], size: Size, crops: int) -> list[tuple[int, int]]:
    """Tops and lefts of crops along the longer side: both ends, then the middle; or that alone."""
    rest = [(side - own) // 2 for side, own in zip(whole, size, strict=True)]
    middle = (rest[0], rest[1])
    if crops == 1:
        return [middle]
    if rest[1] >= rest[0]:
        return [(rest[0], 0), (rest[0], 2 * rest[1]), middle]
    return [(0, rest[1]), (2 * rest[0], rest[1]), middle]
