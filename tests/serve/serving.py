"""A server of its own process, as a user starts it."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pytest

httpx = pytest.importorskip("httpx", reason="the extra `serve` is not installed")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return int(bound.getsockname()[1])


class Server:
    """`svit-deploy serve` on free ports of 127.0.0.1."""

    def __init__(self, log: Path, *arguments: object, scheme: str = "http", **client: Any) -> None:
        self.port, self.grpc_port, self.log = free_port(), free_port(), log
        ports = ["--port", self.port, "--grpc-port", self.grpc_port]
        command = [sys.executable, "-m", "svit_deploy.cli", "serve", *arguments, *ports]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                list(map(str, command)),
                stdout=output,
                stderr=output,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url, timeout=60, **client)

    def __enter__(self) -> Server:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if self.client.get("/v2/health/ready").status_code == 200:
                    return self
            except httpx.TransportError:
                time.sleep(0.1)
        self.process.kill()
        raise AssertionError(self.log.read_text())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.client.close()
        self.stop()

    def stop(self) -> int:
        """The exit code after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def metric(self, name: str, **labels: object) -> float:
        """A metric's value, 0 if it is not there yet."""
        told = ",".join(f'{key}="{labels[key]}"' for key in sorted(labels))
        for line in self.client.get("/metrics").text.splitlines():
            key, _, value = line.rpartition(" ")
            if key == (f"{name}{{{told}}}" if labels else name):
                return float(value)
        return 0.0


def binary(
    tensors: dict[str, tuple[str, list[int], bytes]], outputs: list[str] | None = None
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a binary request; all outputs are asked for as binary, too."""
    inputs = [
        {"name": n, "datatype": t, "shape": s, "parameters": {"binary_data_size": len(data)}}
        for n, (t, s, data) in tensors.items()
    ]
    told: dict[str, Any] = {"inputs": inputs, "parameters": {"binary_data_output": True}}
    if outputs is not None:
        told["outputs"] = [{"name": n, "parameters": {"binary_data": True}} for n in outputs]
    header = json.dumps(told).encode()
    body = header + b"".join(data for _, _, data in tensors.values())
    return body, {
        "content-type": "application/octet-stream",
        "inference-header-content-length": str(len(header)),
    }


def images_request(images: np.ndarray, outputs: list[str] | None = None) -> Any:
    data = {"images": ("FP32", list(images.shape), images.tobytes())}
    return binary(data, outputs)


def pictures_request(pictures: list[bytes], outputs: list[str] | None = None) -> Any:
    data = b"".join(struct.pack("<I", len(one)) + one for one in pictures)
    return binary({"pictures": ("BYTES", [len(pictures)], data)}, outputs)


def parse(response: httpx.Response) -> dict[str, np.ndarray]:
    """The outputs of a binary response."""
    assert response.status_code == 200, response.text
    length = int(response.headers["inference-header-content-length"])
    told = json.loads(response.content[:length])
    start, arrays = length, {}
    for one in told["outputs"]:
        end = start + one["parameters"]["binary_data_size"]
        data, start = response.content[start:end], end
        if one["datatype"] == "BYTES":
            values, at = [], 0
            while at < len(data):
                (size,) = struct.unpack_from("<I", data, at)
                values.append(data[at + 4 : at + 4 + size])
                at += 4 + size
            arrays[one["name"]] = np.array(values, np.object_)
        else:
            kind = {"FP32": np.float32, "BOOL": bool, "INT64": np.int64}[one["datatype"]]
            arrays[one["name"]] = np.frombuffer(data, kind).reshape(one["shape"])
    assert start == len(response.content)
    return arrays
