"""The command line: reads options, calls `svit_deploy.api`, prints, ends with an exit code.

Nothing heavy is imported before a command runs, so that `--help` stays quick.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svit_deploy import __version__
from svit_deploy.errors import (
    EXIT_INTERNAL,
    EXIT_INTERRUPTED,
    ExportError,
    SvitDeployError,
    UsageError,
    VerificationFailed,
)

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    name="svit-deploy",
    help="Export token-pruned Vision Transformers, prove parity at every gate, measure latency.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Checkpoint = Annotated[Path, typer.Argument(help="Weights: .pth or .safetensors.")]
Arch = Annotated[
    str | None,
    typer.Option(help="Preset (svit_s, deit_small, ...) or YAML file: what weights cannot tell."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="One architecture field; may be repeated."),
]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Run code out of the checkpoint. Dangerous.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Json = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="Write the report; - for stdout.")
]
Images = Annotated[
    Path | None, typer.Option(help="Folder, picture or .npz (images [n,H,W,3] uint8).")
]
MaxImages = Annotated[int, typer.Option(min=1, help="Take only the first images.")]
Provider = Annotated[str, typer.Option(help="ONNX Runtime provider: cpu, cuda, tensorrt, ...")]
Threads = Annotated[int, typer.Option(min=0, help="Threads per operator; 0: one per core.")]

_state = {"verbose": False, "progress": True}


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"svit-deploy {__version__}")
        raise typer.Exit


@app.callback()
def configure(
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say more.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only warnings and errors.")] = False,
    no_progress: Annotated[bool, typer.Option("--no-progress", help="No progress bars.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("svit_deploy").setLevel(level)
    _state.update(verbose=verbose, progress=not (quiet or no_progress))


@app.command()
def export(
    checkpoint: Checkpoint,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    arch: Arch = None,
    overrides: Set = None,
    tokens: Annotated[
        str, typer.Option(help="dynamic, budget, masked, or dense (without gates).")
    ] = "dynamic",
    batch: Annotated[str, typer.Option(help="MIN:OPT:MAX, or one number.")] = "1:1:32",
    image_size: Annotated[
        str | None, typer.Option(help="Pixels, 224 or 224x320; default: the checkpoint's.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Tokens per gate: counts 150,110,80, ratios 0.75,0.55,0.4, or auto."),
    ] = None,
    budget_percentile: Annotated[
        float, typer.Option(help="Share of calibration images that must fit, with auto.")
    ] = 100.0,
    calibration: Annotated[
        Path | None, typer.Option(help="Images for --budget auto and the recorded samples.")
    ] = None,
    calibrate_gates: Annotated[
        Path | None, typer.Option(help="Images to choose each gate's threshold from.")
    ] = None,
    target_keep: Annotated[
        str | None, typer.Option(help="Keep ratios for it, 0.7,0.49,0.343; default: trained ones.")
    ] = None,
    max_images: MaxImages = 1000,
    gate_outputs: Annotated[
        bool, typer.Option(help="Keep keep_mask, margin and overflow as outputs.")
    ] = True,
    opset: Annotated[int, typer.Option(help="ONNX operator set.")] = 20,
    allow_pickle: AllowPickle = False,
    force: Force = False,
) -> None:
    """Export a checkpoint to an ONNX bundle."""
    from svit_deploy import api
    from svit_deploy.inspection import inspect_path

    bundle = api.export(
        checkpoint,
        output,
        arch=arch,
        overrides=_overrides(overrides),
        tokens=tokens,
        batch=batch,
        image_size=image_size,
        budget=budget,
        budget_percentile=budget_percentile,
        calibration=calibration,
        calibrate_gates=calibrate_gates,
        target_keep=target_keep,
        max_images=max_images,
        gate_outputs=gate_outputs,
        opset=opset,
        allow_pickle=allow_pickle,
        force=force,
        command=["svit-deploy", *sys.argv[1:]],
    )
    inspect_path(bundle.path).render(_console())
    typer.echo(f"wrote {output}; next: svit-deploy verify {output} --against {checkpoint}")


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder that export wrote.")],
    against: Annotated[
        Path | None, typer.Option(help="Checkpoint; default: the samples recorded at export.")
    ] = None,
    images: Images = None,
    labels: Annotated[Path | None, typer.Option(help="Labels of --images, for accuracy.")] = None,
    arch: Arch = None,
    overrides: Set = None,
    max_images: MaxImages = 1000,
    provider: Provider = "cpu",
    threads: Threads = 0,
    repeats: Annotated[int, typer.Option(min=2, help="Runs that must agree to the bit.")] = 3,
    allow_pickle: AllowPickle = False,
    json_file: Json = None,
) -> None:
    """Compare a bundle with its reference, gate by gate. Exit code 6 on failure."""
    from svit_deploy import api
    from svit_deploy.progress import show_progress

    with show_progress(enabled=_state["progress"]) as progress:
        report = api.verify(
            bundle,
            against=against,
            images=images,
            labels=labels,
            arch=arch,
            overrides=_overrides(overrides),
            max_images=max_images,
            provider=provider,
            threads=threads,
            repeats=repeats,
            allow_pickle=allow_pickle,
            progress=progress,
        )
    report.render(_console(json_file))
    _write_json(json_file, report.to_dict(["svit-deploy", *sys.argv[1:]]))
    if not report.passed:
        raise VerificationFailed(report.verdict.removeprefix("FAIL "), "do not ship this bundle")


@app.command()
def bench(
    targets: Annotated[list[Path], typer.Argument(help="Bundles or .onnx; first is baseline.")],
    images: Images = None,
    max_images: MaxImages = 1000,
    noise: Annotated[bool, typer.Option("--random", help="Noise instead of images.")] = False,
    allow_noise: Annotated[
        bool, typer.Option("--allow-noise", help="Noise even where content decides.")
    ] = False,
    batch: Annotated[str, typer.Option(help="Batch sizes, 1,8.")] = "1",
    warmup: Annotated[float, typer.Option(min=0, help="Seconds per engine and batch.")] = 1.0,
    duration: Annotated[float, typer.Option(min=0, help="Seconds per engine and batch.")] = 5.0,
    min_samples: Annotated[int, typer.Option(min=1, help="Runs per engine and batch.")] = 64,
    worst_case: Annotated[bool, typer.Option(help="Time all tokens kept, too.")] = True,
    sweep_tokens: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Latency against kept tokens, as a plot.")
    ] = None,
    provider: Provider = "cpu",
    threads: Threads = 0,
    seed: Annotated[int, typer.Option(help="Of the order of images and runs.")] = 0,
    require_stable: Annotated[bool, typer.Option(help="Fail on unstable timings.")] = False,
    fail_above: Annotated[
        list[str] | None, typer.Option(metavar="NAME=MS", help="Limit: p99=12, p50=8ms.")
    ] = None,
    json_file: Json = None,
) -> None:
    """Measure targets against each other. Exit code 7 when a limit is not met."""
    from svit_deploy import api
    from svit_deploy.bench import BenchSettings, plot_sweep, render
    from svit_deploy.progress import show_progress

    settings = BenchSettings(
        batches=_whole_numbers(batch, "--batch"),
        warmup_s=warmup,
        duration_s=duration,
        min_samples=min_samples,
        threads=threads,
        provider=provider,
        worst_case=worst_case,
        sweep=sweep_tokens is not None,
        seed=seed,
        require_stable=require_stable,
        fail_above=_limits(fail_above or []),
    )
    with show_progress(enabled=_state["progress"]) as progress:
        report = api.bench(
            list(targets),
            images=images,
            max_images=max_images,
            noise=noise,
            allow_noise=allow_noise,
            settings=settings,
            progress=progress,
        )
    render(report, _console(json_file))
    if sweep_tokens is not None:
        plot_sweep(report, sweep_tokens)
    _write_json(json_file, {"command": ["svit-deploy", *sys.argv[1:]], **report.to_dict()})
    report.raise_for_failures()


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="Checkpoint, bundle or .onnx file.")],
    json_file: Json = None,
) -> None:
    """Show what is in a file; nothing in it is executed."""
    from svit_deploy import api

    inspection = api.inspect(file)
    inspection.render(_console(json_file))
    _write_json(json_file, inspection.to_dict())


@app.command()
def visualize(
    target: Annotated[Path, typer.Argument(help="Folder that export wrote.")],
    images: Annotated[Path, typer.Option(help="Folder, picture or .npz.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    max_images: MaxImages = 100,
    provider: Provider = "cpu",
    threads: Threads = 0,
) -> None:
    """Draw how many gated blocks keep each token, over the pictures."""
    from svit_deploy import api
    from svit_deploy.progress import show_progress

    with show_progress(enabled=_state["progress"]) as progress:
        files = api.visualize(
            target,
            output,
            images=images,
            max_images=max_images,
            provider=provider,
            threads=threads,
            progress=progress,
        )
    typer.echo(f"wrote {len(files)} files to {output}")


@app.command()
def init(
    arch: Annotated[str, typer.Argument(help="Preset or YAML file with the sizes.")],
    output: Annotated[Path, typer.Option("-o", "--output", help=".pth or .safetensors file.")],
    keep_ratio: Annotated[
        str | None, typer.Option(help="Per gate or stage, 0.7,0.49,0.343; default: the preset's.")
    ] = None,
    seed: int = 0,
    force: Force = False,
) -> None:
    """Write a random-weight checkpoint with calibrated gates, to plan latency before training."""
    from svit_deploy import api

    made = api.init(arch, output, keep_ratio=keep_ratio, seed=seed, force=force)
    ratios = ", ".join(f"{ratio:.3f}" for ratio in made.keep_ratios)
    gates = f", gates keep {ratios} of synthetic images" if ratios else ""
    typer.echo(f"wrote {output}: random {made.arch}{gates}")


@app.command()
def doctor(json_file: Json = None) -> None:
    """Show what is installed, which commands will work, and what to install for the rest."""
    from svit_deploy.doctor import examine, render, to_dict

    findings = examine()
    render(findings, _console(json_file))
    _write_json(json_file, to_dict(findings))


@app.command()
def quickstart(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")] = Path(
        "quickstart"
    ),
    force: Force = False,
) -> None:
    """Run everything once on the bundled digits model: export, verify, bench, visualize."""
    from svit_deploy.progress import show_progress
    from svit_deploy.quickstart import run_quickstart

    with show_progress(enabled=_state["progress"]) as progress:
        run_quickstart(output, _console(), progress, force=force)


def _console(json_file: str | None = None) -> Console:
    """Standard output, or standard error when the JSON goes to standard output."""
    from rich.console import Console

    return Console(stderr=json_file == "-", soft_wrap=False)


def _overrides(pairs: list[str] | None) -> Mapping[str, str]:
    parsed = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {pair!r} is not KEY=VALUE", "write, e.g., --set num_heads=6")
        parsed[key.strip()] = value
    return parsed


def _whole_numbers(text: str, option: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"{option} {text!r} is not a list of whole numbers", f"write, e.g., {option} 1,8"
        ) from None


def _limits(pairs: list[str]) -> dict[str, float]:
    limits = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            limits[name] = float(value.removesuffix("ms"))
        except ValueError:
            raise UsageError(
                f"--fail-above {pair!r} is not NAME=MILLISECONDS", "write, e.g., p99=12"
            ) from None
    return limits


def _write_json(json_file: str | None, content: Mapping[str, Any]) -> None:
    if json_file is None:
        return
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    if json_file == "-":
        sys.stdout.write(text)
        return
    try:
        Path(json_file).write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise ExportError(
            f"cannot write {json_file} ({error.strerror})", "give another file with --json"
        ) from error


def main() -> None:
    """Entry point: turns errors into one sentence and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a cp1252 console must not fail on a file's name
            stream.reconfigure(errors="replace")
    try:
        app()
    except SvitDeployError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted, nothing half-written was left.", EXIT_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(EXIT_INTERNAL) from None
    except Exception as error:
        if _state["verbose"]:
            raise
        _fail(
            f"unexpected {type(error).__name__}: {error}. This is a bug: please report it, with "
            "the output of the same command with -v before its name.",
            EXIT_INTERNAL,
        )


def _fail(sentence: str, exit_code: int) -> None:
    sys.stderr.write(f"error: {' '.join(sentence.split())}\n")
    raise SystemExit(exit_code)


if __name__ == "__main__":
    main()
