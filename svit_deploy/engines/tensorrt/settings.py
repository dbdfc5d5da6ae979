"""How to build an engine, in a form that passes between processes."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svit_deploy.model.profiles import Profile

NO_TIMING_CACHE = "none"


@dataclass(frozen=True)
class BuildSettings:
    """How to build an engine.

    Attributes:
        target: `tensorrt` or `tensorrt-rtx`.
        profiles: input shapes the engine must serve, an optimisation profile each.
        precision, tokens: of the graph; recorded and named, not changed.
        num_heads: attention heads of the model; packed attention needs to know.
        plugin_library: what the graph's plugin nodes are looked up in. Without one, they are built
            from their function bodies.
        optimization_level: of the builder, 0 to 5; its default if None.
        workspace_bytes: most scratch memory a layer may use; TensorRT's default if 0.
        timing_cache: a file; None for one of this very build in the user's cache folder, "none"
            for no cache. Layers timed before are not timed again.
        tf32: let float32 products round their inputs to 10 bits. A gate whose margin is close to
            its threshold then decides otherwise than the model does.
        packed_attention: attention of a `dynamic` graph on packed rows, where TensorRT has it.
        device: number of the GPU to build on.
    """

    target: str
    profiles: tuple[Profile, ...]
    precision: str
    tokens: str
    num_heads: int = 0
    plugin_library: Path | None = None
    optimization_level: int | None = None
    workspace_bytes: int = 0
    timing_cache: Path | str | None = None
    tf32: bool = False
    packed_attention: bool = True
    device: int = 0

    def to_json(self) -> str:
        """Paths made absolute: another process has another working folder."""

        def absolute(path: Path) -> str:
            return str(path.absolute())

        fields = dataclasses.asdict(self)
        if self.timing_cache and self.timing_cache != NO_TIMING_CACHE:
            fields["timing_cache"] = absolute(Path(self.timing_cache))
        return json.dumps(fields, default=absolute)

    @classmethod
    def from_json(cls, text: str) -> BuildSettings:
        """What `to_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        shapes = [{key: tuple(shape[key]) for key in shape} for shape in fields["profiles"]]
        fields["profiles"] = tuple(Profile(**shape) for shape in shapes)
        if fields["plugin_library"] is not None:
            fields["plugin_library"] = Path(fields["plugin_library"])
        return cls(**fields)

    def record(self) -> dict[str, Any]:
        """What of it shapes the engine, for the sidecar and the timing cache's key."""
        return {
            "optimization_level": self.optimization_level,
            "workspace_bytes": self.workspace_bytes,
            "tf32": self.tf32,
            "packed_attention": self.packed_attention,
        }
