"""What stands before the REST application: authorisation, limits, and clients that leave."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from svit_deploy.errors import InputError, SvitDeployError
from svit_deploy.io.files import reading
from svit_deploy.serve.refusals import Busy, TooLarge, TooSlow, Unauthorised, answer_of

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN = ("/", "/v2/health/live", "/v2/health/ready")
"""What needs no token: whether there is a server, and the page, which holds no data."""
SHORTEST = 16
LINGER = 2.0
"""Seconds in which a refused client may end its request."""


class Gate:
    """Lets in who brings the token; anybody where there is none."""

    def __init__(self, token: bytes | None) -> None:
        self.token = token

    @classmethod
    def of(cls, file: Path | None) -> Gate:
        """Of a file's first line; raises InputError."""
        if file is None:
            return cls(None)
        with reading(file):
            token = file.read_bytes().strip()
        if len(token) < SHORTEST or not token.isascii() or b"\n" in token:
            raise InputError(
                f"{file} holds no token of at least {SHORTEST} ASCII characters",
                "write one line with a long random word, as of `openssl rand -hex 32`",
            )
        return cls(token)

    def check(self, authorization: bytes) -> None:
        """Raises Unauthorised unless an Authorization header's value brings the token."""
        if self.token is None:
            return
        scheme, _, given = authorization.partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self.token):
            raise Unauthorised("the request brings no valid token", "send Authorization: Bearer")


class Guard:
    """An ASGI application around another.

    It takes in a whole request before the other sees it, so far as that is small and fast enough,
    and ends the other's work when the client has gone.

    Args:
        max_bytes: of a request's body.
        max_requests: that are in the house at once, whatever they ask.
        timeout: seconds to send one in.
    """

    def __init__(
        self, app: Application, gate: Gate, max_bytes: int, max_requests: int, timeout: float
    ) -> None:
        self.app, self.gate, self.timeout = app, gate, timeout
        self.max_bytes, self.max_requests, self.held = max_bytes, max_requests, 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        self.held += 1
        try:
            await self._answer(scope, receive, send)
        finally:
            self.held -= 1

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        try:
            if scope["path"] not in OPEN:
                self.gate.check(headers.get(b"authorization", b""))
            if self.held > self.max_requests:
                raise Busy(f"{self.max_requests} requests are here already", "try again later")
            length = headers.get(b"content-length", b"0")
            if length.isdigit() and int(length) > self.max_bytes:
                self._refuse_large()
            try:
                body = await asyncio.wait_for(self._read(receive), self.timeout)
            except asyncio.TimeoutError:
                raise TooSlow("the request did not arrive in time", "send it faster") from None
        except SvitDeployError as error:
            await self._refuse(error, receive, send)
            return
        if body is not None:
            await self._run(scope, body, receive, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The body; None where the client leaves before its end."""
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.max_bytes:
                self._refuse_large()
            more = message.get("more_body", False)
        return b"".join(parts)

    def _refuse_large(self) -> None:
        raise TooLarge(
            f"the request is larger than {self.max_bytes} bytes", "send fewer images at once"
        )

    async def _refuse(self, error: SvitDeployError, receive: Receive, send: Send) -> None:
        """Sends the refusal, and takes in some of what still comes.

        A connection that is closed on a client that sends is reset, and the client never reads
        why.
        """
        for message in refusal(error):
            await send(message)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._discard(receive), LINGER)
        await send({"type": "http.response.body", "body": b""})

    async def _discard(self, receive: Receive) -> None:
        size, more = 0, True
        while more and size <= self.max_bytes:
            message = await receive()
            size += len(message.get("body", b""))
            more = message.get("more_body", False)

    async def _run(self, scope: Message, body: bytes, receive: Receive, send: Send) -> None:
        given = [{"type": "http.request", "body": body, "more_body": False}]
        gone = asyncio.ensure_future(receive())

        async def replay() -> Message:
            return given.pop() if given else await asyncio.shield(gone)

        work = asyncio.ensure_future(self.app(scope, replay, send))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, gone):
                task.cancel()
            # Starlette raises again what its handler has told the client and the log.
            await asyncio.gather(work, gone, return_exceptions=True)


def refusal(error: BaseException) -> list[Message]:
    """A response with what `answer_of` says, but for its end."""
    answer = answer_of(error)
    content = json.dumps({"error": answer.sentence}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"connection", b"close"),
    ]
    if answer.http == 429:
        headers.append((b"retry-after", b"1"))
    if answer.http == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return [
        {"type": "http.response.start", "status": answer.http, "headers": headers},
        {"type": "http.response.body", "body": content, "more_body": True},
    ]
