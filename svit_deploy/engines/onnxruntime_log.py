"""What ONNX Runtime says of a failure: kept off the terminal, and made one short line."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence

# Around the sentence that matters: the error code, the step, the C++ file, line and signature.
_NOISE = (
    re.compile(r"\x1b\[[\d;]*m"),
    re.compile(r"^.*?\[ONNXRuntimeError\] : \d+ : (\w+ : )?"),
    re.compile(r"^Load model from .*? failed:"),
    re.compile(r"Exception during initialization: "),
    re.compile(
        r"\S+\.(cc|h|hpp|cpp):\d+ [^()]*\(([^()]|\([^()]*\))*\)( const)?( \[with [^\]]*\])? "
    ),
)
_NODE = re.compile(
    r"Non-zero status code returned while running (?P<type>\w+) node\. Name:'(?P<name>[^']*)' "
    r"Status Message: "
)


@contextlib.contextmanager
def captured_output() -> Iterator[list[str]]:
    """Collects what the block prints: a provider that cannot start says why only there.

    ONNX Runtime's C++ logger writes to file descriptor 2 and offers Python no hook; its Python
    part prints to stdout. The list is filled when the block ends.
    """
    lines: list[str] = []
    with contextlib.ExitStack() as files:
        sink = None
        if sys.stderr is not None:  # else the descriptor may be any other file's
            with contextlib.suppress(OSError):  # no place for a file
                sink = files.enter_context(tempfile.TemporaryFile())
        if sink is None:
            yield lines
            return
        printed = io.StringIO()
        sys.stderr.flush()
        saved = os.dup(2)
        os.dup2(sink.fileno(), 2)
        try:
            with contextlib.redirect_stdout(printed):
                yield lines
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            sink.seek(0)
            lines += sink.read().decode(errors="replace").splitlines()
            lines += printed.getvalue().splitlines()


def first_error(log: Sequence[str]) -> str:
    """The first error in ONNX Runtime's log, without its time stamp and source lines."""
    errors = [line for line in log if "[E:onnxruntime" in line]
    return one_line(errors[0]) if errors else ""


def one_line(text: str, limit: int = 240) -> str:
    """A message of ONNX Runtime without its noise, cut to a length."""
    text = " ".join(text.split())
    for noise in _NOISE:
        text = noise.sub("", text)
    text = _NODE.sub(_node, text).rstrip(". ")
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _node(found: re.Match[str]) -> str:
    name = f" {found['name']!r}" if found["name"] else ""
    return f"{found['type']}{name}: "
