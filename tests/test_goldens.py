"""The goldens' files: small enough to be cloned, and checkpoints made of another golden's."""

from __future__ import annotations

import json

import numpy as np
import pytest

from svit_deploy.io.checkpoint import read_checkpoint
from tests.told import GOLDEN, SETTINGS, checkpoint_of, skip_without_data

skip_without_data()
WEIGHTS = {
    folder.name: told
    for folder in sorted(GOLDEN.iterdir())
    if folder.is_dir() and (told := json.loads((folder / "meta.json").read_text()).get("weights"))
}


def test_together_they_are_small():
    files = [path for path in GOLDEN.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 45_000_000
    assert max(path.stat().st_size for path in files) < 3_000_000


def test_each_has_weights_of_its_own_or_of_another():
    own = {path.parent.name for path in GOLDEN.glob("*/checkpoint.pth")}
    assert own | WEIGHTS.keys() == SETTINGS.keys()
    assert not own & WEIGHTS.keys()
    assert {told["of"] for told in WEIGHTS.values()} <= own


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_of_another_are_the_same_but_for_what_is_told(name):
    pytest.importorskip("torch")
    made = read_checkpoint(checkpoint_of(name)).tensors
    whole = read_checkpoint(checkpoint_of(WEIGHTS[name]["of"])).tensors
    whole = {key.removeprefix("backbone."): array for key, array in whole.items()}
    changed = {key: np.float32(values) for key, values in WEIGHTS[name].get("changed", {}).items()}
    assert made.keys() <= whole.keys() and changed.keys() <= made.keys()
    assert len(made) > 150
    for key, array in made.items():
        np.testing.assert_array_equal(array, changed.get(key, whole[key]))
    assert not any(np.array_equal(whole[key], values) for key, values in changed.items())
