"""Token maps: counts, colours, and the folder that is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from svit_deploy.images import overlay as visualize
from svit_deploy.errors import InputError
from svit_deploy.images.overlay import check_output, overlay, survival_map, write_token_maps

DARKEST, BRIGHTEST = (0x44, 0x01, 0x54), (0xFD, 0xE7, 0x25)  # viridis(0), viridis(1)


def example(count: int, gates: int = 3) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, pictures of 8 x 12 pixels, keep masks for a class token and 2 x 3 patches."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (count, 8, 12, 3), dtype=np.uint8)
    return [f"{i}.png" for i in range(count)], pictures, rng.random((count, gates, 7)) < 0.5


@given(
    st.integers(1, 3), st.integers(0, 5), st.integers(0, 2), st.integers(1, 4), st.integers(1, 4)
)
def test_survival_map_counts_each_patch(n: int, gates: int, prefix: int, h: int, w: int) -> None:
    keep_mask = np.random.default_rng(n).random((n, gates, prefix + h * w)) < 0.5
    counts = survival_map(keep_mask, prefix, (h, w))
    assert counts.shape == (n, h, w)
    for i in range(n):
        for row in range(h):
            for column in range(w):
                token = prefix + row * w + column
                assert counts[i, row, column] == sum(keep_mask[i, g, token] for g in range(gates))


@pytest.mark.parametrize("shape", [(2, 3, 6), (2, 3, 8), (3, 7)])
def test_survival_map_refuses_another_number_of_tokens(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="does not fit 1 prefix tokens and 2x3 patches"):
        survival_map(np.ones(shape, bool), 1, (2, 3))


def test_overlay_is_half_picture_half_map() -> None:
    picture = np.full((224, 226, 3), 100, np.uint8)  # 226 is not a multiple of 3 patches
    result = overlay(picture, np.array([[0, 9, 0], [0, 0, 9]]), num_gates=9)
    assert result.dtype == np.uint8
    assert result.shape == (224, 226, 3)
    dark, bright = (np.add(100, colour) // 2 for colour in (DARKEST, BRIGHTEST))
    assert (result[0, 0] == dark).all()
    assert (result[111, 113] == bright).all()  # the middle of the upper row
    assert (result[112, 113] == dark).all()
    assert (result[223, 225] == bright).all()


def test_overlay_shows_the_picture_in_grey() -> None:
    picture = np.zeros((224, 224, 3), np.uint8)
    picture[:, :112] = (255, 0, 0)
    result = overlay(picture, np.zeros((1, 1)), num_gates=4).astype(int)
    difference = result[0, 0] - result[0, -1]
    assert difference.max() - difference.min() <= 1
    assert difference.min() > 30


@pytest.mark.parametrize(
    ("size", "shown"), [((32, 32), (224, 224)), ((30, 60), (240, 480)), ((224, 300), (224, 300))]
)
def test_overlay_enlarges_small_pictures(size: tuple[int, int], shown: tuple[int, int]) -> None:
    assert overlay(np.zeros((*size, 3), np.uint8), np.ones((2, 2)), 3).shape[:2] == shown


def test_colours_are_viridis() -> None:
    viridis = pytest.importorskip("matplotlib").colormaps["viridis"]
    anchors, values = np.linspace(0, 1, 11), np.linspace(0, 1, 256)
    assert np.abs(visualize._colours(anchors) - viridis(anchors)[:, :3] * 255).max() <= 1
    assert np.abs(visualize._colours(values) - viridis(values)[:, :3] * 255).max() < 15


def test_the_folder_holds_pictures_sheet_mean_and_numbers(tmp_path: Path) -> None:
    names, pictures, keep_mask = example(30)
    output = tmp_path / "a" / "maps"
    files = write_token_maps(output, names, pictures, keep_mask, 1, (2, 3))

    assert sorted(files) == sorted(output.iterdir())
    assert [file.name for file in files[:2]] == ["00000_0.png", "00001_1.png"]
    assert [file.name for file in files[30:]] == [
        "mean_map.png",
        "contact_sheet.png",
        "token_usage.json",
    ]
    assert list(output.parent.iterdir()) == [output]

    usage = json.loads((output / "token_usage.json").read_text())
    assert usage["schema_version"] == 1
    assert (usage["num_gates"], usage["prefix_tokens"], usage["grid"]) == (3, 1, [2, 3])
    assert [image["name"] for image in usage["images"]] == names
    assert [image["file"] for image in usage["images"]] == [file.name for file in files[:30]]
    assert usage["images"][4]["kept_tokens"] == keep_mask[4].sum(axis=1).tolist()
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
    for count in (1, 4, 24, 30):
        names, pictures, keep_mask = example(count)
        write_token_maps(tmp_path / "maps", names, pictures, keep_mask, 1, (2, 3))
        with Image.open(tmp_path / "maps" / "contact_sheet.png") as sheet:
            heights[count] = sheet.height
    assert heights[1] == heights[4] < heights[24] == heights[30]


@pytest.mark.parametrize("gates", [1, 12, 200])
def test_any_number_of_gates_has_a_legend(tmp_path: Path, gates: int) -> None:
    names, pictures, keep_mask = example(1, gates)
    write_token_maps(tmp_path / "maps", names, pictures, keep_mask, 1, (2, 3))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cat/001.jpg", "cat_001"),
        ("../../etc/passwd", "etc_passwd"),
        ("C:\\x\\y.png", "C_x_y"),
        ("v1.2", "v1.2"),
        ("猫 и кот.PNG", "猫_и_кот"),
        ("e\u0301te\u0301.png", "été"),
        ("\udcff\x00\n.png", "image"),
        ("", "image"),
        ("a" * 300, "a" * 50),
    ],
)
def test_names_are_made_safe(name: str, expected: str) -> None:
    assert visualize.safe_name(name) == expected


@given(st.text())
def test_a_safe_name_is_one_short_path_component(name: str) -> None:
    safe = visualize.safe_name(name)
    assert Path(safe).name == safe
    assert len(safe.encode()) <= 200


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


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "maps").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        check_output(tmp_path / "maps")
    check_output(tmp_path / "elsewhere")


def test_nothing_is_left_behind_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, pictures, keep_mask = example(2)
    output = tmp_path / "maps"
    earlier = write_token_maps(output, names, pictures, keep_mask, 1, (2, 3))

    def no_space(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(visualize, "_write_json", no_space)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
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
