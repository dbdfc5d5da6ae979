"""Options: declared in a dataclass, read alike on the command line and as keywords."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import svit_deploy
from svit_deploy.bench.settings import BenchSettings
from svit_deploy.bench.stats import percentile_floor
from svit_deploy.cli import main
from svit_deploy.commands.parameters import with_options
from svit_deploy.debug.settings import DebugSettings
from svit_deploy.engines.settings import RunSettings
from svit_deploy.errors import UsageError
from svit_deploy.evaluate.settings import EvaluateSettings
from svit_deploy.export.settings import EngineOptions, ExportSettings
from svit_deploy.loading.settings import LoadSettings
from svit_deploy.model.config import BatchRange, TokenMode
from svit_deploy.options import OPTION, option, options_of, read_options, words_of
from svit_deploy.predict.settings import PredictSettings, VisualizeSettings
from svit_deploy.tune.settings import TuneSettings
from svit_deploy.verify.settings import VerifySettings

ALL = (
    BenchSettings,
    DebugSettings,
    EvaluateSettings,
    ExportSettings,
    LoadSettings,
    PredictSettings,
    RunSettings,
    TuneSettings,
    VerifySettings,
    VisualizeSettings,
)


def parse_pair(text: str, flag: str) -> tuple[int, int]:
    low, dash, high = text.partition("-")
    if not dash:
        raise UsageError(f"{flag} {text!r} is no pair", "write 1-2")
    return int(low), int(high)


def parse_words(texts: tuple[str, ...], flag: str) -> dict[str, str]:
    return dict.fromkeys(texts, flag)


@dataclass(frozen=True, kw_only=True)
class Shared:
    number: int = option(3, "A number.", metavar="N", low=1, high=9)
    label: str | None = option(None, "A label.")
    risky: bool = option(False, "A risk.", flag="--dangerous")


@dataclass(frozen=True, kw_only=True)
class Settings(Shared):
    folder: Path = option(MISSING, "A folder.", metavar="DIR", kind=Path)
    pair: tuple[int, int] = option(
        (1, 2), "A pair.", parse=parse_pair, typed="1-2", after=("number", "absent")
    )
    words: Mapping[str, str] = option(dict, "Words.", flag="--word", many=True, parse=parse_words)
    plain: tuple[str, ...] = option((), "Texts.", many=True)
    careful: bool = option(True, "Care.")
    share: float = option(0.5, "A share.", low=0)
    level: int | None = option(None, "A level.", kind=int)
    inner: int = 7


def read(**given: Any) -> Settings:
    return read_options(Settings, None, {"folder": "f", **given})


def typed(*args: str) -> Any:
    """What a command gets of a command line: its settings, or the error."""
    got = []
    app = typer.Typer(rich_markup_mode=None)

    @app.command()
    @with_options(Settings)
    def command(context: typer.Context, first: str, settings: Settings, last: str = "end") -> None:
        """Does something."""
        got.append((first, settings, last))

    result = CliRunner().invoke(app, ["one", *args])
    if isinstance(result.exception, UsageError):
        return str(result.exception)
    return got[0][1] if got else result.output


def test_an_option_stands_on_the_command_line():
    assert typed("--folder", "f") == Settings(folder=Path("f"))
    line = (
        "--folder f --number 4 --label x --dangerous --pair 3-4 --word a --word b --plain c "
        "--plain d --no-careful --share 0 --level 2"
    )
    assert typed(*line.split()) == Settings(
        folder=Path("f"),
        number=4,
        label="x",
        risky=True,
        pair=(3, 4),
        words={"a": "--word", "b": "--word"},
        plain=("c", "d"),
        careful=False,
        share=0.0,
        level=2,
    )


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "'--folder'"),
        (["--folder", "f", "--pair", "3"], "--pair '3' is no pair; write 1-2."),
        (["--folder", "f", "--number", "10"], "'--number'"),
        (["--folder", "f", "--level", "high"], "'--level'"),
        (["--folder", "f", "--inner", "1"], "--inner"),
        (["--folder", "f", "--no-dangerous"], "--no-dangerous"),
    ],
)
def test_what_cannot_be_typed(args, words):
    assert words in typed(*args)


def test_help_shows_own_options_first_and_defaults_as_typed():
    order = ["folder", "number", "pair", "words", "plain", "careful", "share", "level"]
    assert list(options_of(Settings)) == [*order, "label", "risky"]
    lines = typed("--help")
    flags = ["--folder", "--number", "--pair", "--word", "--plain", "--careful", "--dangerous"]
    places = [lines.index(f" {flag} ") for flag in flags]
    assert places == sorted(places)
    assert "[default: 1-2]" in lines
    assert lines.index("--dangerous") < lines.index("--last")


def test_keywords_are_values_or_what_would_be_typed():
    assert read(pair="3-4", number="4", share="0.25", folder=Path("f")) == Settings(
        folder=Path("f"), pair=(3, 4), number=4, share=0.25
    )
    assert read(pair=(3, 4), words={"a": "b"}, plain=["c"], label=Path("x")) == Settings(
        folder=Path("f"), pair=(3, 4), words={"a": "b"}, plain=("c",), label="x"
    )
    assert read(words=["a", "b"], plain="c").words == {"a": "--word", "b": "--word"}
    assert read(label=224).label == "224"
    images = object()
    assert read(folder=images).folder is images
    assert read(inner=8).inner == 8
    assert read(number=None, pair=None, words=None, level=None) == Settings(folder=Path("f"))


def test_keywords_win_over_settings():
    base = Settings(folder=Path("f"), number=5, pair=(5, 6))
    assert read_options(Settings, base, {}) == base
    changed = read_options(Settings, base, {"pair": "7-8", "number": None})
    assert changed == Settings(folder=Path("f"), pair=(7, 8))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"colour": 1}, "there is no option 'colour'; use one of number, label, risky, folder"),
        ({"folder": None}, "--folder is missing"),
        ({"pair": "3"}, "--pair '3' is no pair; write 1-2"),
        ({"number": 10}, "--number 10 is out of range; give 1 to 9"),
        ({"number": "0"}, "--number 0 is out of range"),
        ({"number": 3.5}, "--number 3.5 is not a whole number"),
        ({"number": "many"}, "--number 'many' is not a whole number"),
        ({"number": [1]}, "is not a whole number"),
        ({"number": float("inf")}, "is not a whole number"),
        ({"share": -1}, "--share -1 is out of range; give 0 or more"),
        ({"share": "nan"}, "--share nan is out of range"),
        ({"share": float("nan")}, "is not a number"),
        ({"careful": "no"}, "--careful 'no' is no switch; give True or False"),
        ({"risky": 1}, "--dangerous 1 is no switch"),
    ],
)
def test_keywords_that_cannot_work(given, words):
    with pytest.raises(UsageError) as caught:
        read(**given)
    assert words in str(caught.value)
    assert caught.value.fix


def test_a_positional_option_is_named_without_dashes():
    with pytest.raises(UsageError, match=r"^images is missing"):
        read_options(PredictSettings, None, {})
    assert read_options(PredictSettings, None, {"images": "x"}).images == Path("x")


# --- the settings of the commands ---------------------------------------------------------------


@pytest.mark.parametrize("settings", ALL)
def test_options_are_complete(settings):
    for name, one in options_of(settings).items():
        asked, default = one.option, one.field.default
        assert asked.help.endswith("."), name
        if asked.parse and not asked.many and default not in (None, ()):
            assert one.read(asked.typed) == default, name
        assert asked.metavar or one.kind is bool, name
    flags = [one.flag for one in options_of(settings).values()]
    assert len(flags) == len(set(flags))
    untold = {one.name for one in fields(settings) if OPTION not in one.metadata}
    assert untold <= {"companions"}


def test_benchmarks_time_enough_for_p90():
    assert BenchSettings().min_samples == percentile_floor(90)
    assert not BenchSettings().sweep
    assert BenchSettings(sweep_tokens=Path("a.png")).sweep


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command line against an API that only remembers its settings."""

    def run(*args: str) -> Any:
        got = []

        def remember(*given: Any, **options: Any) -> None:
            got.extend(one for one in given if isinstance(one, ALL))
            raise typer.Exit

        names = ("export", "verify", "evaluate", "bench", "predict", "visualize")
        api = SimpleNamespace(**dict.fromkeys(names, remember))
        monkeypatch.setitem(sys.modules, "svit_deploy.api", api)
        monkeypatch.setattr(svit_deploy, "api", api, raising=False)
        for module in ("svit_deploy.commands.summary",):
            stub = SimpleNamespace(summary=None, next_steps=None)
            monkeypatch.setitem(sys.modules, module, stub)
        assert main(["-q", *args]) == 0
        return got[0]

    return run


