"""REST: KServe's endpoints of the Open Inference Protocol V2, metrics, and the page."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Iterator
from importlib.resources import files

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, ORJSONResponse
from kserve.errors import InvalidInput, ModelNotFound, ModelNotReady, ServerNotReady
from kserve.protocol.rest.server import metrics_handler
from kserve.protocol.rest.v2_endpoints import register_v2_endpoints
from starlette.exceptions import HTTPException

from svit_deploy.errors import InputError, SvitDeployError, UsageError
from svit_deploy.serve.guard import Gate, Guard
from svit_deploy.serve.refusals import Refused, Unknown, Unsupported, answer_of
from svit_deploy.serve.repository import Extension, Plane
from svit_deploy.serve.settings import ServeSettings

MIB = 2**20
BACKLOG = 256
"""Requests beyond the queue that may be in the house: being read, refused, or for metrics."""
PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'"
)

FORESEEN = (
    *(SvitDeployError, HTTPException, RequestValidationError, NotImplementedError),
    *(InvalidInput, ModelNotFound, ModelNotReady, ServerNotReady),
)


def make_app(plane: Plane, extension: Extension, gate: Gate, settings: ServeSettings) -> Guard:
    """The application of all routes, behind its guard."""
    app = FastAPI(
        title="svit-deploy",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        default_response_class=ORJSONResponse,
    )
    register_v2_endpoints(app, plane, extension)
    app.add_api_route("/metrics", metrics_handler, methods=["GET"])
    app.add_api_route("/", _page, methods=["GET"])
    for kind in (*FORESEEN, Exception):
        app.add_exception_handler(kind, _tell)
    most = settings.max_queue + BACKLOG
    return Guard(app, gate, settings.max_request * MIB, most, settings.timeout)


async def _page() -> Response:
    content = files("svit_deploy.serve").joinpath("page.html").read_text("utf-8")
    return HTMLResponse(content, headers={"content-security-policy": PAGE_POLICY})


async def _tell(request: Request, error: Exception) -> Response:
    answer = answer_of(own_error(error))
    headers = {"retry-after": "1"} if answer.http == 429 else None
    return JSONResponse({"error": answer.sentence}, answer.http, headers)


def own_error(error: Exception) -> Exception:
    """An error of KServe or FastAPI as one of ours; others as they are."""
    match error:
        case ModelNotFound():
            return Unknown(str(error).rstrip("."), "see /v2/models")
        case ModelNotReady() | ServerNotReady():
            return Refused(str(error).rstrip("."), "try again later")
        case InvalidInput():
            return InputError(str(error).rstrip("."), "see the Open Inference Protocol, version 2")
        case NotImplementedError():
            return Unsupported("the server does not do that", "leave the version out")
        case RequestValidationError():
            what = error.errors()[0]
            place = ".".join(str(part) for part in what.get("loc", ()))
            return InputError(
                f"the request is malformed ({place}: {what.get('msg', '')})"[:300],
                "see the Open Inference Protocol, version 2",
            )
        case HTTPException(status_code=404):
            return Unknown("there is nothing at this address", "see /v2/models")
        case HTTPException(status_code=405):
            return Unsupported("the address does not take this method", "use another")
        case HTTPException():
            return InputError(f"the request is refused ({error.status_code})", "mend it")
    return error


class RestServer(uvicorn.Server):
    """Uvicorn on a socket that is bound already, without hands on the process's signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_server(app: Guard, settings: ServeSettings) -> RestServer:
    """Raises SvitDeployError for a certificate that cannot be used."""
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=max(round(settings.grace), 1),
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    try:
        config.load()
    except (OSError, ValueError) as error:
        raise InputError(
            f"{settings.tls_cert} and {settings.tls_key} are no certificate and key ({error})",
            "give both in PEM",
        ) from None
    return RestServer(config)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; raises UsageError where it cannot."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise UsageError(
            f"cannot listen at {host}:{port} ({error.strerror or error})",
            "give another --host or --port",
        ) from None
