"""The GPU to build for, if there is one, and what its driver supports."""

from __future__ import annotations

from dataclasses import dataclass

from svit_deploy.engines.device.cuda import NO_GPU, Cuda, Gpu
from svit_deploy.errors import CapabilityError, SvitDeployError
from svit_deploy.model.precision import has_products

ELSEWHERE = (
    "build on the machine that will run it, bundles travel: "
    "svit-deploy export BUNDLE --target tensorrt"
)


@dataclass(frozen=True)
class Versions:
    """CUDA versions such as `13.0`: of the runtime, and the newest that the driver supports."""

    cuda: str
    driver: str


def find_gpu(device: int = 0) -> Gpu | None:
    """The GPU of that number, or None without one, its driver, or the package that asks it."""
    try:
        return Cuda(device).gpu
    except SvitDeployError:
        return None


def require_gpu(device: int = 0) -> tuple[Gpu, Versions]:
    """The GPU to build on and its versions; makes it the process's device.

    Raises:
        CapabilityError: no GPU, none to be seen, no driver, or one that is too old.
        UsageError: no GPU of that number.
    """
    try:
        cuda = Cuda(device)
    except CapabilityError as error:
        raise CapabilityError(
            f"TensorRT builds an engine on the GPU that will run it, and {error.message}",
            ELSEWHERE if error.fix == NO_GPU else error.fix,
        ) from error
    versions = (cuda.call("cudaRuntimeGetVersion"), cuda.call("cudaDriverGetVersion"))
    return cuda.gpu, Versions(*(f"{v // 1000}.{v % 1000 // 10}" for v in versions))


def check_products(gpu: Gpu, precision: str) -> None:
    """Raises CapabilityError where a GPU has no products of a precision."""
    if not has_products(gpu.compute_capability, precision):
        raise CapabilityError(
            f"the GPU {gpu.name} (compute capability {gpu.compute_capability}) has no products of "
            "fp8, which begin with 8.9",
            "export with --precision int8 or fp16, or build on a newer GPU",
        )
