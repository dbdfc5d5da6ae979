"""Images through an engine in batches: order, batches, skipping, and how much is read ahead."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import onnx
import pytest

from svit_deploy.bundle import Bundle
from svit_deploy.engines.base import Engine, Wrapped
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.errors import InputError, UsageError
from svit_deploy.images import ImageSet, ImageSource
from svit_deploy.inference.engine import open_bundle_engine
from svit_deploy.inference.settings import InferenceSettings
from svit_deploy.inference.stream import Run, Seen, Stream
from svit_deploy.progress import SILENT, Portion, Progress

SETTINGS = InferenceSettings(threads=1)


class Counted(Wrapped):
    """Remembers how large the batches were."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.batches: list[int] = []
        self.asked: set[str] = set()

    def run(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        self.batches.append(len(feeds["images"]))
        self.asked |= set(outputs or ())
        return self.engine.run(feeds, outputs)


@pytest.fixture
def engine(digits_bundle: Bundle) -> Iterator[Counted]:
    with Counted(open_bundle_engine(digits_bundle, SETTINGS)) as engine:
        yield engine


def running(
    bundle: Bundle,
    engine: Engine,
    source: ImageSource,
    settings: InferenceSettings,
    progress: Progress = SILENT,
    chosen: Collection[int] | None = None,
) -> Stream[Seen]:
    """A stream of all that is seen."""
    opened = Run(bundle, settings, lambda seen: seen).on(engine)
    return Stream(opened, bundle, source, progress, chosen)


def broken(number: int) -> Callable[[], np.ndarray]:
    def load() -> np.ndarray:
        raise InputError(f"picture {number} cannot be read", "remove it")

    return load


def with_broken(images: ImageSet, *numbers: int) -> ImageSource:
    source = images.stream()

    def loaders() -> Iterator[Callable[[], np.ndarray]]:
        for number, load in enumerate(source.loaders()):
            yield broken(number) if number in numbers else load

    return replace(source, loaders=loaders)


def test_images_come_in_order_whatever_the_batch(
    digits_bundle: Bundle, engine: Counted, heldout: ImageSet
) -> None:
    images = heldout[:23]
    found = {}
    for batch in (1, 5, 16):
        engine.batches.clear()
        settings = replace(SETTINGS, batch=batch, workers=3)
        stream = running(digits_bundle, engine, images.stream(), settings)
        found[batch] = list(stream)
        assert engine.batches == [batch] * (23 // batch) + [23 % batch] * bool(23 % batch)
        assert [seen.number for seen in found[batch]] == list(range(23))
        assert [seen.image.name for seen in found[batch]] == list(images.names)
        assert stream.done == stream.total == 23 and not stream.skipped
        assert stream.seconds >= stream.engine_seconds > 0
    assert engine.asked == {"logits", "keep_mask"}  # margins are not copied for nothing
    for one, other in zip(found[1], found[16], strict=True):
        assert one.outputs["logits"] == pytest.approx(other.outputs["logits"], abs=1e-4)
        assert one.keep_mask is not None and one.keep_mask.shape == (4, 65)
        assert np.array_equal(one.keep_mask, other.keep_mask)
        assert one.overflow is None
        assert np.array_equal(one.array, images.arrays[one.number])


def test_some_images_alone(digits_bundle: Bundle, engine: Counted, heldout: ImageSet) -> None:
    stream = running(digits_bundle, engine, heldout.stream(), SETTINGS, chosen={3, 250, 11})
    assert [seen.number for seen in stream] == [3, 11, 250]
    assert stream.total == 3


def test_a_graph_that_lacks_an_output(digits_bundle: Bundle, heldout: ImageSet) -> None:
    model = onnx.load(digits_bundle.model_path)
    del model.graph.output[0]
    with OnnxRuntimeEngine(model.SerializeToString()) as engine:
        stream = running(digits_bundle, engine, heldout[:2].stream(), SETTINGS)
        with pytest.raises(InputError, match="no output 'logits'"):
            list(stream)


def test_a_picture_that_cannot_be_read_stops_behind_those_before_it(
    digits_bundle: Bundle, engine: Counted, heldout: ImageSet
) -> None:
    stream = running(digits_bundle, engine, with_broken(heldout[:9], 5), SETTINGS)
    seen = []
    with pytest.raises(InputError, match="picture 5 cannot be read"):
        for one in stream:
            seen.append(one.number)
    assert seen == [0, 1, 2, 3, 4]


def test_pictures_that_cannot_be_read_are_skipped_and_counted(
    digits_bundle: Bundle, engine: Counted, heldout: ImageSet, caplog: Any
) -> None:
    settings = replace(SETTINGS, on_error="skip", batch=4)
    stream = running(digits_bundle, engine, with_broken(heldout[:9], 0, 5, 8), settings)
    assert [seen.number for seen in stream] == [1, 2, 3, 4, 6, 7]
    names = heldout.names
    assert [name for name, _ in stream.skipped] == [names[0], names[5], names[8]]
    assert stream.skipped[1][1] == "picture 5 cannot be read"
    assert caplog.messages[1] == f"{names[5]} is skipped: picture 5 cannot be read"
    assert engine.batches == [3, 3]  # so what runs together is known before anything is read


def test_no_more_is_read_than_a_few_batches(
    digits_bundle: Bundle, engine: Counted, heldout: ImageSet
) -> None:
    read: list[int] = []

    def load(number: int) -> np.ndarray:
        read.append(number)
        return heldout.arrays[number]

    source = replace(
        heldout.stream(), loaders=lambda: (partial(load, number) for number in range(360))
    )
    stream = iter(running(digits_bundle, engine, source, replace(SETTINGS, batch=4)))
    for done in range(0, 40, 4):
        for _ in range(4):
            next(stream)
        assert len(read) <= done + 4 + 2 * 4 + 2
    before = threading.active_count()
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() < before
    assert len(read) < 60


def test_the_next_images_are_read_while_the_model_runs(
    digits_bundle: Bundle, engine: Counted, heldout: ImageSet
) -> None:
    """The model waits for an image of a later batch: read afterwards, it would never come."""
    third = threading.Event()

    def load(number: int) -> np.ndarray:
        if number == 8:
            third.set()
        return heldout.arrays[number]

    class Waiting(Wrapped):
        def run(self, feeds: Any, outputs: Any = None) -> Any:
            assert third.wait(60)
            return self.engine.run(feeds, outputs)

    source = replace(
        heldout[:12].stream(), loaders=lambda: (partial(load, number) for number in range(12))
    )
    stream = running(digits_bundle, Waiting(engine), source, replace(SETTINGS, batch=4))
    assert len(list(stream)) == 12


def test_a_rate_is_told(digits_bundle: Bundle, engine: Counted, heldout: ImageSet) -> None:
    told: list[tuple[str, float, str]] = []

    class Steps(Progress):
        def update(self, description: str, fraction: float, detail: str = "") -> None:
            told.append((description, fraction, detail))

    half = Portion(Steps(), 0.5, 1)
    list(running(digits_bundle, engine, heldout[:8].stream(), replace(SETTINGS, batch=4), half))
    assert [(description, fraction) for description, fraction, _ in told] == [
        ("running the model", 0.5 + number / 16) for number in range(1, 9)
    ]
    assert all(detail.endswith(" images/s") for *_, detail in told)


def test_labels_beyond_the_classes_are_refused(
    digits_bundle: Bundle, engine: Counted, heldout: ImageSet
) -> None:
    source = replace(heldout[:2].stream(), labels=np.array([3, 10]))
    with pytest.raises(InputError, match="label 10 is none of the model's 10 classes"):
        running(digits_bundle, engine, source, SETTINGS)


class Fixed(Counted):
    """An engine of batch 1 alone."""

    def inputs(self) -> Any:
        (images,) = self.engine.inputs()
        return (replace(images, shape=(1, *images.shape[1:])),)


def test_a_graph_of_one_batch_size(
    digits_bundle: Bundle, engine: Counted, heldout: ImageSet
) -> None:
    source = heldout[:3].stream()
    fixed = Fixed(engine)
    assert len(list(running(digits_bundle, fixed, source, SETTINGS))) == 3
    assert fixed.batches == [1, 1, 1]
    with pytest.raises(UsageError, match="exported for batches of 1 and cannot run 2"):
        running(digits_bundle, Fixed(engine), source, replace(SETTINGS, batch=2))
