"""Requests of the Open Inference Protocol as arrays and pictures, and results as responses."""

from __future__ import annotations

import base64
import binascii
import io
import struct
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from kserve import InferInput, InferOutput, InferRequest, InferResponse
from kserve.protocol.infer_type import RequestedOutput, deserialize_bytes_tensor
from kserve.utils.numpy_codec import from_np_dtype, to_np_dtype

from svit_deploy.bundle import Bundle
from svit_deploy.engines.base import TensorSpec, check_feeds
from svit_deploy.errors import InputError
from svit_deploy.images.pictures import check_picture, decode_picture
from svit_deploy.inference.stream import Read
from svit_deploy.names import INPUT
from svit_deploy.tasks.samples import prepare
from svit_deploy.tasks.task import Arrays

PICTURES, BYTES = "pictures", "BYTES"
FORMATS = ("JPEG", "PNG")
HEADER_LENGTH = "inference-header-content-length"
MALFORMED = (
    *(ValueError, TypeError, KeyError, AttributeError, IndexError),
    *(struct.error, OverflowError, MemoryError),
)
"""What parsing raises that finds something else than it looks for."""
FORM_FIX = "see the Open Inference Protocol, version 2"


def read_binary(body: bytes, headers: Mapping[str, str], model: str) -> InferRequest:
    """A REST request whose tensors follow its JSON, as the protocol's binary extension has it.

    KServe reads them as lists of Python numbers, and bytes as text, which a picture is not.

    Raises:
        InputError: it is of no such form.
    """
    try:
        start = int(headers.get(HEADER_LENGTH, len(body)))
        if not 0 <= start <= len(body):
            raise ValueError("the JSON's length is wrong")
        told = orjson.loads(body[:start])
        inputs = []
        for one in told["inputs"]:
            data, parameters = one.get("data"), one.get("parameters") or {}
            if data is None:
                end = start + int(parameters["binary_data_size"])
                if not start <= end <= len(body):
                    raise ValueError("binary data is missing")
                data = _from_bytes(body[start:end], one["datatype"])
                start = end
            inputs.append(InferInput(one["name"], list(one["shape"]), one["datatype"], data))
        asked = [
            RequestedOutput(str(one["name"]), dict(one.get("parameters") or {}))
            for one in told.get("outputs") or ()
        ]
        name, extra = told.get("id"), dict(told.get("parameters") or {})
    except MALFORMED as error:
        raise InputError(f"the request is malformed ({_why(error)})", FORM_FIX) from None
    return InferRequest(
        model,
        inputs,
        None if name is None else str(name),
        parameters=extra,
        request_outputs=asked or None,
    )


def _from_bytes(data: bytes, datatype: str) -> np.ndarray:
    if datatype == BYTES:
        return deserialize_bytes_tensor(data)
    dtype = to_np_dtype(datatype)
    if dtype is None:
        raise ValueError(f"there is no datatype {datatype!r:.40}")
    return np.frombuffer(data, dtype)


def read_arrays(request: InferRequest) -> Arrays:
    """A request's tensors.

    Raises:
        InputError: data that do not fit the datatype or the shape, or a name that stands twice.
    """
    arrays: Arrays = {}
    for tensor in request.inputs:
        name = tensor.name
        try:
            if any(side < 0 for side in tensor.shape):
                raise ValueError("a side is negative")
            array = tensor.as_numpy()
        except (*MALFORMED, RuntimeError) as error:
            raise InputError(
                f"input {name!r:.80} does not hold {tensor.datatype!s:.20} of shape "
                f"{tensor.shape!s:.80} ({_why(error)})",
                "send as many values as the shape has",
            ) from None
        if name in arrays:
            raise InputError(f"input {name!r:.80} stands twice", "send it once")
        arrays[name] = array
    return arrays


def count_images(request: InferRequest) -> int:
    """How many images a request claims to hold; what it holds is seen when it is read."""
    shapes = [tensor.shape for tensor in request.inputs if tensor.name in (PICTURES, INPUT)]
    try:
        return max(int(shapes[0][0]), 1)
    except (IndexError, ValueError, TypeError):
        return 1


def read_images(
    arrays: Arrays, bundle: Bundle, specs: Sequence[TensorSpec], max_pixels: int
) -> list[Read]:
    """The images of a request: encoded pictures, or what the graph takes.

    Raises:
        InputError: what the model cannot run.
    """
    if PICTURES in arrays:
        if len(arrays) > 1:
            raise InputError("pictures and tensors cannot be mixed", f"send {PICTURES!r} alone")
        if bundle.config.frames:
            raise InputError("the model takes videos, not pictures", f"send views as {INPUT!r}")
        images = [
            _read_picture(number, one, bundle, max_pixels)
            for number, one in enumerate(arrays[PICTURES].ravel())
        ]
    else:
        check_feeds(specs, arrays)
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise InputError("the tensors hold values that are no numbers", "send finite values")
        if len({len(array) for array in arrays.values()}) > 1:
            raise InputError("the tensors are of different numbers of images", "send as many each")
        bundle.sizes.check(arrays[INPUT].shape[-2:])
        images = [
            Read(number, image.pixels, image)
            for number, image in enumerate(bundle.task.fed(arrays))
        ]
    if not images:
        raise InputError("the request holds no image", "send one or more")
    return images


def _read_picture(number: int, content: Any, bundle: Bundle, max_pixels: int) -> Read:
    name = str(number)
    if isinstance(content, str):  # JSON has no bytes
        try:
            content = base64.b64decode(content, validate=True)
        except (binascii.Error, ValueError):
            raise InputError(f"picture {name} is not base64", "encode it, or send binary") from None
    if not isinstance(content, bytes):
        raise InputError(f"picture {name} is no file", f"send it as {BYTES}")
    array = decode_picture(io.BytesIO(content), name, formats=FORMATS, max_pixels=max_pixels)
    check_picture(array, name)
    image = prepare(array, name, None, bundle.task, bundle.config, bundle.sizes)
    return Read(number, array, image)


def respond(
    request: InferRequest, arrays: Arrays, parameters: Mapping[str, str | bool | int]
) -> InferResponse:
    """A response with some arrays, in the form that the request asks for."""
    asked = {one.name: one for one in request.request_outputs or ()}
    outputs = []
    for name, array in arrays.items():
        one = asked.get(name)
        binary = request.use_binary_outputs if one is None else bool(one.binary_data)
        if array.dtype == np.object_ and not binary and not request.from_grpc:
            array = np.array([_text(value) for value in array], np.object_)
        output = InferOutput(name, list(array.shape), from_np_dtype(array.dtype), array)
        if request.from_grpc:  # where KServe asks an array whether it is true
            output.set_data_from_numpy(array, binary_data=True)
        outputs.append(output)
    return InferResponse(
        request.id or str(uuid.uuid4()),
        request.model_name,
        outputs,
        from_grpc=request.from_grpc,
        parameters=dict(parameters),
        use_binary_outputs=request.use_binary_outputs,
        requested_outputs=request.request_outputs,
    )


def _text(value: bytes) -> str:
    """Bytes in JSON: text as it is, else base64."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return base64.b64encode(value).decode("ascii")


def _why(error: BaseException) -> str:
    text = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return "".join(c if c.isprintable() else "?" for c in text[:200]) or type(error).__name__
