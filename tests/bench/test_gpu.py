"""What a benchmark tells of a GPU: its own time, transfers, waits, clocks."""

import io
import json
import re
import sys
import threading
import time
from dataclasses import replace
from types import ModuleType

import pytest
from rich.console import Console

from svit_deploy.bench.clocks import ClockSampler, GpuState, Spread, in_words
from svit_deploy.bench.gpu import advice, gpu_times
from svit_deploy.bench.printing import render
from svit_deploy.engines.base import RunTimes
from svit_deploy.errors import CapabilityError
from tests.engines.tensorrt.fake.cuda import Device, make_cuda

pytestmark = pytest.mark.slow

TIMES = RunTimes(gpu_ms=4, h2d_ms=0.5, d2h_ms=0.25, enqueue_ms=1, graph=True, profile=1)
ON_GPU = {"gpu": {"name": "NVIDIA Fake 9000"}, "cuda_graph": {"mode": "auto"}}


class Nvml(ModuleType):
    """A fake pynvml. Answers are lists that are used up to their last value."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0
    nvmlClocksThrottleReasonSwPowerCap = 4
    nvmlClocksThrottleReasonHwThermalSlowdown = 64
    nvmlClocksThrottleReasonGpuIdle = 1

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.clocks, self.heat, self.milliwatts = [1980, 1200, 1500], [50], [300_000, 350_000]
        self.reasons = [1, 4]
        self.opened = 0

    def nvmlInit(self):
        self.opened += 1

    def nvmlShutdown(self):
        self.opened -= 1

    def nvmlSystemGetDriverVersion(self):
        return "580.1"

    def nvmlDeviceGetHandleByPciBusId(self, bus_id):
        if bus_id != "0000:01:00.0":
            raise self.NVMLError("Not Found")
        return "gpu"

    def _next(self, answers):
        if answers is None:
            raise self.NVMLError("Not Supported")
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def nvmlDeviceGetClockInfo(self, gpu, kind):
        return self._next(self.clocks)

    def nvmlDeviceGetTemperature(self, gpu, kind):
        return self._next(self.heat)

    def nvmlDeviceGetPowerUsage(self, gpu):
        return self._next(self.milliwatts)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu):
        return self._next(self.reasons)


@pytest.fixture
def nvml(monkeypatch) -> Nvml:
    nvml = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", make_cuda(Device()))
    monkeypatch.setattr("svit_deploy.bench.clocks.INTERVAL_S", 0.001)
    return nvml


def printed(report) -> str:
    file = io.StringIO()
    render(report, Console(file=file, width=80))
    assert max(map(len, file.getvalue().splitlines())) <= 80
    return " ".join(file.getvalue().split())


def test_gpu_time_stands_beside_the_time_of_the_host(world, nvml):
    report = world.bench(
        world.dense(about=ON_GPU, times=TIMES), world.dense(label="on cpu"), batches=(1, 4)
    )
    first, on_cpu, batch_4 = report.results[:3]
    assert on_cpu.gpu is None
    assert first.latency.p50_ms == 10
    assert (first.gpu.gpu.p50_ms, first.gpu.gpu.count, batch_4.gpu.gpu.count) == (4, 40, 40)
    assert first.gpu.gpu.p99_ms is None  # 40 runs are too few
    assert (first.gpu.h2d_p50_ms, first.gpu.d2h_p50_ms, first.gpu.enqueue_share) == (
        0.5,
        0.25,
        0.25,
    )
    assert (first.gpu.shape, batch_4.gpu.shape) == ((1, 3, 2, 2), (4, 3, 2, 2))
    assert (first.gpu.graph, first.gpu.profile, first.notes) == (True, 1, ())
    text = printed(report)
    for expected in ("on the GPU", "1.00 (25%)", "yes", "1: 4x3x2x2"):
        assert expected in text
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["results"][0]["gpu"]["gpu"]["p50_ms"] == 4
    assert plain["results"][1]["gpu"] is None


def test_the_speed_up_of_gpu_time_is_a_headline_of_its_own(world, nvml):
    """From host to host 20 ms over 18, on the device 4 ms over 2."""
    half = replace(TIMES, gpu_ms=2)
    report = world.bench(
        world.dense(lambda kept: 20, about=ON_GPU, times=TIMES),
        world.dense(lambda kept: 18, label="half", about=ON_GPU, times=half),
        world.dense(label="on cpu"),
    )
    first, second, on_cpu = report.results
    assert first.gpu.speedup is None and on_cpu.gpu is None
    assert second.speedup.ratio == pytest.approx(20 / 18)
    assert second.gpu.speedup.ratio == second.gpu.speedup.low == pytest.approx(2)
    text = printed(report)
    assert "half: speed-up over dense: 1.11x" in text
    assert "half: speed-up of GPU time over dense: 2.00x" in text
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["results"][1]["gpu"]["speedup"]["verdict"] == "faster"


def test_throughput_with_several_runs_in_flight(world, nvml):
    """Where an engine can; the others are timed as ever."""
    able = world.dense(about=ON_GPU, times=TIMES, overlap=1.6)
    report = world.bench(able, world.dense(label="alone"), batches=(1, 4), duration_s=1)
    first, alone, batch_4 = report.results[:3]
    assert alone.in_flight is None
    assert first.throughput_images_per_s == pytest.approx(100)
    assert first.in_flight.images_per_s == pytest.approx(160)
    assert batch_4.in_flight.images_per_s == pytest.approx(640)
    # Half of a second at 10 ms, forwards and backwards.
    assert (first.in_flight.runs, first.in_flight.runs_in_flight) == (100, 2)
    assert first.in_flight.device_ms == 3
    flown = [counts for name, counts, _ in world.runs if name == "dense in flight"]
    assert flown == [[50, 2]] * 4
    assert "dense: 2 runs in flight: 160 img/s, 3.00 ms of the device each" in printed(report)
    assert report.to_dict()["results"][0]["in_flight"]["images_per_s"] == pytest.approx(160)


@pytest.mark.parametrize("settings", [{"in_flight": 1}, {"max_time_s": 100.0}])
def test_nothing_in_flight(world, nvml, settings):
    (result,) = world.bench(world.dense(overlap=2), **settings).results
    assert result.in_flight is None


@pytest.mark.parametrize(
    ("times", "engine", "sentence"),
    [
        ({"enqueue_ms": 3.2}, {}, None),
        ({"enqueue_ms": 3.6, "graph": True}, {}, "90% of the GPU's time .*: try a larger batch"),
        ({"enqueue_ms": 3.6}, {"mode": "off"}, "try --cuda-graph on, or a larger batch"),
        ({"enqueue_ms": 3.6}, {"mode": "auto", "reason": "no"}, "wait for it: try a larger batch"),
    ],
)
def test_advice_where_the_gpu_waits_for_the_host(times, engine, sentence):
    run = replace(TIMES, **{"graph": False, **times})
    found = advice(gpu_times([run] * 3, (1, 3, 2, 2)), {"cuda_graph": engine})
    assert found is None if sentence is None else re.search(sentence, found)


def test_the_advice_is_a_note_of_the_report(world, nvml):
    slow = replace(TIMES, enqueue_ms=5, graph=False)
    about = {**ON_GPU, "cuda_graph": {"mode": "off"}}
    (result,) = world.bench(world.dense(about=about, times=slow)).results
    assert len(result.notes) == 1
    assert "the host takes 125% of the GPU's time to enqueue a run" in result.notes[0]


def test_clocks_are_sampled_while_timing(world, nvml):
    report = world.bench(world.dense(about=ON_GPU, times=TIMES))
    state = report.gpu
    assert state.driver == "580.1"
    assert state.samples >= 1
    assert 1200 <= state.sm_clock_mhz.min <= state.sm_clock_mhz.median <= state.sm_clock_mhz.max
    assert state.temperature_c == Spread(50, 50, 50)
    assert report.notes == ()
    assert nvml.opened == 0
    assert "GPU while timing: clock" in printed(report)
    assert report.to_dict()["gpu"]["driver"] == "580.1"


def test_the_cpu_is_not_watched(world, nvml):
    assert world.bench(world.dense()).gpu is None


def test_the_samples_of_a_watch(nvml):
    sampler = ClockSampler("0000:01:00.0")
    assert sampler.state() == GpuState("580.1", 0, None, None, None, ())
    with sampler.watch():
        while len(sampler._samples) < 4:
            time.sleep(0.001)
    state = sampler.state()
    assert state.sm_clock_mhz.min == 1200
    assert state.sm_clock_mhz.max == 1980
    assert state.power_w.max == 350
    assert state.throttled == ("power cap",)
    assert not [thread for thread in threading.enumerate() if thread.name == "clocks"]
    assert in_words(state)[0].startswith("GPU while timing: clock 1200-1980 (median 1500) MHz")
    assert "held back by power cap" in in_words(state)[0]
    assert "sudo nvidia-smi --lock-gpu-clocks=1200" in in_words(state)[1]


def test_a_fixed_clock_needs_no_hint_and_what_is_not_told_is_left_out(nvml):
    nvml.clocks, nvml.heat, nvml.milliwatts, nvml.reasons = [1300], None, None, None
    sampler = ClockSampler("0000:01:00.0")
    with sampler.watch():
        pass
    state = sampler.state()
    assert (state.temperature_c, state.power_w) == (None, None)
    assert in_words(state) == ["GPU while timing: clock 1300 MHz, no throttling"]


def test_without_nvml_there_is_a_note(world, nvml, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    report = world.bench(world.dense(about=ON_GPU, times=TIMES))
    assert report.gpu is None
    assert report.notes == (
        "clocks were not watched: the GPU's clocks are not known without nvidia-ml-py",
    )
    assert "note: clocks were not watched" in printed(report)
    with pytest.raises(CapabilityError, match="run: pip install nvidia-ml-py"):
        ClockSampler("0000:01:00.0")


def test_a_gpu_that_nvml_does_not_know(nvml):
    with pytest.raises(CapabilityError, match=r"clocks are not known \(Not Found\)"):
        ClockSampler("0000:02:00.0")


def test_notes_of_an_engine_and_what_it_is_after_the_runs(world, nvml):
    about = dict(ON_GPU)

    def cost_ms(kept: float) -> float:
        about["state"] = "after the runs"
        return 10

    target = world.target(
        "engine",
        cost_ms,
        about=about,
        times=TIMES,
        notes=lambda engine: [str(engine.about["state"])],
    )
    report = world.bench(target)
    assert report.targets[0].notes == ("after the runs",)
    assert report.targets[0].engine["state"] == "after the runs"
    assert "engine: note: after the runs" in printed(report)
