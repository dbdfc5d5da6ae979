"""What a build process tells its parent: lines of JSON on what was its standard output.

Anything else that it prints, TensorRT's own chatter above all, goes to standard error.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from typing import Any

from svit_deploy.errors import SvitDeployError

PROGRESS, LOG, ERROR, RESULT = "progress", "log", "error", "result"
INTERVAL_S = 0.2


class Channel:
    """The child's end.

    Attributes:
        is_open: False once the parent is gone; whatever the child does is then in vain.
        errors: what TensorRT called an error since the list was last cleared.
        layers: the list of an engine's layers, where the builder logs it.
    """

    def __init__(self) -> None:
        self._stream = os.fdopen(os.dup(1), "w", encoding="ascii")
        os.dup2(2, 1)
        self._lock = threading.Lock()  # TensorRT logs from its own threads
        self.is_open = True
        self.errors: list[str] = []
        self.layers = ""

    def send(self, kind: str, content: Any) -> None:
        with self._lock:
            try:
                print(json.dumps({kind: content}), file=self._stream, flush=True)
            except OSError:
                self.is_open = False

    def progress(self, description: str, fraction: float) -> None:
        """Says how much of the whole build is done, from 0 to 1."""
        self.send(PROGRESS, [description, round(fraction, 3)])

    def error(self, error: SvitDeployError) -> None:
        self.send(ERROR, [type(error).__name__, error.message, error.fix])


def make_logger(trt: Any, channel: Channel) -> Any:
    """A TensorRT logger that writes to the channel."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, message: str) -> None:
            levels = trt.ILogger
            if severity == levels.VERBOSE:
                if message.startswith("Layers:\nName:"):
                    channel.layers = message
                return
            if severity in (levels.ERROR, levels.INTERNAL_ERROR):
                channel.errors.append(message)
            # A warning of a build that goes well, even an error, is nothing a user can act on.
            channel.send(LOG, [logging.DEBUG, message])

    return Logger()


def make_monitor(trt: Any, channel: Channel, start: float) -> Any:
    """A TensorRT progress monitor that writes to the channel and ends a build that is in vain.

    Args:
        start: how much of the whole was done before.
    """

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()
            self._phases: dict[str, list[Any]] = {}  # name: parent, its steps, those done
            self._fraction, self._told = 0.0, float("-inf")

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self._phases[name] = [parent, max(1, steps), 0]

        def step_complete(self, name: str, step: int) -> bool:
            if name in self._phases:
                self._phases[name][2] = step + 1
                self._fraction = max(self._fraction, self._done(name))
            if time.monotonic() - self._told > INTERVAL_S:
                self._told = time.monotonic()
                channel.progress("building the engine", start + (1 - start) * self._fraction)
            return channel.is_open

        def phase_finish(self, name: str) -> None:
            self._phases.pop(name, None)

        def _done(self, name: str | None) -> float:
            """Of the outermost phase, in which each step of an inner one is part of a step."""
            done = 0.0
            while name in self._phases:
                name, steps, finished = self._phases[name]
                done = min(1.0, (finished + done) / steps)
            return done

    return Monitor()
