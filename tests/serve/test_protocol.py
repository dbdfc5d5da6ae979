"""A server as its clients see it: both protocols, tensors and pictures, the graph's results."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from svit_deploy.bundle import Bundle
from svit_deploy.engines.settings import RunSettings
from svit_deploy.images import ImageSet
from svit_deploy.inference.engine import open_bundle_engine
from svit_deploy.tasks.samples import prepare_all
from tests.serve.needs import needs_kserve
from tests.serve.serving import Server, images_request, parse, pictures_request

pytestmark = [pytest.mark.slow, needs_kserve]
INFER = "/v2/models/digits/infer"


@pytest.fixture(scope="module")
def server(digits_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("serve") / "log"
    other = f"other={digits_bundle.path}"
    with Server(log, f"digits={digits_bundle.path}", other, "--threads", 1) as server:
        yield server


@pytest.fixture(scope="module")
def offline(digits_bundle: Bundle, heldout: ImageSet) -> dict[str, np.ndarray]:
    """Inputs of some digits, and the graph's outputs."""
    images = heldout[20:26]
    prepared = prepare_all(images, digits_bundle.task, digits_bundle.config, digits_bundle.sizes)
    feeds = digits_bundle.task.feeds(list(prepared))
    with open_bundle_engine(digits_bundle, RunSettings()) as engine:
        return {**feeds, **engine.run(feeds)}


@pytest.fixture(scope="module")
def files(heldout: ImageSet) -> list[bytes]:
    """The same digits as PNG files."""
    return [png(array) for array in heldout[20:26].arrays]


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def assert_same(found: dict[str, np.ndarray], offline: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(found["logits"], offline["logits"], atol=1e-4)
    assert np.array_equal(found["keep_mask"], offline["keep_mask"])
    np.testing.assert_allclose(found["margin"], offline["margin"], atol=1e-4)


def test_metadata_names_inputs_and_outputs(server: Server) -> None:
    assert server.client.get("/v2").json()["name"] == "svit-deploy"
    assert server.client.get("/v2/models").json() == {"models": ["digits", "other"]}
    told = server.client.get("/v2/models/digits").json()
    assert told["inputs"] == [
        {"name": "pictures", "datatype": "BYTES", "shape": [-1]},
        {"name": "images", "datatype": "FP32", "shape": [-1, 3, 48, 48]},
    ]
    outputs = {one["name"]: (one["datatype"], one["shape"]) for one in told["outputs"]}
    assert outputs["logits"] == ("FP32", [-1, 10])
    assert outputs["keep_mask"] == ("BOOL", [-1, 4, 65])
    assert outputs["summary"] == ("BYTES", [-1])
    assert server.client.get("/v2/models/other/ready").json()["ready"] is True
    assert server.client.get("/v2/health/live").json() == {"live": True}


def test_tensors_give_what_the_graph_gives(server: Server, offline: dict[str, np.ndarray]) -> None:
    body, headers = images_request(offline["images"])
    assert_same(parse(server.client.post(INFER, content=body, headers=headers)), offline)


def test_pictures_are_preprocessed_as_the_manifest_says(
    server: Server, offline: dict[str, np.ndarray], files: list[bytes]
) -> None:
    body, headers = pictures_request(files)
    assert_same(parse(server.client.post(INFER, content=body, headers=headers)), offline)


def test_json_both_ways(server: Server, offline: dict[str, np.ndarray], files: list[bytes]) -> None:
    tensor = {"name": "images", "datatype": "FP32", "shape": [1, 3, 48, 48]}
    text = base64.b64encode(files[0]).decode()
    for one in (
        {**tensor, "data": offline["images"][:1].tolist()},
        {**tensor, "data": offline["images"][:1].ravel().tolist()},
        {"name": "pictures", "datatype": "BYTES", "shape": [1], "data": [text]},
    ):
        response = server.client.post(INFER, json={"id": "7", "inputs": [one]})
        assert response.status_code == 200, response.text
        told = response.json()
        assert (told["id"], told["model_name"]) == ("7", "digits")
        assert told["parameters"]["batch_images"] == 1
        outputs = {output["name"]: output for output in told["outputs"]}
        logits = np.reshape(outputs["logits"]["data"], outputs["logits"]["shape"])
        np.testing.assert_allclose(logits, offline["logits"][:1], atol=1e-4)
        # JSON has no infinity: the margin of a class token that is always kept.
        known = np.array(outputs["margin"]["data"], float).reshape(1, 4, 65)
        assert np.array_equal(np.isnan(known), np.isinf(offline["margin"][:1]))


def test_only_what_is_asked_for_comes(server: Server, files: list[bytes]) -> None:
    body, headers = pictures_request(files[:2], ["summary", "drawing", "keep_mask"])
    found = parse(server.client.post(INFER, content=body, headers=headers))
    assert list(found) == ["summary", "drawing", "keep_mask"]
    for summary, drawing, mask in zip(*found.values(), strict=True):
        told = json.loads(summary)
        assert len(told["classes"]) == 5
        assert told["kept_tokens"] == mask.sum(axis=1).tolist()
        picture = Image.open(io.BytesIO(drawing))
        assert picture.format == "PNG" and picture.width > 2 * 48


def test_requests_that_come_together_are_run_together_and_not_mixed_up(
    server: Server, offline: dict[str, np.ndarray]
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def ask(number: int) -> np.ndarray:
        body, headers = images_request(offline["images"][number % 6 :][:1], ["logits"])
        found = parse(server.client.post(INFER, content=body, headers=headers))
        return found["logits"][0]

    runs = server.metric("svit_batch_images_sum", model_name="digits")
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(200)))
    np.testing.assert_allclose(answers, offline["logits"][np.arange(200) % 6], atol=1e-4)
    assert server.metric("svit_batch_images_sum", model_name="digits") - runs > 200  # some shared


