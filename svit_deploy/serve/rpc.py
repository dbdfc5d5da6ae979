"""gRPC: KServe's service of the Open Inference Protocol V2."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from grpc import aio
from grpc_interceptor.server import AsyncServerInterceptor
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import (
    add_GRPCInferenceServiceServicer_to_server,
)
from kserve.protocol.grpc.servicer import InferenceServicer

from svit_deploy.errors import InputError, UsageError
from svit_deploy.io.files import reading
from svit_deploy.serve.guard import Gate
from svit_deploy.serve.refusals import answer_of
from svit_deploy.serve.repository import Extension, Plane
from svit_deploy.serve.rest import BACKLOG, MIB, own_error
from svit_deploy.serve.settings import ServeSettings

OPEN = ("/inference.GRPCInferenceService/ServerLive", "/inference.GRPCInferenceService/ServerReady")
"""What needs no token."""


class Answers(AsyncServerInterceptor):
    """Checks the token, and makes a status of every error."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    async def intercept(
        self,
        method: Callable[[Any, Any], Awaitable[Any]],
        request_or_iterator: Any,
        context: Any,
        method_name: str,
    ) -> Any:
        try:
            if method_name not in OPEN:
                given = dict(context.invocation_metadata() or ()).get("authorization", "")
                self.gate.check(given if isinstance(given, bytes) else given.encode())
            return await method(request_or_iterator, context)
        except Exception as error:
            answer = answer_of(own_error(error))
            await context.abort(grpc.StatusCode[answer.grpc], answer.sentence)


def make_server(
    plane: Plane, extension: Extension, gate: Gate, settings: ServeSettings
) -> aio.Server:
    """A server that is bound to its port and not yet started.

    Raises:
        SvitDeployError: the port is taken, or a certificate that cannot be used.
    """
    server = aio.server(
        interceptors=(Answers(gate),),
        options=[
            ("grpc.max_receive_message_length", settings.max_request * MIB),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
        ],
        maximum_concurrent_rpcs=settings.max_queue + BACKLOG,
    )
    add_GRPCInferenceServiceServicer_to_server(InferenceServicer(plane, extension), server)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    place = f"{host}:{settings.grpc_port}"
    try:
        if settings.tls_cert is None or settings.tls_key is None:
            server.add_insecure_port(place)
        else:
            with reading(settings.tls_key):
                pair = (settings.tls_key.read_bytes(), settings.tls_cert.read_bytes())
            server.add_secure_port(place, grpc.ssl_server_credentials([pair]))
    except RuntimeError:  # gRPC says no more
        fix = "give another --host or --grpc-port"
        raise UsageError(f"cannot listen at {place}", fix) from None
    except ValueError as error:
        raise InputError(f"the certificate cannot be used ({error})", "give PEM") from None
    return server
