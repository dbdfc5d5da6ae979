"""Image sets as the models of a task get them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from svit_deploy.errors import InputError
from svit_deploy.images import ImageSet, synthetic_images
from svit_deploy.model.config import ModelConfig
from svit_deploy.model.sizes import SizeRange
from svit_deploy.tasks import TASKS
from svit_deploy.tasks.features import DEFAULT_SIZES
from svit_deploy.tasks.samples import prepare_all

SVIT = ModelConfig("svit", 4, 1, 1, 8, 2, 2, (8, 12), (4, 6))
DETECTOR = replace(SVIT, family="vit_adapter", task=TASKS["backbone"].numbers())
ONE_SIZE = SizeRange.single((8, 12))


def ready(height: int, width: int) -> ImageSet:
    """One image that is preprocessed already."""
    return ImageSet(np.zeros((1, 3, height, width), np.float32), ("a",), None, "0" * 64, "npz")


def test_pictures_keep_their_names_and_labels() -> None:
    pictures = synthetic_images(3, (20, 31))
    images = replace(pictures, labels=np.array([1, 0, 1]))
    found = list(prepare_all(images, TASKS["classify"], SVIT, ONE_SIZE))
    assert [(image.name, image.label) for image in found] == list(
        zip(images.names, (1, 0, 1), strict=True)
    )
    assert all(image.size == (8, 12) and image.original_size == (20, 31) for image in found)
    inputs = pictures.inputs(SVIT.preprocess, (8, 12))
    assert np.array_equal(np.stack([image.pixels for image in found]), inputs)
    assert [image.label for image in prepare_all(pictures, TASKS["classify"], SVIT, ONE_SIZE)] == [
        None
    ] * 3


def test_preprocessed_images_of_another_size_are_refused() -> None:
    (image,) = prepare_all(ready(8, 12), TASKS["classify"], SVIT, ONE_SIZE)
    assert (image.size, image.name) == ((8, 12), "a")
    with pytest.raises(InputError, match="are 12x8, the model expects 8x12; preprocess them"):
        list(prepare_all(ready(12, 8), TASKS["classify"], SVIT, ONE_SIZE))


def test_unpadded_inputs_of_a_detector_are_refused() -> None:
    (image,) = prepare_all(ready(64, 96), TASKS["detect"], DETECTOR, DEFAULT_SIZES)
    assert image.image_size == image.size == (64, 96)
    with pytest.raises(InputError, match=r"90x128 pixels is not a multiple of 32; pad it"):
        list(prepare_all(ready(90, 128), TASKS["detect"], DETECTOR, DEFAULT_SIZES))
    with pytest.raises(InputError, match="32 high"):
        list(prepare_all(ready(32, 128), TASKS["detect"], DETECTOR, DEFAULT_SIZES))


def test_a_graph_is_fed_with_what_its_task_asks_for() -> None:
    images = list(
        prepare_all(synthetic_images(1, (50, 70)), TASKS["detect"], DETECTOR, DEFAULT_SIZES)
    )
    for task in TASKS.values():
        assert set(task.feeds(images)) == set(task.inputs)
    feeds = TASKS["detect"].feeds(images)
    assert feeds["images"].shape == (1, 3, 800, 1120)
    assert feeds["image_sizes"].tolist() == [[800, 1120]]
    np.testing.assert_allclose(feeds["scale_factors"], [[16] * 4])
    with pytest.raises(InputError, match="no image"):
        TASKS["detect"].feeds([])
