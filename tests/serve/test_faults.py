"""What no client may do to a server, and how it stops and loads anew."""

from __future__ import annotations

import io
import json
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from svit_deploy.bundle import Bundle
from svit_deploy.export.pipeline import export_model
from svit_deploy.export.settings import ExportSettings
from svit_deploy.images import ImageSet
from svit_deploy.model.model import Model
from svit_deploy.tasks.samples import prepare_all
from tests.serve.needs import needs_kserve
from tests.serve.serving import (
    Server,
    binary,
    free_port,
    httpx,
    images_request,
    parse,
    pictures_request,
)

pytestmark = [pytest.mark.slow, needs_kserve]
INFER = "/v2/models/digits/infer"
DELAY = 1500  # milliseconds that a single image waits: long enough to do something to it


@pytest.fixture(scope="module")
def patient(digits_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Waits long for a batch of 4, and has a short queue."""
    log = tmp_path_factory.mktemp("serve") / "log"
    limits = ["--max-batch", 4, "--max-delay", DELAY, "--max-queue", 6, "--max-request", 1]
    with Server(
        log, f"digits={digits_bundle.path}", *limits, "--max-pixels", 0.01, "--threads", 1
    ) as server:
        yield server


@pytest.fixture(scope="module")
def inputs(digits_bundle: Bundle, heldout: ImageSet) -> np.ndarray:
    bundle = digits_bundle
    prepared = prepare_all(heldout[:8], bundle.task, bundle.config, bundle.sizes)
    return np.stack([image.pixels for image in prepared])


def ask(server: Server, images: np.ndarray) -> httpx.Response:
    body, headers = images_request(images, ["logits"])
    return server.client.post(INFER, content=body, headers=headers)


def wait_for(server: Server, waiting: int) -> None:
    """Until so many images are in the queue."""
    deadline = time.monotonic() + 10
    while server.metric("svit_queue_images", model_name="digits") != waiting:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def refusal(response: httpx.Response, status: int) -> str:
    """The one sentence that a client is told."""
    assert response.status_code == status, response.text
    (told,) = response.json().values()
    assert "Traceback" not in told and "site-packages" not in told and len(told) < 500
    return told


def test_a_full_queue_refuses_at_once_and_loses_nothing(
    patient: Server, inputs: np.ndarray
) -> None:
    with ThreadPoolExecutor(8) as pool:
        first = [pool.submit(ask, patient, inputs[n : n + 1]) for n in range(2)]
        wait_for(patient, 2)
        response = ask(patient, inputs[:5])
        assert "2 images are waiting already" in refusal(response, 429)
        assert response.headers["retry-after"] == "1"
        assert [answer.result().status_code for answer in first] == [200, 200]
    assert "larger than the queue of 6" in refusal(ask(patient, inputs[:7]), 413)
    assert patient.metric("svit_refused_total", model_name="digits", reason="queue") >= 1


def test_full_queue_over_grpc(patient: Server, inputs: np.ndarray) -> None:
    grpc = pytest.importorskip("grpc")
    triton = pytest.importorskip("tritonclient.grpc")
    pb = triton.service_pb2

    def request(images: np.ndarray) -> Any:
        message = pb.ModelInferRequest(model_name="digits", raw_input_contents=[images.tobytes()])
        message.inputs.add(name="images", datatype="FP32", shape=images.shape)
        return message

    with grpc.insecure_channel(f"127.0.0.1:{patient.grpc_port}") as channel:
        stub = triton.service_pb2_grpc.GRPCInferenceServiceStub(channel)
        first = stub.ModelInfer.future(request(inputs[:3]))
        wait_for(patient, 3)
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(request(inputs[:4]))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len(first.result().outputs) == 3
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(request(np.zeros((40, 3, 48, 48), np.float32)))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        broken = request(inputs[:1])
        broken.raw_input_contents[0] = b"abc"
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(broken)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "does not hold FP32" in refused.value.details()


def test_a_client_that_leaves_frees_its_place_and_is_not_computed(
    patient: Server, inputs: np.ndarray
) -> None:
    served = patient.metric("svit_images_total", model_name="digits")
    body, headers = images_request(inputs[:1])
    lines = [f"POST {INFER} HTTP/1.1", "host: x", f"content-length: {len(body)}"]
    head = "\r\n".join([*lines, *(f"{key}: {value}" for key, value in headers.items()), "", ""])
    with socket.create_connection(("127.0.0.1", patient.port)) as client:
        client.sendall(head.encode() + body)
        wait_for(patient, 1)
    wait_for(patient, 0)
    with socket.create_connection(("127.0.0.1", patient.port)) as client:
        client.sendall(head.encode() + body[:100])  # and one that leaves within its request
    time.sleep(DELAY / 1000 + 0.2)
    assert patient.metric("svit_images_total", model_name="digits") == served
    assert ask(patient, inputs[:4]).status_code == 200


def malformed() -> Iterator[tuple[str, bytes, dict[str, str], str]]:
    image = ("FP32", [1, 3, 48, 48], bytes(4 * 3 * 48 * 48))

    def of(name: str, body: tuple[bytes, dict[str, str]], why: str) -> Any:
        return name, *body, why

    def with_length(value: str) -> tuple[bytes, dict[str, str]]:
        body, headers = binary({"images": image})
        return body, headers | {"inference-header-content-length": value}

    octets = {"content-type": "application/octet-stream"}
    yield "nothing", b"", octets, "malformed"
    yield "no JSON", b"\xff\x00", octets, "malformed"
    yield "no JSON, and called so", b"{", {"content-type": "application/json"}, "malformed"
    yield "no inputs", b"{}", octets, "'inputs' is missing"
    yield "a list", b"[]", octets, "malformed"
    yield "deep", b"[" * 100_000, octets, "malformed"
    yield of("header length", with_length("1000000"), "the JSON's length is wrong")
    yield of("header length", with_length("-1"), "the JSON's length is wrong")
    yield of("header length", with_length("x"), "malformed")
    yield of("datatype", binary({"images": ("FP99", [1], b"")}), "no datatype 'FP99'")
    yield of("other datatype", binary({"images": ("INT8", [1], b"1")}), "is int8")
    yield of("too few", binary({"images": (*image[:2], b"1234")}), "does not hold FP32")
    yield of("no whole value", binary({"images": (*image[:2], b"123")}), "malformed")
    yield of("shape", binary({"images": ("FP32", [1, 3, 24, 96], image[2])}), "has shape")
    yield of("negative", binary({"images": ("FP32", [-1, 3, 48, 48], image[2])}), "is negative")
    yield of("no image", binary({"images": ("FP32", [0, 3, 48, 48], b"")}), "no image")
    nan = np.full((1, 3, 48, 48), np.nan, np.float32).tobytes()
    yield of("not finite", binary({"images": (*image[:2], nan)}), "no numbers")
    yield of("other input", binary({"pixels": image}), "has no input 'pixels'")
    yield of("both", binary({"images": image, "pictures": ("BYTES", [0], b"")}), "be mixed")
    yield of("output", binary({"images": image}, ["secrets"]), "has no output 'secrets'")
    length = struct.pack("<I", 2**31)
    yield of("string length", binary({"pictures": ("BYTES", [1], length)}), "malformed")
    yield of("no picture", pictures_request([b"hello"]), "not a JPEG, PNG file")
    yield of("empty picture", pictures_request([b""]), "not a JPEG, PNG file")
    gif = io.BytesIO()
    Image.new("RGB", (48, 48)).save(gif, "GIF")
    yield of("other format", pictures_request([gif.getvalue()]), "not a JPEG, PNG file")
    yield of("bomb", pictures_request([bomb(60_000, 60_000)]), "more than 10000 pixels")
    yield of("smaller bomb", pictures_request([bomb(101, 100)]), "more than 10000 pixels")
    text = {"name": "pictures", "datatype": "BYTES", "shape": [1], "data": ["?"]}
    body = json.dumps({"inputs": [text]}).encode()
    yield "no base64", body, {"content-type": "application/json"}, "not base64"


def bomb(width: int, height: int) -> bytes:
    """A small file of a picture that is a large one."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(10_000), 9)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize(
    ("body", "headers", "why"), [pytest.param(*rest, id=name) for name, *rest in malformed()]
)
def test_a_malformed_request_is_told_why(
    patient: Server, body: bytes, headers: dict[str, str], why: str
) -> None:
    assert why in refusal(patient.client.post(INFER, content=body, headers=headers), 400)


