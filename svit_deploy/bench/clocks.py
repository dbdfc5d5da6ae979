"""A GPU's clock, heat and power while it is measured, through NVML. Nothing is ever changed."""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from svit_deploy.errors import CapabilityError

INTERVAL_S = 0.2
THROTTLING = {  # the end of NVML's names; an idle GPU is not throttled
    "ApplicationsClocksSetting": "application clocks",
    "SwPowerCap": "power cap",
    "HwSlowdown": "hardware slowdown",
    "SyncBoost": "sync boost",
    "SwThermalSlowdown": "heat (software)",
    "HwThermalSlowdown": "heat (hardware)",
    "HwPowerBrakeSlowdown": "power brake",
    "DisplayClockSetting": "display clocks",
}


@dataclass(frozen=True)
class Spread:
    """Smallest, median and largest of some samples."""

    min: float
    median: float
    max: float


@dataclass(frozen=True)
class GpuState:
    """What NVML told during the timed runs; None where this GPU does not tell.

    Attributes:
        driver: version of the driver.
        samples: how often it was asked.
        throttled: what held the clock back at any time.
    """

    driver: str
    samples: int
    sm_clock_mhz: Spread | None
    temperature_c: Spread | None
    power_w: Spread | None
    throttled: tuple[str, ...]


class ClockSampler:
    """Asks NVML every `INTERVAL_S` from a thread of its own, while `watch` is open.

    Args:
        pci_bus_id: of the GPU, as CUDA tells it.

    Raises:
        CapabilityError: NVML is missing, or does not know the GPU.
    """

    def __init__(self, pci_bus_id: str) -> None:
        try:
            self._nvml: Any = importlib.import_module("pynvml")
        except ImportError as error:
            raise CapabilityError(
                "the GPU's clocks are not known without nvidia-ml-py",
                "run: pip install nvidia-ml-py",
            ) from error
        self._samples: list[tuple[float | None, ...]] = []
        self._reasons = 0
        try:
            self._nvml.nvmlInit()
            self._gpu = self._nvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id)
            driver = self._nvml.nvmlSystemGetDriverVersion()
        except self._nvml.NVMLError as error:
            raise CapabilityError(f"the GPU's clocks are not known ({error})", "") from error
        self._driver = driver.decode() if isinstance(driver, bytes) else str(driver)

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Samples while the block runs, at least once."""
        done = threading.Event()

        def sample() -> None:
            self._sample()
            while not done.wait(INTERVAL_S):
                self._sample()

        thread = threading.Thread(target=sample, name="clocks", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def state(self) -> GpuState:
        clock, heat, power = (
            _spread(values)
            for values in (zip(*self._samples, strict=True) if self._samples else [()] * 3)
        )
        words = tuple(
            words for name, words in THROTTLING.items() if self._reasons & self._bit(name)
        )
        return GpuState(self._driver, len(self._samples), clock, heat, power, words)

    def close(self) -> None:
        with contextlib.suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()

    def _sample(self) -> None:
        nvml, gpu = self._nvml, self._gpu
        milliwatts = self._ask("nvmlDeviceGetPowerUsage", gpu)
        self._samples.append(
            (
                self._ask("nvmlDeviceGetClockInfo", gpu, nvml.NVML_CLOCK_SM),
                self._ask("nvmlDeviceGetTemperature", gpu, nvml.NVML_TEMPERATURE_GPU),
                None if milliwatts is None else milliwatts / 1e3,
            )
        )
        reasons = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", gpu)
        self._reasons |= int(reasons or 0)

    def _ask(self, function: str, *arguments: Any) -> float | None:
        """NVML's answer, or None where this GPU has none: a Jetson, or a part of a shared one."""
        try:
            return float(getattr(self._nvml, function)(*arguments))
        except self._nvml.NVMLError:
            return None

    def _bit(self, name: str) -> int:
        return int(getattr(self._nvml, f"nvmlClocksThrottleReason{name}", 0))


def in_words(state: GpuState) -> list[str]:
    """The state in lines for a terminal, with what would make the clock steadier."""
    clock, heat, power = state.sm_clock_mhz, state.temperature_c, state.power_w
    told = (("clock", clock, "MHz"), ("at", heat, "C"), ("power", power, "W"))
    parts = [f"{name} {_range(spread)} {unit}" for name, spread, unit in told if spread]
    parts.append(
        f"held back by {', '.join(state.throttled)}" if state.throttled else "no throttling"
    )
    lines = [f"GPU while timing: {', '.join(parts)}"]
    if clock is not None and clock.max > clock.min:
        lines.append(
            "hint: a fixed clock makes figures steadier: sudo nvidia-smi --lock-gpu-clocks="
            f"{clock.min:.0f} (undo with --reset-gpu-clocks), on a Jetson sudo jetson_clocks"
        )
    return lines


def _range(spread: Spread) -> str:
    if spread.min == spread.max:
        return f"{spread.min:.0f}"
    return f"{spread.min:.0f}-{spread.max:.0f} (median {spread.median:.0f})"


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(min(known), float(np.median(known)), max(known))
