"""CUDA graphs: when a run is recorded and replayed, and why not."""

from __future__ import annotations

import logging
from typing import Any

from svit_deploy.engines.device.binding import Binding
from svit_deploy.errors import CapabilityError, SvitDeployError, UsageError

log = logging.getLogger(__name__)

MODES = ("auto", "on", "off")
DYNAMIC = (
    "in token mode dynamic the host must wait for the number of tokens kept, in the middle of a run"
)


class CudaGraphs:
    """Records each shape once it has run, and replays it from then on.

    Args:
        mode: `auto` goes on without graphs where one cannot be captured, `on` fails, `off` never
            tries.

    Attributes:
        reason: why none is used; None while they are.
        captured: how many were recorded.
    """

    def __init__(self, mode: str) -> None:
        if mode not in MODES:
            raise UsageError(f"CUDA graph mode {mode!r} is unknown", f"use {', '.join(MODES)}")
        self.mode = mode
        self.reason = "switched off" if mode == "off" else None
        self.captured = 0

    def forbid(self, reason: str) -> None:
        """Uses none from now on.

        Raises:
            CapabilityError: they were asked for.
        """
        if self.mode == "on":
            raise CapabilityError(
                f"no CUDA graph can be captured: {reason}",
                "leave --cuda-graph on out"
                + (", or export with --tokens budget" if reason == DYNAMIC else ""),
            )
        if self.reason is None:
            log.info("no CUDA graph is used: %s", reason)
            self.reason = reason

    def enqueue(self, binding: Binding) -> bool:
        """Puts a run on the stream; returns whether it was a graph."""
        graph = binding.captured
        (binding.launch if graph else binding.enqueue)()
        return graph

    def capture(self, binding: Binding) -> None:
        """Records a shape that has just run plainly, as it must have before a capture.

        Raises:
            CapabilityError: it failed, in mode `on`.
        """
        if self.reason is not None or binding.captured:
            return
        if binding.data_dependent:
            outputs = ", ".join(map(repr, binding.data_dependent))
            self.forbid(f"the size of {outputs} depends on the data")
        elif not binding.is_capturable():
            self.forbid("the library says that this engine cannot be captured")
        elif binding.ready:
            try:
                binding.capture()
                self.captured += 1
            except SvitDeployError as error:
                self.forbid(error.message)

    def describe(self) -> dict[str, Any]:
        return {"mode": self.mode, "used": self.captured > 0, "reason": self.reason}
