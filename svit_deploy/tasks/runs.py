"""What the pipeline hands a task, and what a task says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from svit_deploy.images.prepared import Prepared
from svit_deploy.model.config import ModelConfig
from svit_deploy.model.result import Outputs, Result


@dataclass(frozen=True)
class Rounded:
    """What the reference computes with rounded numbers, on the decisions of a run without.

    Attributes:
        result: of the whole model.
        stages: the same, each stage on what those before it gave in the run without.
    """

    result: Result
    stages: Result | None = None


@dataclass(frozen=True)
class Part:
    """Images of one size, and what the reference computes of them.

    Attributes:
        rounded: of a graph that is not float32, the same with weights that it can hold.
        computed: of int8 and fp8, the same with what such weights are multiplied by rounded, too.
        shaken: of a task that wants to know (`Task.shakes`), the outputs of an image where what
            its heads read is off by rounding.
    """

    images: tuple[Prepared, ...]
    result: Result
    rounded: Rounded | None = None
    computed: Rounded | None = None
    shaken: Sequence[Outputs] | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def moved(self) -> Rounded | None:
        """What tells how far the graph's rounding moves things."""
        return self.computed or self.rounded


@dataclass(frozen=True)
class Runs:
    """Two runs of the same images, image by image.

    Attributes:
        config: of the model.
        limits: the task's, of the graph's precision.
    """

    actual: Sequence[Outputs]
    expected: Sequence[Outputs]
    config: ModelConfig
    limits: Any


@dataclass
class Judgement:
    """What a task says of a model's outputs.

    Attributes:
        checks: name, whether it holds, and what was seen, as `VerifyReport.check` takes them.
        notes: what else a reader of the verdict should know.
        results: JSON-able, for the report's results.
        lines: what is printed above the gates.
        summary: what is printed below the checks.
    """

    checks: list[tuple[str, bool, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    summary: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class StageLimit:
    """A stage of the task's own, behind the backbone's blocks.

    Attributes:
        label: what the report calls it.
        name: the graph's value.
    """

    label: str
    name: str
    limit: float


@dataclass(frozen=True)
class Show:
    """What of a result `predict` shows.

    Attributes:
        top_k: so many classes of an image.
        min_score: detections of at least this score.
    """

    top_k: int
    min_score: float
