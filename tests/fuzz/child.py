"""What a worker's process does: makes a case's files, runs its command, sends how it ended."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
import traceback
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.fuzz.command import HEAVY, Watch, captured, limit_addresses, run_command
from tests.fuzz.kinds import KINDS
from tests.fuzz.sound import Sound

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for _name in HEAVY:
        importlib.import_module(_name)
platform.processor()  # asks the program `uname`, once


def serve(pipe: Connection[Any, Any], root: Path) -> None:
    """Runs the cases that come through the pipe; a pipe nobody reads lies beside their folders."""
    limit_addresses()
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stderr.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    secret, watch, sound = root / "secret", Watch(), Sound(root / "sound")
    if not secret.exists():
        os.mkfifo(secret)  # whoever reads it hangs
    while True:
        try:
            case = pipe.recv()
        except EOFError:
            return
        try:
            folder = root / case.name
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            with captured():  # libraries say what they think of such files
                made = KINDS[case.kind].make(case.random(), folder, sound)
            args = [str(arg) for arg in made]
            pipe.send(args)
            pipe.send(run_command(folder, args, watch, sound.folder))
        except Exception:
            pipe.send(RuntimeError(f"the harness failed at {case.name}: {traceback.format_exc()}"))
