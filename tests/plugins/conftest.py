"""The kernels, and the plugin library, each compiled once per session."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from svit_deploy.errors import CapabilityError
from svit_deploy.plugins import SOURCE
from svit_deploy.plugins.build import build_plugins, find_cmake, find_nvcc

EMULATION = Path(__file__).parent / "emulation"
HOST = Path(__file__).parent / "host"
INCLUDES = [Path(p) for p in os.environ.get("TENSORRT_INCLUDE_DIR", "").split(os.pathsep) if p]
GUARD = 64
"""Bytes on both sides of an output that must stay as they are."""


def compile_with(compiler: str, output: Path, *args: str | Path) -> Path:
    """Runs a C++ or CUDA compiler; its messages are the failure."""
    command = [compiler, "-std=c++17", "-O1", f"-I{SOURCE}", "-o", str(output), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return output


@dataclass(frozen=True)
class Compacted:
    """Outputs of compact, cut to the sizes it found."""

    rows: np.ndarray
    slots: np.ndarray
    places: np.ndarray
    lengths: np.ndarray
    counts: np.ndarray
    total: int
    fullest: int


class Guarded:
    """Room for an output between guards, `offset` bytes off the alignment of 16."""

    def __init__(self, size: int, offset: int = 0) -> None:
        self.bytes = np.full(GUARD + offset + size + 16 + GUARD, 0xA5, np.uint8)
        self.start = -self.bytes.ctypes.data % 16 + GUARD + offset
        self.size = size
        self.pointer = self.bytes.ctypes.data + self.start

    def read(self) -> np.ndarray:
        """The output's bytes, after a look at the guards."""
        end = self.start + self.size
        assert (self.bytes[: self.start] == 0xA5).all(), "written in front of the output"
        assert (self.bytes[end:] == 0xA5).all(), "written behind the output"
        return self.bytes[self.start : end]


class Kernels:
    """The C interface of one implementation of the kernels, on host memory."""

    def __init__(self, library: Path, device: str) -> None:
        loaded = ctypes.CDLL(str(library))
        pointer, size, bits = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        self._compact = loaded[f"svit_{device}_compact"]
        self._compact.argtypes = [pointer, size, size, bits, *[pointer] * 8]
        self._gather = loaded[f"svit_{device}_gather"]
        self._gather.argtypes = [pointer, size, size, pointer, size, bits, pointer, pointer]
        self._scatter = loaded[f"svit_{device}_scatter"]
        self._scatter.argtypes = [
            pointer, size, size, pointer, pointer, size, bits, pointer, pointer,
        ]  # fmt: skip

    def compact(self, mask: np.ndarray, bits: int, images: int | None = None) -> Compacted | int:
        """Of a mask `[B, S]` bool; the error where it is not 0. `images` replaces B."""
        shape = mask.shape
        index, room = np.dtype(f"int{bits}" if bits in (32, 64) else "int64"), mask.size
        sizes = [room * index.itemsize] * 3
        sizes += [(shape[0] + 1) * 4, shape[0] * index.itemsize, 4, 4]
        outputs = [Guarded(size) for size in sizes]
        mask = np.ascontiguousarray(mask)
        count = shape[0] if images is None else images
        arguments = [mask.ctypes.data, count, shape[1], bits, *[o.pointer for o in outputs], None]
        if error := self._compact(*arguments):
            return error
        rows, slots, places, lengths, counts, total, fullest = (o.read() for o in outputs)
        t, k = int(total.view(np.int32)[0]), int(fullest.view(np.int32)[0])
        return Compacted(
            rows.view(index)[:t],
            slots.view(index)[: shape[0] * k].reshape(shape[0], k),
            places.view(index)[:t],
            lengths.view(np.int32),
            counts.view(index),
            t,
            k,
        )

    def gather(
        self, x: torch.Tensor, indices: torch.Tensor, offset: int = 0, bits: int | None = None
    ) -> torch.Tensor | int:
        """`x[indices]` with the output `offset` bytes off its alignment; or the error."""
        row_bytes = x.shape[1] * x.element_size()
        out = Guarded(indices.numel() * row_bytes, offset)
        bits = bits or indices.element_size() * 8
        error = self._gather(
            x.data_ptr(), len(x), row_bytes, indices.data_ptr(), indices.numel(), bits,
            out.pointer, None,
        )  # fmt: skip
        return error or as_tensor(out.read(), x.dtype, (*indices.shape, x.shape[1]))

    def scatter(
        self,
        x: torch.Tensor,
        rows: torch.Tensor,
        updates: torch.Tensor,
        offset: int = 0,
        bits: int | None = None,
    ) -> torch.Tensor | int:
        """`x` with `rows` replaced by `updates`, or the error."""
        row_bytes = x.shape[1] * x.element_size()
        out = Guarded(x.numel() * x.element_size(), offset)
        bits = bits or rows.element_size() * 8
        error = self._scatter(
            x.data_ptr(), len(x), row_bytes, rows.data_ptr(), updates.data_ptr(), len(updates),
            bits, out.pointer, None,
        )  # fmt: skip
        return error or as_tensor(out.read(), x.dtype, x.shape)

    def scatter_in_place(
        self, x: torch.Tensor, rows: torch.Tensor, updates: torch.Tensor
    ) -> torch.Tensor:
        """The same where the output is the input."""
        x = x.clone()
        error = self._scatter(
            x.data_ptr(), len(x), x.shape[1] * x.element_size(), rows.data_ptr(),
            updates.data_ptr(), len(updates), rows.element_size() * 8, x.data_ptr(), None,
        )  # fmt: skip
        assert error == 0
        return x


