"""Tasks: what comes out of a model, and how two results are compared, recorded and drawn."""

from __future__ import annotations

from svit_deploy.errors import UsageError
from svit_deploy.tasks.cascade import Cascade
from svit_deploy.tasks.classify import Classify
from svit_deploy.tasks.detect import Detect
from svit_deploy.tasks.features import Features
from svit_deploy.tasks.runs import Part, Runs
from svit_deploy.tasks.task import Task
from svit_deploy.tasks.video import Video

__all__ = ["TASKS", "Part", "Runs", "Task", "task_named"]

TASKS: dict[str, Task] = {
    task.name: task for task in (Classify(), Features(), Detect(), Cascade(), Video())
}


def task_named(name: str) -> Task:
    """A task as named after `--task`; raises UsageError."""
    if name not in TASKS:
        *most, last = TASKS
        raise UsageError(f"--task {name!r} is unknown", f"use {', '.join(most)} or {last}")
    return TASKS[name]
