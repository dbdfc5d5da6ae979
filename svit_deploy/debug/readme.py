"""The page that lies beside the files: what they are, and the exact commands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from svit_deploy.bundle import Bundle
from svit_deploy.debug.stage import Found
from svit_deploy.model.config import BatchRange
from svit_deploy.names import INPUT

MODEL, SOUND, INPUTS, REFERENCE, README = (
    "model.onnx", "sound.onnx", "inputs.json", "reference.json", "README.md",
)  # fmt: skip
VALUES, VALUE_INPUTS, REDUCED = "values.json", "value_inputs.json", "reduced.onnx"
PART = "polygraphy_debug.onnx"
"""What `polygraphy debug reduce` calls the part of a graph that it tries."""

TENSORRT = "--trt --strongly-typed"
LOOK = "polygraphy inspect model {} --show layers"


@dataclass(frozen=True)
class Contents:
    """What was written of a bundle.

    Attributes:
        found: the first wrong stage, if there is one.
        has_reference: whether the reference tells what the graph should give.
        has_sound: whether there is a sound graph beside it.
    """

    bundle: Bundle
    found: Found
    has_reference: bool
    has_sound: bool

    @property
    def files(self) -> dict[str, str]:
        """What each file holds, by its name."""
        stage = self.found.stage
        what = f"the graph up to {stage}, `{self.found.value}`" if stage else "the whole graph"
        files = {MODEL: what, INPUTS: "samples recorded at export"}
        if self.has_reference:
            files[REFERENCE] = "what PyTorch gives for them"
        if self.has_sound:
            files[SOUND] = "the same part of the graph, written anew from the checkpoint"
        return files

    @property
    def verdict(self) -> str:
        """What verification found, in a sentence."""
        if self.found.stage:
            return f"{self.found.stage} is the first stage that differs from the reference"
        if self.found.passed:
            return "nothing in the graph differs from the reference"
        return "verification fails, and no single stage of the graph differs from the reference"

    def readme(self) -> str:
        """Markdown, with the commands in console blocks."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"# Debugging {self.bundle.name}\n"
        yield f"{self.verdict[:1].upper()}{self.verdict[1:]}.\n"
        yield "| file | what it is |\n|---|---|"
        for name, what in self.files.items():
            yield f"| `{name}` | {what} |"
        yield "\nThe commands run in this folder. They need `pip install 'svit-deploy[debug]'`.\n"
        yield from _step("Look at the graph", "", [LOOK.format(MODEL)])
        if self.has_reference:
            yield from _step(
                "Compare with the reference",
                "Element by element; `svit-deploy verify` compares tokens by their norm, and knows "
                "a near-tie flip from a fault.",
                [self._run(MODEL, "--onnxrt", INPUTS, REFERENCE)],
            )
        if self.has_sound:
            yield from _step(
                "Find the node",
                f"`{SOUND}` gives every value as it should be; `reduce` cuts `{MODEL}` down to "
                "what computes another. Each try is a run of a part of the graph.",
                [*self._record(SOUND), *self._reduce("--onnxrt")],
            )
        elif self.found.stage:
            yield (
                "There is no graph whose inner values could be compared with: the checkpoint was "
                f"not given, or this version writes the same one. {self.found.stage} is where to "
                "look; what follows is about other runtimes.\n"
            )
        yield from self._other_runtimes()

    def _other_runtimes(self) -> Iterator[str]:
        profile = self.bundle.profile(BatchRange(**self.bundle.manifest["batch"]))
        shapes = " ".join(
            f"--trt-{name}-shapes '{INPUT}:[{','.join(map(str, getattr(profile, name)))}]'"
            for name in ("min", "opt", "max")
        )
        yield from _step(
            "Another runtime",
            f"Where TensorRT departs from `{MODEL}` on ONNX Runtime's CPU; it needs a GPU.",
            [
                *self._record(MODEL),
                f"{self._run(MODEL, TENSORRT, INPUTS, VALUES)} {shapes}",
                *self._reduce(TENSORRT),
            ],
        )
        build = "polygraphy convert {} --convert-to trt -o polygraphy_debug.engine"
        yield from _step(
            "A graph that is not built",
            "TensorRT-RTX needs no GPU to build; `POLYGRAPHY_USE_TENSORRT_RTX=1` chooses it, here "
            "and above.",
            [
                "export POLYGRAPHY_USE_TENSORRT_RTX=1",
                f"{build.format(MODEL)} {shapes}",
                f"polygraphy debug reduce {MODEL} -o {REDUCED} --mode bisect "
                f"--check {build.format(PART)}",
                LOOK.format(REDUCED),
            ],
        )

    def _record(self, model: str) -> list[str]:
        """Every value that a graph computes, and the same as inputs of its parts."""
        return [
            f"polygraphy run {model} --onnxrt --onnx-outputs '*' --load-inputs {INPUTS} "
            f"--save-outputs {VALUES}",
            f"polygraphy data merge {INPUTS} {VALUES} -o {VALUE_INPUTS}",
        ]

    def _reduce(self, runtime: str) -> list[str]:
        return [
            f"polygraphy debug reduce {MODEL} -o {REDUCED} --mode bisect "
            f"--load-inputs {VALUE_INPUTS} --check "
            + self._run(PART, runtime, VALUE_INPUTS, VALUES),
            LOOK.format(REDUCED),
        ]

    def _run(self, model: str, runtime: str, inputs: str, outputs: str) -> str:
        # Margins of tokens that are always kept are infinite on both sides.
        tolerance = self.bundle.task.limits[self.bundle.precision].embedding
        return (
            f"polygraphy run {model} {runtime} --load-inputs {inputs} --load-outputs {outputs} "
            f"--infinities-compare-equal --rtol {tolerance:g} --atol {tolerance:g}"
        )


def _step(title: str, why: str, commands: list[str]) -> Iterator[str]:
    yield f"## {title}\n"
    if why:
        yield f"{why}\n"
    yield "```console"
    yield from (f"$ {command}" for command in commands)
    yield "```\n"