def test_a_huge_request_is_refused_before_it_is_read(patient: Server) -> None:
    body = bytes(2**20 + 1)
    assert "larger than 1048576 bytes" in refusal(patient.client.post(INFER, content=body), 413)
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while True:
            sent += 2**16
            yield bytes(2**16)

    try:  # without a length; the server hangs up while the client still sends
        response = patient.client.post(INFER, content=endless())
        assert response.status_code == 413
    except httpx.WriteError:
        pass
    assert sent < 2**26


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v2/models/nobody/infer", 404),
        ("GET", "/v2/models/nobody", 404),
        ("GET", "/etc/passwd", 404),
        ("GET", "/docs", 404),
        ("GET", INFER, 501),
        ("POST", "/v2/models/digits/versions/2/infer", 501),
        ("POST", "/v2/repository/models/digits/unload", 501),
        ("POST", "/v2/repository/models/nobody/load", 404),
    ],
)
def test_what_is_not_there(patient: Server, method: str, path: str, status: int) -> None:
    body, headers = images_request(np.zeros((1, 3, 48, 48), np.float32))
    given = {"content": body, "headers": headers} if method == "POST" else {}
    refusal(patient.client.request(method, path, **given), status)


def test_in_flight_requests_are_answered_when_the_server_is_told_to_stop(
    digits_bundle: Bundle, inputs: np.ndarray, tmp_path: Path
) -> None:
    place, delay = f"digits={digits_bundle.path}", ["--max-delay", DELAY]
    with Server(tmp_path / "log", place, *delay) as server, ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask, server, inputs[n : n + 1]) for n in range(8)]
        wait_for(server, 8)
        assert server.stop() == 0
        logits = [parse(answer.result())["logits"] for answer in answers]
        assert np.isfinite(np.concatenate(logits)).all()
        with pytest.raises(httpx.TransportError):
            ask(server, inputs[:1])


