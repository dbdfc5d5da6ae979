"""The command line: runs a command, and turns errors into one sentence and an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer

from svit_deploy import __version__
from svit_deploy.commands.bench import bench
from svit_deploy.commands.common import (
    Invocation,
    configure_logging,
    restore_logging,
)
from svit_deploy.commands.debug import debug
from svit_deploy.commands.evaluate import evaluate
from svit_deploy.commands.export import export
from svit_deploy.commands.others import doctor, init, inspect, list_, quickstart
from svit_deploy.commands.package import package
from svit_deploy.commands.plugins import plugins
from svit_deploy.commands.predict import predict, visualize
from svit_deploy.commands.run import run
from svit_deploy.commands.serve import serve
from svit_deploy.commands.tune import tune
from svit_deploy.commands.verify import verify
from svit_deploy.errors import (
    EXIT_CAPABILITY,
    EXIT_EXPORT,
    EXIT_INPUT,
    EXIT_INTERNAL,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_PIPE,
    EXIT_USAGE,
    SIGNALLED,
    SvitDeployError,
)
from svit_deploy.io.text import sentence

# Typer brings its own click or uses the one installed, depending on its version.
TyperUsageError: Any = typer.BadParameter.__base__

PROGRAM = "svit-deploy"
COMPLETE = "_SVIT_DEPLOY_COMPLETE"
"""The variable by which a shell asks what a word may become."""

app = typer.Typer(
    name=PROGRAM,
    help="Export token-pruned Vision Transformers, prove parity at every gate, measure latency.",
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for command in (
    *(export, verify, debug, evaluate, bench, tune, predict, serve, package, run),
    *(inspect, visualize, init, list_, doctor, quickstart),
):
    app.command(command.__name__.rstrip("_"))(command)
app.add_typer(plugins)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"svit-deploy {__version__}")
        raise typer.Exit


@app.callback()
def configure(
    context: typer.Context,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Show details, and a bug's traceback.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="Show only warnings and errors.")
    ] = False,
    no_progress: Annotated[
        bool, typer.Option("--no-progress", help="Show no progress bars.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    invocation: Invocation = context.obj
    invocation.verbose, invocation.quiet, invocation.no_progress = verbose, quiet, no_progress
    configure_logging(invocation)


def main(args: Sequence[str] | None = None) -> int:
    """Runs a command line.

    Args:
        args: what follows the program's name; the process's own by default.

    Returns:
        The exit code (see `svit_deploy.errors`).
    """
    invocation = Invocation(sys.argv[1:] if args is None else list(args))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a cp1252 console must not fail on a file's name
            stream.reconfigure(errors="replace")
    try:
        with _signals_end_it():
            return _run(invocation)
    except SvitDeployError as error:
        return _fail(str(error), error.exit_code)
    except TyperUsageError as error:
        return _fail(_usage_sentence(error), EXIT_USAGE)
    except Terminated as error:
        return _fail("terminated, nothing half-written was left.", SIGNALLED + error.signal)
    except KeyboardInterrupt:
        return _fail("interrupted, nothing half-written was left.", EXIT_INTERRUPTED)
    except SystemExit as end:  # of typer, once the work is done
        return int(end.code or EXIT_OK)
    except BrokenPipeError:
        _abandon_output()
        return EXIT_PIPE
    except Exception as error:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # PyTorch's
            fix = "lower --max-images, --batch or --image-size"
            return _fail(f"out of memory; {fix}.", EXIT_CAPABILITY)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            _abandon_output()
            return _fail(f"cannot write ({error.strerror}); make room on the disk.", EXIT_EXPORT)
        if isinstance(error, OSError) and error.filename is not None:
            return _fail(f"{error.filename}: {error.strerror}; check the path.", EXIT_INPUT)
        if invocation.verbose:
            raise
        return _fail(
            f"unexpected {type(error).__name__}: {error}. This is a bug: please report it, with "
            "the output of the same command with -v before its name.",
            EXIT_INTERNAL,
        )


class Terminated(KeyboardInterrupt):
    """A signal that asks the process to end, as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = number


@contextlib.contextmanager
def _signals_end_it() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP end what runs as Ctrl-C does, so that it takes its parts away.

    Not where somebody else has a say: another thread's program, or nohup.
    """

    def end(number: int, _frame: object) -> None:
        raise Terminated(number)

    names = ("SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    ours = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    try:
        for number in ours:
            signal.signal(number, end)
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _run(invocation: Invocation) -> int:
    if COMPLETE in os.environ:  # a shell asks for words, typer answers and exits
        app(prog_name=PROGRAM)
    # Not app(): that would turn errors into boxes, and Ctrl-C into an exit code without a word.
    group = typer.main.get_command(app)
    try:
        with group.make_context(
            PROGRAM, list(invocation.args) or ["--help"], obj=invocation
        ) as context:
            group.invoke(context)
        code = EXIT_OK
    except typer.Exit as end:
        # 1 would be a bug: typer refuses so, in words of its own, a shell that it does not know.
        code = EXIT_USAGE if end.exit_code == EXIT_INTERNAL else end.exit_code
    finally:
        restore_logging()
    if sys.stdout is not None:
        sys.stdout.flush()  # here, where an error can still be told
    return code


def _usage_sentence(error: Any) -> str:
    message = error.format_message().replace(". Did you mean", ", did you mean").rstrip(".?")
    path = error.ctx.command_path if error.ctx else "svit-deploy"
    return f"{message[:1].lower()}{message[1:]}; see {path} --help."


def _fail(text: str, exit_code: int) -> int:
    with contextlib.suppress(OSError, AttributeError):  # nobody may be listening
        sys.stderr.write(f"error: {sentence(text)}\n")
        sys.stderr.flush()
    return exit_code


def _abandon_output() -> None:
    """Lets the interpreter's own last flush of standard output go nowhere."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
