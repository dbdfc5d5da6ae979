"""The kernels against NumPy and PyTorch: the reference as it is, the CUDA source on the CPU."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from svit_deploy.plugins import SOURCE
from svit_deploy.plugins.build import SM, known_sm

pytestmark = pytest.mark.slow

TYPES = (torch.float32, torch.float16, torch.bfloat16)
BITS = (32, 64)
INDEX = {32: torch.int32, 64: torch.int64}


def random_rows(rng: np.random.Generator, count: int, width: int, dtype: torch.dtype):
    return torch.from_numpy(rng.standard_normal((count, width), np.float32)).to(dtype)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def check_compact(kernels, mask: np.ndarray, bits: int) -> None:
    """Every output, recomputed from the definition."""
    found = kernels.compact(mask, bits)
    counts = mask.sum(axis=1)
    fullest = counts.max(initial=0)
    starts = np.concatenate([[0], np.cumsum(counts)])
    slots = np.full((len(mask), fullest), -1)
    for image, count in enumerate(counts):
        slots[image, :count] = starts[image] + np.arange(count)
    assert (found.total, found.fullest) == (mask.sum(), fullest)
    np.testing.assert_array_equal(found.rows, np.flatnonzero(mask))
    np.testing.assert_array_equal(found.lengths, starts)
    np.testing.assert_array_equal(found.counts, counts)
    np.testing.assert_array_equal(found.slots, slots)
    np.testing.assert_array_equal(found.places, np.flatnonzero(slots >= 0))
    for output in (found.rows, found.slots, found.places, found.counts):
        assert output.dtype == f"int{bits}"
    assert found.lengths.dtype == np.int32


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    ("images", "tokens"),
    [(1, 1), (1, 197), (3, 31), (2, 32), (2, 33), (5, 256), (2, 257), (1, 1025), (300, 3)],
)
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.7, 1.0])
def test_compact(kernels, images: int, tokens: int, keep: float, bits: int):
    rng = np.random.default_rng([images, tokens, bits])
    check_compact(kernels, rng.random((images, tokens)) < keep, bits)


@pytest.mark.parametrize("bits", BITS)
def test_compact_of_uneven_images(kernels, bits: int):
    mask = np.zeros((6, 300), bool)
    mask[1] = True  # full
    mask[2, 299] = mask[4, 0] = True  # one token, at either end
    mask[5, ::2] = True
    check_compact(kernels, mask, bits)


def test_compact_takes_any_byte_but_zero_for_true(kernels):
    mask = np.array([[0, 1, 2], [255, 0, 128]], np.uint8)
    found = kernels.compact(mask, 32)
    np.testing.assert_array_equal(found.rows, [1, 2, 3, 5])


def test_compact_refuses_what_32_bits_cannot_count(kernels):
    mask = np.zeros((1, 8), bool)
    assert kernels.compact(mask, 64, images=2**31) == -1
    assert kernels.compact(mask, 64, images=2**29) == -1
    assert kernels.compact(mask, 64, images=-1) == -1
    assert kernels.compact(mask, 16) == -1


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", [1, 3, 8, 64, 65, 384, 770])
def test_gather(kernels, width: int, dtype: torch.dtype, bits: int):
    rng = np.random.default_rng(width)
    x = random_rows(rng, 50, width, dtype)
    indices = torch.from_numpy(rng.integers(0, 50, 131)).to(INDEX[bits])
    assert same(kernels.gather(x, indices), x[indices.long()])


@pytest.mark.parametrize("shape", [(7,), (2, 3), (2, 1, 3), (1, 2, 2, 2), (1, 1, 1, 1, 1, 2)])
def test_gather_with_indices_of_any_rank(kernels, shape: tuple[int, ...]):
    rng = np.random.default_rng(0)
    x = random_rows(rng, 9, 16, torch.float16)
    indices = torch.from_numpy(rng.integers(0, 9, shape))
    assert same(kernels.gather(x, indices), x[indices])


@pytest.mark.parametrize("offset", [0, 2, 4, 8])
@pytest.mark.parametrize("first", [0, 1, 2, 4])
def test_gather_between_unaligned_rows(kernels, first: int, offset: int):
    rng = np.random.default_rng(1)
    flat = random_rows(rng, 1, 20 * 64 + 8, torch.float16).reshape(-1)
    x = flat[first : first + 20 * 64].reshape(20, 64)
    indices = torch.tensor([19, 0, 7, 7])
    assert same(kernels.gather(x, indices, offset), x[indices])


@pytest.mark.parametrize("dtype", TYPES)
def test_gather_of_rows_that_do_not_exist_is_zero(kernels, dtype: torch.dtype):
    x = random_rows(np.random.default_rng(2), 4, 24, dtype)
    found = kernels.gather(x, torch.tensor([-1, 3, 4, 2**40, -(2**40), 0]))
    assert same(found[[1, 5]], x[[3, 0]])
    assert not found[[0, 2, 3, 4]].any()


def test_gather_of_nothing(kernels):
    x = torch.ones(3, 8)
    none = torch.empty(0, dtype=torch.int64)
    assert kernels.gather(x, none).shape == (0, 8)
    assert kernels.gather(torch.empty(0, 8), none).shape == (0, 8)
    assert kernels.gather(torch.empty(3, 0), torch.tensor([1])).shape == (1, 0)
    assert not kernels.gather(torch.empty(0, 8), torch.tensor([0])).any()
    assert kernels.gather(x, none, bits=16) == -1


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", [1, 3, 8, 65, 384])
@pytest.mark.parametrize("count", [0, 1, 33, 90])
def test_scatter(kernels, count: int, width: int, dtype: torch.dtype, bits: int):
    rng = np.random.default_rng([count, width])
    x, updates = random_rows(rng, 90, width, dtype), random_rows(rng, count, width, dtype)
    rows = torch.from_numpy(rng.permutation(90)[:count])
    wanted = x.index_copy(0, rows, updates)
    assert same(kernels.scatter(x, rows.to(INDEX[bits]), updates), wanted)
    assert same(kernels.scatter_in_place(x, rows.to(INDEX[bits]), updates), wanted)


@pytest.mark.parametrize("offset", [0, 2, 4, 8])
@pytest.mark.parametrize("first", [0, 1, 2, 4])
def test_scatter_of_unaligned_rows(kernels, first: int, offset: int):
    rng = np.random.default_rng(3)
    x = random_rows(rng, 12, 64, torch.bfloat16)
    flat = random_rows(rng, 1, 2 * 64 + 8, torch.bfloat16).reshape(-1)
    updates = flat[first : first + 2 * 64].reshape(2, 64)
    rows = torch.tensor([11, 3])
    assert same(kernels.scatter(x, rows, updates, offset), x.index_copy(0, rows, updates))


def test_scatter_passes_over_rows_that_do_not_exist(kernels):
    rng = np.random.default_rng(4)
    x, updates = random_rows(rng, 5, 8, torch.float32), random_rows(rng, 4, 8, torch.float32)
    found = kernels.scatter(x, torch.tensor([-1, 2, 5, 2**33]), updates)
    wanted = x.clone()
    wanted[2] = updates[1]
    assert same(found, wanted)


def test_scatter_into_nothing(kernels):
    none = torch.empty(0, 8)
    assert kernels.scatter(none, torch.empty(0, dtype=torch.int64), none).shape == (0, 8)
    assert kernels.scatter(none, torch.tensor([0]), torch.ones(1, 8)).shape == (0, 8)
    assert kernels.scatter(none, torch.tensor([0]), none, bits=8) == -1


@pytest.mark.parametrize("mask_shape", [(4, 50), (1, 197)])
def test_compact_gather_scatter_is_a_masked_update(kernels, mask_shape: tuple[int, int]):
    """What a gated block does with them: rows out, into slots, out of slots, and back."""
    rng = np.random.default_rng(5)
    mask = rng.random(mask_shape) < 0.5
    x = random_rows(rng, mask.size, 24, torch.float32)
    found = kernels.compact(mask, 64)
    packed = kernels.gather(x, torch.from_numpy(found.rows.copy()))
    slots = kernels.gather(packed, torch.from_numpy(found.slots.copy()))
    unpacked = kernels.gather(slots.reshape(-1, 24), torch.from_numpy(found.places.copy()))
    assert same(unpacked, packed)
    updated = kernels.scatter(x, torch.from_numpy(found.rows.copy()), unpacked + 1)
    flat = torch.from_numpy(mask).reshape(-1, 1)
    assert same(updated, torch.where(flat, x + 1, x))


@pytest.mark.slow
def test_cuda_source_compiles_for_every_gpu_generation(nvcc: str, tmp_path: Path):
    chosen = [sm for sm in SM if sm in known_sm(nvcc)]
    assert chosen
    targets = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in chosen]
    output = tmp_path / "kernels.fatbin"
    command = [nvcc, "-std=c++17", "-fatbin", "--threads", "2", "-Werror=all-warnings", *targets]
    done = subprocess.run(
        [*command, str(SOURCE / "kernels.cu"), "-o", str(output)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert output.stat().st_size > 0


def test_both_implementations_declare_the_same_functions():
    names = {}
    for file, device in (("kernels.cu", "cuda"), ("kernels_cpu.cpp", "cpu")):
        text = (SOURCE / file).read_text()
        found = re.findall(rf"^int svit_{device}_(\w+)\(([^)]*)\)", text, re.MULTILINE)
        names[device] = {name: len(args.split(",")) for name, args in found}
    assert names["cuda"] == names["cpu"]
    assert set(names["cpu"]) == {"compact", "gather", "scatter"}