def test_export_gets_the_same_from_both(told):
    line = (
        "export a.pth -o out --task detect --arch x.yaml --set num_heads=6 --set mean=1,2,3 "
        "--tokens budget --precision fp16 --target tensorrt --batch 1,2:8:8 --image-size 96x128 "
        "--budget auto --budget-percentile 99 --calibration a.npz --calibrate-gates b "
        "--target-keep 0.7,0.5 --max-images 4 --no-gate-outputs --opset 21 --plugins "
        "--plugin-library none --workspace 1GiB --opt-level 2 --timing-cache none "
        "--device 3 --allow-pickle"
    )
    expected = ExportSettings(
        task="detect",
        arch="x.yaml",
        overrides={"num_heads": "6", "mean": "1,2,3"},
        tokens=TokenMode.BUDGET,
        precision="fp16",
        target="tensorrt",
        batch=(BatchRange(1, 1, 1), BatchRange(2, 8, 8)),
        image_size="96x128",
        budget="auto",
        budget_percentile=99.0,
        calibration=Path("a.npz"),
        calibrate_gates=Path("b"),
        target_keep=(0.7, 0.5),
        max_images=4,
        gate_outputs=False,
        opset=21,
        plugins=True,
        plugin_library="none",
        workspace=2**30,
        optimization_level=2,
        timing_cache="none",
        device=3,
        allow_pickle=True,
    )
    assert told(*line.split()) == expected
    keywords = {one.name: getattr(expected, one.name) for one in fields(expected)}
    text = {
        "tokens": "budget",
        "batch": "1,2:8:8",
        "calibration": "a.npz",
        "target_keep": "0.7,0.5",
        "workspace": "1GiB",
    }
    assert read_options(ExportSettings, None, keywords | text) == expected
    assert expected.engine == EngineOptions("tensorrt", 2, 2**30, "none", "none", 3)


