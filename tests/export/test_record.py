"""What a manifest says of the command that made it."""

from __future__ import annotations

import pytest

from svit_deploy.export.record import _without_folders


@pytest.mark.parametrize(
    ("argument", "recorded"),
    [
        ("/home/me/svit_s.pth", "svit_s.pth"),
        ("--arch=/home/me/a.yaml", "--arch=a.yaml"),
        ("num_heads=6", "num_heads=6"),
        ("--tokens", "--tokens"),
    ],
)
def test_arguments_lose_their_folders_and_keep_their_option(argument, recorded):
    assert _without_folders(argument) == recorded