def as_tensor(content: np.ndarray, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    if content.size == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(content.copy()).view(dtype).reshape(shape)


@pytest.fixture(scope="session", params=["cpu", "cuda"])
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """The reference, and the CUDA source run on the CPU thread by thread."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    library = tmp_path_factory.mktemp("kernels") / "kernels.so"
    source = [SOURCE / "kernels_cpu.cpp"]
    if request.param == "cuda":
        flags = [f"-I{EMULATION}", "-DSVIT_MAX_BLOCKS=8"]
        source = [*flags, "-x", "c++", SOURCE / "kernels.cu"]
    compile_with(compiler, library, "-shared", "-fPIC", *source)
    return Kernels(library, request.param)


@pytest.fixture(scope="session")
def nvcc() -> str:
    try:
        return find_nvcc()
    except CapabilityError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def cmake() -> str:
    try:
        return find_cmake()
    except CapabilityError as error:
        pytest.skip(str(error))


@cache
def gpu_generation() -> int | None:
    """90 where the first GPU has compute capability 9.0; None without a GPU."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return None
    query = [smi, "--query-gpu=compute_cap", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True)
    first = done.stdout.strip().partition("\n")[0].replace(".", "")
    return int(first) if done.returncode == 0 and first.isdigit() else None


@pytest.fixture(scope="session")
def gpu() -> int:
    generation = gpu_generation()
    if generation is None:
        pytest.skip("no NVIDIA GPU")
    return generation


@pytest.fixture(
    scope="session",
    params=INCLUDES or [None],
    ids=lambda path: path.parent.name if path else "no headers",
)
def tensorrt_include(request: pytest.FixtureRequest) -> Path:
    if request.param is None:
        pytest.skip("TENSORRT_INCLUDE_DIR names no folder with TensorRT's headers")
    return request.param


@pytest.fixture(scope="session")
def library(
    tensorrt_include: Path, cmake: str, nvcc: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The plugin library, built with these headers for the GPU here, or for 9.0 without one."""
    output = tmp_path_factory.mktemp("plugins") / "built"
    path, _ = build_plugins(tensorrt_include, output, sm=[gpu_generation() or 90])
    return path


@pytest.fixture(scope="session")
def host(tensorrt_include: Path, nvcc: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that drives a plugin library as TensorRT does."""
    output = tmp_path_factory.mktemp("host") / "host"
    sources = [HOST / name for name in ("main.cpp", "glue.cpp", "gpu.cpp")]
    sources.append(SOURCE / "kernels_cpu.cpp")
    return compile_with(nvcc, output, f"-isystem={tensorrt_include}", "-ldl", *sources)


@pytest.fixture(scope="session")
def kernels_host(nvcc: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that runs the kernels on a GPU, without TensorRT."""
    output = tmp_path_factory.mktemp("kernels-host") / "kernels-host"
    sources = [HOST / name for name in ("kernels_main.cpp", "gpu.cpp")]
    sources += [SOURCE / "kernels_cpu.cpp", SOURCE / "kernels.cu"]
    return compile_with(nvcc, output, f"-arch=sm_{gpu_generation() or 90}", *sources)
