"""Errors a user can act on: one sentence, one fix, one documented exit code.

Anything else that reaches the command line is a bug and ends with exit code 1.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_INTERNAL = 1
EXIT_USAGE = 2
EXIT_INPUT = 3
EXIT_CAPABILITY = 4
EXIT_EXPORT = 5
EXIT_VERIFY = 6
EXIT_BENCH = 7
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141
"""Whoever read standard output stopped reading, as a shell reports it."""
SIGNALLED = 128
"""Plus the number of the signal that asked for the end: 129 for SIGHUP, 143 for SIGTERM."""


class SvitDeployError(Exception):
    """A failure the user can fix.

    Args:
        message: what is wrong, one sentence without a full stop at the end.
        fix: what to do about it, starting with a verb.
    """

    exit_code = EXIT_INTERNAL

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}; {self.fix}." if self.fix else f"{self.message}."


class UsageError(SvitDeployError):
    """An option or argument has a value that cannot work (exit code 2)."""

    exit_code = EXIT_USAGE


class InputError(SvitDeployError):
    """A checkpoint, ONNX file, bundle, configuration or image is bad (exit code 3)."""

    exit_code = EXIT_INPUT


class CapabilityError(SvitDeployError):
    """This machine lacks a package, a provider or a device (exit code 4)."""

    exit_code = EXIT_CAPABILITY


class ExportError(SvitDeployError):
    """The export or the build of an engine failed, or an output cannot be written (exit code 5)."""

    exit_code = EXIT_EXPORT


class VerificationFailed(SvitDeployError):
    """The run went fine and the outputs disagree (exit code 6)."""

    exit_code = EXIT_VERIFY


class BenchmarkFailed(SvitDeployError):
    """A limit asked of the benchmark was not met (exit code 7)."""

    exit_code = EXIT_BENCH
