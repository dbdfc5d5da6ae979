"""What training scripts save beside the weights, read without running or unpickling any of it."""

from __future__ import annotations

import sys
import types

import pytest

from svit_deploy.errors import InputError
from svit_deploy.io.checkpoint import read_checkpoint

torch = pytest.importorskip("torch")

WEIGHTS = {"w": torch.ones(2, 3)}


@pytest.fixture
def yacs(monkeypatch):
    """A configuration class that pickles as yacs's does: a dictionary with private attributes."""

    class CfgNode(dict):
        def __init__(self, content):
            super().__init__(content)
            self.__dict__["__immutable__"] = False
            self.__dict__["__deprecated_keys__"] = set()
            self.__dict__["__renamed_keys__"] = {}

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    module = types.ModuleType("yacs.config")
    module.CfgNode = CfgNode
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    yield CfgNode
    monkeypatch.undo()


@pytest.mark.parametrize("legacy", [False, True])
def test_yacs_is_not_needed(tmp_path, yacs, monkeypatch, legacy):
    inner = yacs({"NAME": "swin_small", "SWIN": yacs({"EMBED_DIM": 96})})
    config = yacs({"SHORTCUT": False, "MODEL": inner, "AMP": [1, 2]})
    path = tmp_path / "x.pth"
    content = {"model": WEIGHTS, "config": config, "optimizer": {}, "max_accuracy": 82.7}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    monkeypatch.undo()
    assert "yacs" not in sys.modules
    found = read_checkpoint(path)
    assert found.container == "training checkpoint (model)"
    assert found.training_args == {"SHORTCUT": False, "AMP": [1, 2], "MODEL.NAME": "swin_small"}
    assert "yacs" not in sys.modules


def test_a_configuration_that_brings_code(tmp_path, yacs, monkeypatch):
    class Code:
        def __reduce__(self):
            return print, ("run",)

    path = tmp_path / "x.pth"
    torch.save({"model": WEIGHTS, "config": yacs({"A": Code()})}, path)
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"asks to run \S*print"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "VIT:\n  ATS_BLOCKS: [3, 4]\n  DROP_TOKENS: true\n",
            {"VIT.ATS_BLOCKS", "VIT.DROP_TOKENS"},
        ),
        ("VIT: [", set()),
        ("- 1\n- 2\n", set()),
        ("!!python/object/apply:os.system ['true']", set()),
        ("a: &a [x]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(50)), set()),
        ("x" * 200_000, set()),
        ("[" * 5000, set()),
    ],
)
def test_slowfast_containers(tmp_path, text, told):
    path = tmp_path / "x.pyth"
    torch.save({"epoch": 1, "model_state": WEIGHTS, "optimizer_state": {}, "cfg": text}, path)
    found = read_checkpoint(path)
    assert found.container == "training checkpoint (model_state)"
    assert {name for name in found.training_args if not name.startswith("a")} == told
