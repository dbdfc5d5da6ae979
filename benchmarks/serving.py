"""A served bundle under load: throughput against its bare engine, latencies, and overload.

The engine runs alone first, in batches as large as the server's. Then `svit-deploy serve` gets
requests of one image each from Triton's own clients: as many at once as keep it busy, and in an
open loop, at times that do not wait for answers, at half, all and twice of what it answered then.
Every answer is held against what the engine computed alone. Prints the table of docs/serving.md.

    python benchmarks/serving.py --output build/serving
    python benchmarks/serving.py --output build/serving --bundle out/dynamic --protocol grpc
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np

from svit_deploy import api
from svit_deploy.bundle import Bundle, open_bundle
from svit_deploy.engines.settings import RunSettings
from svit_deploy.images import synthetic_images
from svit_deploy.inference.engine import open_bundle_engine
from svit_deploy.names import INPUT, LOGITS

IMAGES = 32
TOLERANCE = 1e-3
"""Of the largest logit; two images differ by far more, and batches by rounding."""
RATIOS = "0.7,0.49,0.343"
SHARES = {"half": 0.5, "all": 1.0, "twice": 2.0}


@dataclass
class Load:
    """What came of requests.

    Attributes:
        offered: per second; of a closed loop as many as were answered.
        seconds: from the first to the last answer.
        latencies: of those answered, in seconds, from the time at which they were due.
        engine, cpu: seconds of the server in its engine, and on processors.
        wrong: answers that are not those of their image.
        refused, failed: by the client's words.
    """

    name: str
    offered: float = 0.0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    engine: float = 0.0
    cpu: float = 0.0
    wrong: int = 0
    refused: int = 0
    failed: Counter[str] = field(default_factory=Counter)

    @property
    def answered(self) -> float:
        return len(self.latencies) / self.seconds

    @property
    def requests(self) -> int:
        return len(self.latencies) + self.refused + self.failed.total()

    def percentile(self, share: float) -> float:
        """In milliseconds."""
        return 1000 * float(np.percentile(self.latencies, share))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, help="a classifier; by default a random SViT-S")
    parser.add_argument("--protocol", choices=("http", "grpc"), default="http")
    parser.add_argument("--threads", type=int, default=1, help="of the engine")
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--max-delay", type=float, default=2.0, help="milliseconds")
    parser.add_argument("--requests", type=int, default=10_000, help="of all loads together")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    bundle = open_bundle(options.bundle or export(options.output))
    images = synthetic_images(IMAGES, bundle.config.image_size)
    inputs = images.inputs(bundle.config.preprocess, bundle.config.image_size)
    expected, before, cpu = run_alone(bundle, inputs, options.threads, options.max_batch)
    with serving(bundle, options) as ports:
        loads = asyncio.run(load_all(options, ports, inputs, expected))
    _, after, _ = run_alone(bundle, inputs, options.threads, options.max_batch)
    bare = (before + after) / 2
    print(
        f"bare engine in batches of {options.max_batch}: {before:.1f} images/s before and "
        f"{after:.1f} after, {cpu:.1f} CPU ms per image"
    )
    print(markdown(loads, bare, options))
    content = {
        "bare_images_per_s": [before, after],
        "bare_cpu_ms": cpu,
        "loads": [summary(load) for load in loads],
    }
    name = f"{bundle.name}_{options.protocol}.json"
    (options.output / name).write_text(json.dumps(content, indent=1) + "\n")
    total, bad = (sum(getattr(load, n) for load in loads) for n in ("requests", "wrong"))
    lost = sum(load.failed.total() for load in loads)
    print(f"\n{total} requests, {bad} wrong answers, {lost} without an answer or a refusal")
    for words, times in sum((load.failed for load in loads), Counter()).items():
        print(f"{times} times: {words}")
    sys.exit(bool(bad or lost))


def export(output: Path) -> Path:
    checkpoint, folder = output / "svit_s.pth", output / "svit_s"
    api.init("svit_s", checkpoint, keep_ratio=RATIOS, force=True)
    return api.export(checkpoint, folder, tokens="dynamic", force=True).path


def run_alone(
    bundle: Bundle, inputs: np.ndarray, threads: int, batch: int
) -> tuple[np.ndarray, float, float]:
    """Every image's logits, images per second, and processor milliseconds of an image."""
    with open_bundle_engine(bundle, RunSettings(threads=threads)) as engine:
        expected = np.concatenate([engine.run({INPUT: one[None]})[LOGITS] for one in inputs])
        runs, start, cpu = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - start < 10 or runs < IMAGES // batch:
            rows = np.arange(runs * batch, (runs + 1) * batch) % IMAGES
            engine.run({INPUT: inputs[rows]})
            runs += 1
        images, seconds = runs * batch, time.perf_counter() - start
        return expected, images / seconds, 1000 * (time.process_time() - cpu) / images


