"""Token maps: the folder that is written, and what is in it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from svit_deploy.errors import ExportError, InputError
from svit_deploy.images.overlay import overlay, survival_map
from svit_deploy.predict import token_maps
from svit_deploy.predict.token_maps import write_token_maps

DARKEST, BRIGHTEST = (0x44, 0x01, 0x54), (0xFD, 0xE7, 0x25)  # viridis(0), viridis(1)


def example(count: int, gates: int = 3) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, pictures of 8 x 12 pixels, keep masks for a class token and 2 x 3 patches."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (count, 8, 12, 3), dtype=np.uint8)
    return [f"{i}.png" for i in range(count)], pictures, rng.random((count, gates, 7)) < 0.5


def test_the_folder_holds_pictures_sheet_mean_and_numbers(tmp_path: Path) -> None:
    names, pictures, keep_mask = example(3)
    output = tmp_path / "a" / "maps"
    files = write_token_maps(output, names, pictures, keep_mask, 1, (2, 3))

    assert sorted(files) == sorted(output.iterdir())
    assert [file.name for file in files[:2]] == ["00000_0.png", "00001_1.png"]
    assert [file.name for file in files[3:]] == [
        "mean_map.png",
        "contact_sheet.png",
        "token_usage.json",
    ]
    assert list(output.parent.iterdir()) == [output]

    usage = json.loads((output / "token_usage.json").read_text())
    assert usage["schema_version"] == 1
    assert (usage["num_gates"], usage["prefix_tokens"], usage["grid"]) == (3, 1, [2, 3])
    assert [image["name"] for image in usage["images"]] == names
    assert [image["file"] for image in usage["images"]] == [file.name for file in files[:3]]
    assert usage["images"][2]["kept_tokens"] == keep_mask[2].sum(axis=1).tolist()
    mean_map = survival_map(keep_mask, 1, (2, 3)).mean(axis=0)
    np.testing.assert_allclose(usage["mean_map"], mean_map, atol=5e-5)


def test_the_picture_stands_beside_its_overlay_above_a_legend(tmp_path: Path) -> None:
    names, pictures, keep_mask = example(1)
    files = write_token_maps(tmp_path / "maps", names, pictures, keep_mask, 1, (2, 3))
    image = np.asarray(Image.open(files[0]))
    large = pictures[0].repeat(28, axis=0).repeat(28, axis=1)  # 8 x 28 = 224
    shown = overlay(pictures[0], survival_map(keep_mask, 1, (2, 3))[0], 3)
    assert np.array_equal(image[:224, :336], large)
    assert np.array_equal(image[:224, -336:], shown)
    legend = {tuple(colour) for colour in image[224:].reshape(-1, 3).tolist()}
    assert {DARKEST, BRIGHTEST, (255, 255, 255)} <= legend
    assert min(sum(colour) for colour in legend) < 50  # text


def test_the_contact_sheet_stops_at_24_images(tmp_path: Path) -> None:
    heights = {}
    for count in (1, 4, 24, 25):
        names, pictures, keep_mask = example(count)
        write_token_maps(tmp_path / "maps", names, pictures, keep_mask, 1, (2, 3))
        with Image.open(tmp_path / "maps" / "contact_sheet.png") as sheet:
            heights[count] = sheet.height
    assert heights[1] == heights[4] < heights[24] == heights[25]


@pytest.mark.parametrize("gates", [1, 12, 200])
def test_any_number_of_gates_has_a_legend(tmp_path: Path, gates: int) -> None:
    names, pictures, keep_mask = example(1, gates)
    write_token_maps(tmp_path / "maps", names, pictures, keep_mask, 1, (2, 3))


def test_an_earlier_folder_is_replaced_whole(tmp_path: Path) -> None:
    output = tmp_path / "maps"
    output.mkdir()
    for count in (3, 1):
        names, pictures, keep_mask = example(count)
        files = write_token_maps(output, names, pictures, keep_mask, 1, (2, 3))
    assert sorted(output.iterdir()) == sorted(files)
    assert len(files) == 4
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("other", ["notes.txt", "folder.png/x", "a.png"])
def test_a_folder_of_others_is_left_alone(tmp_path: Path, other: str) -> None:
    (tmp_path / "maps" / other).parent.mkdir(parents=True)
    (tmp_path / "maps" / other).write_text("mine")
    if other != "a.png":
        (tmp_path / "maps" / "token_usage.json").write_text("{}")
    names, pictures, keep_mask = example(1)
    with pytest.raises(InputError, match="holds files that are not token maps"):
        write_token_maps(tmp_path / "maps", names, pictures, keep_mask, 1, (2, 3))
    assert (tmp_path / "maps" / other).read_text() == "mine"
    assert list(tmp_path.iterdir()) == [tmp_path / "maps"]


def test_nothing_is_left_behind_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, pictures, keep_mask = example(2)
    output = tmp_path / "maps"
    earlier = write_token_maps(output, names, pictures, keep_mask, 1, (2, 3))

    def no_space(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(token_maps, "write_numbers", no_space)
    with pytest.raises(ExportError, match=r"cannot write .*maps \(No space left on device\)"):
        write_token_maps(output, names, pictures, keep_mask, 1, (2, 3))
    assert sorted(output.iterdir()) == sorted(earlier)
    assert list(tmp_path.iterdir()) == [output]


def test_without_gates_or_images_there_is_nothing_to_draw(tmp_path: Path) -> None:
    names, pictures, keep_mask = example(1)
    for arguments in (
        (names, pictures, keep_mask[:, :0]),
        ([], pictures[:0], keep_mask[:0]),
    ):
        with pytest.raises(InputError, match="no token decisions"):
            write_token_maps(tmp_path / "maps", *arguments, 1, (2, 3))
    assert not (tmp_path / "maps").exists()
