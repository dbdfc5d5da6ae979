"""What of a graph's precision several parts of the package must agree on."""

from __future__ import annotations

INT8 = "int8"
"""Linear layers of blocks multiply 8-bit integers; all else is float32."""
LEVELS = 127
"""The largest multiple of a step, of weights and of inputs."""
METHODS = ("minmax", "entropy", "percentile")
"""How the range of a layer's inputs is chosen out of what images show."""