@pytest.mark.parametrize("raw", [True, False])
def test_grpc(
    server: Server, offline: dict[str, np.ndarray], files: list[bytes], raw: bool
) -> None:
    grpc = pytest.importorskip("grpc")
    triton = pytest.importorskip("tritonclient.grpc")
    pb = triton.service_pb2
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = triton.service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ServerReady(pb.ServerReadyRequest()).ready
        told = stub.ModelMetadata(pb.ModelMetadataRequest(name="digits"))
        assert [one.name for one in told.inputs] == ["pictures", "images"]
        request = pb.ModelInferRequest(model_name="digits")
        tensor = request.inputs.add(name="images", datatype="FP32", shape=[6, 3, 48, 48])
        if raw:
            request.raw_input_contents.append(offline["images"].tobytes())
        else:
            tensor.contents.fp32_contents.extend(offline["images"].ravel().tolist())
        assert_same(arrays_of(triton, stub.ModelInfer(request)), offline)
        request = pb.ModelInferRequest(model_name="digits")
        tensor = request.inputs.add(name="pictures", datatype="BYTES", shape=[6])
        tensor.contents.bytes_contents.extend(files)
        request.outputs.add(name="logits")
        found = arrays_of(triton, stub.ModelInfer(request))
        assert list(found) == ["logits"]
        np.testing.assert_allclose(found["logits"], offline["logits"], atol=1e-4)
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(pb.ModelInferRequest(model_name="nobody"))
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND


def arrays_of(triton: Any, response: Any) -> dict[str, np.ndarray]:
    result = triton.InferResult(response)
    return {output.name: result.as_numpy(output.name) for output in response.outputs}


def test_tritonclient_understands_it(
    server: Server, offline: dict[str, np.ndarray], files: list[bytes]
) -> None:
    for module, port in (("http", server.port), ("grpc", server.grpc_port)):
        triton = pytest.importorskip(f"tritonclient.{module}")
        with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
            assert client.is_model_ready("digits")
            tensor = triton.InferInput("images", [6, 3, 48, 48], "FP32")
            tensor.set_data_from_numpy(offline["images"])
            picture = triton.InferInput("pictures", [6], "BYTES")
            picture.set_data_from_numpy(np.array(files, np.object_))
            for given in (tensor, picture):
                found = client.infer("digits", [given])
                names = ("logits", "keep_mask", "margin")
                assert_same({name: found.as_numpy(name) for name in names}, offline)


def test_metrics_count_what_was_served(server: Server, offline: dict[str, np.ndarray]) -> None:
    def told() -> list[float]:
        gates = [
            server.metric(name, model_name="other", gate=gate)
            for name in ("svit_kept_tokens_total", "svit_tokens_total", "svit_keep_ratio_count")
            for gate in range(4)
        ]
        images = server.metric("svit_images_total", model_name="other")
        kserve = server.metric("request_predict_seconds_count", model_name="other")
        return [*gates, images, kserve]

    body, headers = images_request(offline["images"])
    before = np.array(told())
    for _ in range(2):
        parse(server.client.post("/v2/models/other/infer", content=body, headers=headers))
    kept = offline["keep_mask"].sum(axis=(0, 2))
    assert (np.array(told()) - before).tolist() == [*(2 * kept), *[2 * 6 * 65] * 4, *[12] * 5, 2]


def test_the_page_holds_no_data_and_asks_for_nothing_from_elsewhere(server: Server) -> None:
    response = server.client.get("/")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "http://" not in response.text and "https://" not in response.text
