"""What OpenVINO counts of each operator, and which nodes of the graph that stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from svit_deploy.engines.base import NodeTime
from svit_deploy.graph.parts import BETWEEN, block_of

WARM_UP = 2
"""Runs that are not looked at."""
MAX_STEPS = 4
"""How far an operator without a name looks for one."""


class Counters:
    """Seconds of each operator in all runs so far; OpenVINO tells their mean.

    Args:
        request: after `runs` runs.
    """

    def __init__(self, request: Any, runs: int) -> None:
        self.runs = runs
        self.totals: dict[tuple[str, str], float] = {}
        for one in request.profiling_info:
            if one.status == type(one.status).EXECUTED:
                key = one.node_name, one.node_type
                self.totals[key] = one.real_time.total_seconds() * runs

    def since(
        self, before: Counters, seconds: float, nodes: Mapping[str, tuple[str, ...]]
    ) -> list[NodeTime]:
        """The mean of the runs since other counters were read.

        Args:
            seconds: that these runs took in all.
            nodes: of the graph, by the names of operators.
        """
        runs = self.runs - before.runs
        found = []
        for (name, kind), total in self.totals.items():
            # A mean is told in whole microseconds, so that a little more may seem to be less.
            more = max(0.0, total - before.totals.get((name, kind), 0.0))
            found.append(NodeTime(nodes.get(name, ()), kind, more / runs))
        rest = seconds / runs - sum(one.seconds for one in found)
        return [*found, NodeTime((), BETWEEN, rest)]


def original_nodes(compiled: Any) -> dict[str, tuple[str, ...]]:
    """The names of the graph's nodes that each operator of a compiled model stands for.

    An operator that OpenVINO put in between, or named anew, stands for what reads it.
    """
    operators = compiled.get_runtime_model().get_ops()
    return {one.get_friendly_name(): _nodes(one, MAX_STEPS) for one in operators}


def _nodes(operator: Any, steps: int) -> tuple[str, ...]:
    told = operator.get_rt_info()
    names = (
        told["originalLayersNames"].astype(str).split(",") if "originalLayersNames" in told else []
    )
    if block_of(names) or not steps:
        return tuple(name for name in names if name)
    for output in operator.outputs():
        for reader in output.get_target_inputs():
            return _nodes(reader.get_node(), steps - 1)
    return tuple(name for name in names if name)