@contextmanager
def serving(bundle: Bundle, options: argparse.Namespace) -> Iterator[Sequence[int]]:
    """The ports of a server of its own process."""
    ports = [free_port(), free_port()]
    command = [sys.executable, "-m", "svit_deploy.cli", "serve", f"model={bundle.path}"]
    command += ["--port", ports[0], "--grpc-port", ports[1], "--threads", options.threads]
    command += ["--max-batch", options.max_batch, "--max-delay", options.max_delay]
    command += ["--max-queue", 4 * options.max_batch]
    with (options.output / "serve.log").open("wb") as log:
        server = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log)
    try:
        while not is_ready(ports[0]):
            if server.poll() is not None:
                sys.exit((options.output / "serve.log").read_text())
            time.sleep(0.1)
        yield ports
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(60)
    print(f"server: exit code {code} after SIGTERM")


def is_ready(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def spent(port: int) -> np.ndarray:
    """Seconds that the server has spent in its engine, and on processors."""
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    names = ("svit_engine_busy_seconds_total", "process_cpu_seconds_total")
    told = [[float(line.split()[-1]) for line in lines if line.startswith(n)] for n in names]
    return np.array(list(map(sum, told)))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return int(bound.getsockname()[1])


@asynccontextmanager
async def connected(protocol: str, port: int) -> AsyncIterator[Any]:
    """Triton's client, with a function that asks for an image's logits."""
    if protocol == "http":
        import tritonclient.http as basic
        import tritonclient.http.aio as triton

        client = triton.InferenceServerClient(f"127.0.0.1:{port}", conn_limit=1000)
    else:
        import tritonclient.grpc as basic
        import tritonclient.grpc.aio as triton

        client = triton.InferenceServerClient(f"127.0.0.1:{port}")
    outputs = [basic.InferRequestedOutput(LOGITS)]

    async def ask(image: np.ndarray) -> np.ndarray:
        tensor = basic.InferInput(INPUT, [1, *image.shape], "FP32")
        tensor.set_data_from_numpy(image[None])
        found = await client.infer("model", [tensor], outputs=outputs)
        return found.as_numpy(LOGITS)[0]

    async with client:
        yield ask


async def load_all(
    options: argparse.Namespace, ports: Sequence[int], inputs: np.ndarray, expected: np.ndarray
) -> list[Load]:
    page, port = ports[0], ports[options.protocol == "grpc"]
    async with connected(options.protocol, port) as ask:

        async def one(load: Load, number: int, due: float) -> None:
            image = number % IMAGES
            try:
                logits = await ask(inputs[image])
            except Exception as error:
                told = str(error)
                if "429" in told or "RESOURCE_EXHAUSTED" in told or "waiting already" in told:
                    load.refused += 1
                else:
                    load.failed[told[:200]] += 1
                return
            load.latencies.append(time.perf_counter() - due)
            limit = TOLERANCE * np.abs(expected[image]).max()
            load.wrong += not np.abs(logits - expected[image]).max() < limit

        full = Load("busy")
        numbers = iter(range(int(options.requests / sum([1.0, *SHARES.values()]))))

        async def keep_asking() -> None:
            for number in numbers:
                await one(full, number, time.perf_counter())

        start, before = time.perf_counter(), spent(page)
        await asyncio.gather(*(keep_asking() for _ in range(2 * options.max_batch)))
        full.seconds = time.perf_counter() - start
        full.offered = full.answered
        full.engine, full.cpu = (spent(page) - before).tolist()
        loads = [full]
        for name, share in SHARES.items():
            load = Load(name, share * full.answered)
            count = int(options.requests * share / sum([1.0, *SHARES.values()]))
            gaps = np.random.default_rng(0).exponential(1 / load.offered, count)
            tasks, start, before = [], time.perf_counter(), spent(page)
            for number, at in enumerate(np.cumsum(gaps)):
                await asyncio.sleep(max(start + at - time.perf_counter(), 0))
                tasks.append(asyncio.create_task(one(load, number, start + at)))
            await asyncio.gather(*tasks)
            load.seconds = time.perf_counter() - start
            load.engine, load.cpu = (spent(page) - before).tolist()
            loads.append(load)
        return loads


def summary(load: Load) -> dict[str, Any]:
    told = vars(load) | {"latencies": None}
    times = {f"p{share}_ms": load.percentile(share) for share in (50, 99)}
    return told | {"requests": load.requests, "answered_per_s": load.answered, **times}


def markdown(loads: list[Load], bare: float, options: argparse.Namespace) -> str:
    heads = (
        *("load", "offered/s", "answered/s", "of the bare engine", "engine busy"),
        *("CPU ms per image", "refused", "p50 ms", "p99 ms"),
    )
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for load in loads:
        lines.append(
            f"| {options.protocol}, {load.name} | {load.offered:.1f} | {load.answered:.1f} "
            f"| {load.answered / bare:.0%} | {load.engine / load.seconds:.0%} "
            f"| {1000 * load.cpu / len(load.latencies):.1f} | {load.refused / load.requests:.0%} "
            f"| {load.percentile(50):.1f} | {load.percentile(99):.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