def test_a_bundle_is_loaded_anew_while_it_serves(
    digits_bundle: Bundle, digits: Model, inputs: np.ndarray, tmp_path: Path
) -> None:
    folder, load = tmp_path / "digits", "/v2/repository/models/digits/load"
    shutil.copytree(digits_bundle.path, folder)
    with Server(tmp_path / "log", folder, "--threads", 1) as server:
        expected = parse(ask(server, inputs[:1]))["logits"]
        (folder / "model.onnx").write_bytes(b"something else")
        told = refusal(server.client.post(load), 400)
        assert "is not the file that was exported" in told
        shutil.rmtree(folder)
        assert ask(server, inputs[:1]).status_code == 200  # the earlier one serves on
        export_model(digits, folder, ExportSettings(gate_outputs=False))
        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(ask, server, inputs[:1]) for _ in range(100)]
            assert server.client.post(load).json() == {"name": "digits", "load": True}
            answers += [pool.submit(ask, server, inputs[:1]) for _ in range(20)]
            for answer in answers:
                found = parse(answer.result())["logits"]
                np.testing.assert_allclose(found, expected, atol=1e-4)
        outputs = server.client.get("/v2/models/digits").json()["outputs"]
        assert [one["name"] for one in outputs] == ["logits", "summary", "drawing"]


def test_tls_and_a_token(digits_bundle: Bundle, inputs: np.ndarray, tmp_path: Path) -> None:
    grpc = pytest.importorskip("grpc")
    triton = pytest.importorskip("tritonclient.grpc")
    pb = triton.service_pb2
    certificate, key = make_certificate(tmp_path)
    (tmp_path / "token").write_text("a-long-random-word\n")
    guards = ["--tls-cert", certificate, "--tls-key", key, "--token-file", tmp_path / "token"]
    limits = ["--timeout", 0.5, "--max-batch", 2, "--max-delay", 3000]
    trust = {"verify": ssl.create_default_context(cafile=certificate)}
    body, headers = images_request(inputs[:2])
    place = f"digits={digits_bundle.path}"
    with Server(tmp_path / "log", place, *guards, *limits, scheme="https", **trust) as server:
        assert server.client.get("/").status_code == 200
        for wrong in ({}, {"authorization": "Bearer no"}, {"authorization": "Basic YQ=="}):
            response = server.client.post(INFER, content=body, headers=headers | wrong)
            assert "no valid token" in refusal(response, 401)
        for path in ("/metrics", "/v2", "/v2/models/digits"):
            refusal(server.client.get(path), 401)
        right = {"authorization": "Bearer a-long-random-word"}
        parse(server.client.post(INFER, content=body, headers=headers | right))
        single, single_headers = images_request(inputs[:1])  # nobody fills its batch in time
        response = server.client.post(INFER, content=single, headers=single_headers | right)
        assert "no answer within 0.5 seconds" in refusal(response, 504)
        credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
        with grpc.secure_channel(f"localhost:{server.grpc_port}", credentials) as channel:
            stub = triton.service_pb2_grpc.GRPCInferenceServiceStub(channel)
            assert stub.ServerLive(pb.ServerLiveRequest()).live
            request = pb.ModelMetadataRequest(name="digits")
            with pytest.raises(grpc.RpcError) as refused:
                stub.ModelMetadata(request)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert stub.ModelMetadata(request, metadata=list(right.items())).name == "digits"


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of this machine, signed by itself, and its key."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    command += ["-subj", "/CN=localhost", "-addext", names, "-keyout", key, "-out", certificate]
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate")
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def test_a_taken_port_is_told(patient: Server, digits_bundle: Bundle) -> None:
    for ports in (
        ["--port", patient.port, "--grpc-port", 0],
        ["--port", free_port(), "--grpc-port", patient.grpc_port],
    ):
        command = [sys.executable, "-m", "svit_deploy.cli", "serve", digits_bundle.path, *ports]
        run = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
        assert run.returncode == 2
        assert "cannot listen at 127.0.0.1" in run.stderr and "Traceback" not in run.stderr