def test_other_commands_get_theirs(told):
    assert told("export", "a.pth", "-o", "out") == ExportSettings()
    assert told("verify", "out") == VerifySettings()
    assert told("bench", "out") == BenchSettings()
    assert told("bench", "a", "b", "--batch", "1,8", "--warmup", "500ms", "--random",
                "--fail-above", "p99=12", "--fail-above", "p50=8ms") == BenchSettings(
        batches=(1, 8), warmup_s=0.5, noise=True, fail_above={"p99": 12.0, "p50": 8.0}
    )  # fmt: skip
    assert told("predict", "out", "x.png", "-o", "y") == PredictSettings(images=Path("x.png"))
    assert told("predict", "out", "-", "-o", "y.csv", "--top-k", "3", "--on-error", "skip") == (
        PredictSettings(images=Path("-"), top_k=3, on_error="skip")
    )
    labelled = told("evaluate", "out", "--images", "x", "--labels", "y", "--batch", "8")
    assert labelled == EvaluateSettings(images=Path("x"), labels=Path("y"), batch=8)
    maps = told("visualize", "out", "--images", "x", "-o", "y", "--threads", "2")
    assert maps == VisualizeSettings(images=Path("x"), threads=2)


@pytest.mark.parametrize(
    ("settings", "given", "words"),
    [
        (ExportSettings, {"tokens": "some"}, "--tokens 'some' is unknown; use one of dynamic,"),
        (ExportSettings, {"target": "tensorrt9"}, "--target 'tensorrt9' is unknown"),
        (ExportSettings, {"optimization_level": 2}, "--opt-level has no meaning without an engine"),
        (ExportSettings, {"workspace": "0"}, "--workspace has no meaning without an engine"),
        (ExportSettings, {"workspace": "much"}, "--workspace 'much' is no size"),
        (ExportSettings, {"target": "tensorrt", "optimization_level": 9}, "9 is out of range"),
        (ExportSettings, {"min_shapes": ["images:1x3x8x8"]}, "do not make profiles"),
        (ExportSettings, {"precision": "fp4"}, "--precision 'fp4' is unknown"),
        (ExportSettings, {"opset": 19}, "--opset 19 is not supported"),
        (ExportSettings, {"budget": "0.5"}, "without a token mode"),
        (ExportSettings, {"budget": "0.5", "tokens": "dynamic"}, "with --tokens dynamic"),
        (ExportSettings, {"budget_percentile": 0}, "outside (0, 100]"),
        (ExportSettings, {"target_keep": "0.5"}, "--calibrate-gates IMAGES"),
        (ExportSettings, {"target_keep": (1.5,), "calibrate_gates": "x"}, "a keep ratio of 1.5"),
        (ExportSettings, {"tokens": "dense", "calibrate_gates": "x"}, "no meaning with --tokens"),
        (ExportSettings, {"overrides": ["x"]}, "--set 'x' is not KEY=VALUE"),
        (VerifySettings, {"labels": "x"}, "--labels needs images"),
        (VerifySettings, {"overrides": {"a": "1"}}, "add --against CHECKPOINT"),
        (VerifySettings, {"weights": "model_ema"}, "add --against CHECKPOINT"),
        (VerifySettings, {"labels": "x", "against": "y"}, "--labels needs images"),
        (VerifySettings, {"repeats": 1}, "--repeats 1 is out of range; give 2 or more"),
        (EvaluateSettings, {"images": "x", "on_error": "ask"}, "--on-error 'ask' is unknown"),
        (EvaluateSettings, {"images": "x", "batch": 0}, "--batch 0 is out of range"),
        (PredictSettings, {"images": "x", "min_score": 1.5}, "--min-score 1.5 is out of range"),
        (BenchSettings, {"cuda_graph": "yes"}, "--cuda-graph 'yes' is unknown"),
        (BenchSettings, {"duration_s": "soon"}, "write, e.g., --duration 5s or 500ms"),
        (BenchSettings, {"batches": "1,x"}, "write, e.g., --batch 1,8"),
        (BenchSettings, {"fail_above": ["p99"]}, "write, e.g., --fail-above p99=12"),
    ],
)
def test_settings_that_cannot_work(settings, given, words):
    with pytest.raises(UsageError) as caught:
        read_options(settings, None, given)
    assert words in str(caught.value)


def test_an_engine_implies_budgets_and_shapes_exclude_batches():
    assert ExportSettings(budget="0.5", target="tensorrt").engine is not None
    shapes = {f"{name}_shapes": ("images:1x3x8x8",) for name in ("min", "opt", "max")}
    (profile,) = ExportSettings(**shapes).profiles
    assert profile.opt == (1, 3, 8, 8)
    assert ExportSettings().profiles == ()
    with pytest.raises(UsageError, match="exclude each other"):
        ExportSettings(**shapes, batch=(BatchRange(1, 1, 1),))


def test_values_are_spelled_as_they_are_typed():
    given = {
        "folder": Path("a b"), "number": 3, "label": None, "risky": True, "pair": "3-4",
        "words": {"key": "value"}, "plain": ("c", "d"), "careful": False, "share": 0.5,
    }  # fmt: skip
    words = words_of(Settings, given)
    assert words == [
        *("--folder", "a b", "--dangerous", "--pair", "3-4", "--word", "key=value"),
        *("--plain", "c", "--plain", "d", "--no-careful"),
    ]
    assert words_of(Settings, {"pair": "1-2", "careful": True}) == []
