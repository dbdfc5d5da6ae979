"""Videos: files, folders of frames, and arrays, of which a model gets a few clips.

Sampling and scaling are those of the official test pipelines of Video Swin (mmaction2): clips at
even distances, each of frames at an interval, where a video that is too short begins anew; or one
clip of frames at even distances. Frames are scaled to the short side when they are read, so that no
more of a video is in memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from svit_deploy.errors import InputError
from svit_deploy.images.medium import Medium, RowReader, shows
from svit_deploy.images.padded import resize_bilinear
from svit_deploy.images.pictures import PICTURE_SUFFIXES, check_picture, read_picture
from svit_deploy.io.npz import reason
from svit_deploy.machine.packages import require

CONTAINERS = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".mkv": "matroska",
    ".webm": "matroska",
    ".avi": "avi",
}
"""What a file of a name is read as: of others FFmpeg would follow the links that they hold."""
STEEP = 50
"""A frame that is turned by one degree is as good as upright."""


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video a model gets, and how large.

    Attributes:
        frames: of a clip.
        interval: from one frame of a clip to the next.
        clips: of a video.
        uniform: one clip of the whole video instead, its frames at even distances.
        size: (height, width) that a frame must at least have.
    """

    frames: int
    interval: int
    clips: int
    uniform: bool
    size: tuple[int, int]

    def numbers(self, count: int) -> np.ndarray:
        """Frames of each clip, of so many in the video, int `[clips, frames]`."""
        if self.uniform:
            edges = np.round((count - 1) / self.frames * np.arange(self.frames + 1)).astype(int)
            return (edges[None, :-1] + edges[None, 1:]) // 2
        length = self.frames * self.interval
        starts = np.zeros(self.clips, int)
        if count >= length:
            apart = (count - length + 1) / self.clips
            starts = (np.arange(self.clips) * apart + apart / 2).astype(int)
        numbers: np.ndarray = starts[:, None] + np.arange(self.frames) * self.interval
        return numbers % count

    def scale(self, frame: np.ndarray) -> np.ndarray:
        """A frame, uint8 `[h, w, 3]`, so that the size just fits into it."""
        height, width = frame.shape[:2]
        factor = max(self.size[0] / height, self.size[1] / width)
        rows, columns = (int(side * factor + 0.5) for side in (height, width))
        return resize_bilinear(frame, (max(rows, self.size[0]), max(columns, self.size[1])))


@dataclass(frozen=True)
class Videos(Medium):
    """Videos; what is read of one is uint8 `[clips, T, h, w, 3]`.

    Attributes:
        sampling: None where they are only looked for.
    """

    sampling: Sampling | None = None

    noun = "video"
    array = "videos"
    suffixes = tuple(CONTAINERS)
    forms = "uint8 [n, frames, H, W, 3] RGB videos, or preprocessed float32 [n, views, 3, T, H, W]"
    enough = 16

    def is_one(self, path: Path) -> bool:
        return super().is_one(path) or (path.is_dir() and bool(frames_in(path)))

    def below(self, folder: Path) -> list[str]:
        """Files of videos, and folders that hold frames."""
        folders = {
            path.relative_to(folder).as_posix()
            for path in folder.rglob("*")
            if path.is_dir() and shows(path, folder) and frames_in(path)
        }
        return sorted({*super().below(folder), *folders})

    def require(self, path: Path) -> None:
        if path.suffix.lower() in CONTAINERS and not path.is_dir():
            require(
                "av",
                "reading video files",
                "their decoders",
                extra="video",
                called="PyAV",
                otherwise="give folders of frames, or an .npz",
            )

    def read(self, path: Path, name: str) -> np.ndarray:
        if path.is_dir():
            files = frames_in(path)
            if not files:
                raise InputError(f"folder {path} holds no frames", "give pictures in their order")
            return self.sample(len(files), partial(_pictures, files), name)
        if path.suffix.lower() not in CONTAINERS:
            raise InputError(
                f"{path} is no video", f"give a file that ends in {', '.join(CONTAINERS)}"
            )
        with _reading(path):
            return self.sample(_count(path), partial(_decoded, path), name)

    def row_reader(self, shape: tuple[int, ...], dtype: np.dtype) -> RowReader | None:
        if dtype == np.float32 and len(shape) == 6 and shape[2] == 3:
            return lambda row, name: row
        if dtype == np.uint8 and len(shape) == 5 and shape[4] == 3:
            return lambda row, name: self.sample(
                len(row), lambda numbers: ((n, row[n]) for n in numbers), name
            )
        return None

    def sample(self, count: int, read: Frames, name: str) -> np.ndarray:
        """The clips of a video of so many frames."""
        assert self.sampling is not None
        numbers = self.sampling.numbers(count)
        found: dict[int, np.ndarray] = {}
        for number, frame in read(np.unique(numbers).tolist()):
            check_picture(frame, f"{number} of video {name}")
            found[number] = self.sampling.scale(frame)
        if len({frame.shape for frame in found.values()}) > 1:
            raise InputError(f"the frames of video {name} have several sizes", "scale them")
        return np.stack([[found[number] for number in clip] for clip in numbers.tolist()])


Frames = Callable[[Sequence[int]], Iterator[tuple[int, np.ndarray]]]
"""Ascending numbers of frames to these and their pixels, uint8 `[h, w, 3]`."""


def frames_in(folder: Path) -> list[Path]:
    """The pictures that lie in a folder, in the order of their names."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in PICTURE_SUFFIXES and not file.name.startswith(".")
    )


def _pictures(files: Sequence[Path], numbers: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    for number in numbers:
        yield number, read_picture(files[number])


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # FFmpeg's decoders fail in many ways on a damaged file
        raise InputError(
            f"video {path} cannot be read ({reason(error)})", "replace or remove it"
        ) from error


def _count(path: Path) -> int:
    """Frames of a file, which are not decoded."""
    import av

    with path.open("rb") as file, av.open(file, format=CONTAINERS[path.suffix.lower()]) as opened:
        count = sum(packet.size > 0 for packet in opened.demux(opened.streams.video[0]))
    if not count:
        raise InputError(f"video {path} holds no frame", "replace or remove it")
    return count


def _decoded(path: Path, numbers: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    import av

    wanted, last = set(numbers), max(numbers)
    with path.open("rb") as file, av.open(file, format=CONTAINERS[path.suffix.lower()]) as opened:
        for number, frame in enumerate(opened.decode(opened.streams.video[0])):
            if number in wanted:
                pixels = frame.to_ndarray(format="rgb24")
                matrix = frame.side_data.get("DISPLAYMATRIX")
                yield number, pixels if matrix is None else upright(pixels, bytes(matrix), path)
            if number == last:
                return
    raise InputError(f"video {path} ends before the last of its frames", "replace or remove it")


def upright(pixels: np.ndarray, matrix: bytes, path: Path) -> np.ndarray:
    """A frame uint8 `[h, w, 3]` as a player shows it: turned and mirrored, and not scaled.

    Args:
        matrix: the display matrix of the container, nine int32. Of its first five, `a b _ c d`, a
            place x, y is shown at a·x + c·y, b·x + d·y.

    Raises:
        InputError: turned by something else than quarters, or not shown at all.
    """
    a, b, _, c, d = struct.unpack("=9i", matrix)[:5]
    along, across = (a, d), (c, b)
    if abs(c) + abs(b) > abs(a) + abs(d):
        pixels, along, across = pixels.transpose(1, 0, 2), across, along
    if min(map(abs, along)) <= STEEP * max(map(abs, across)):
        raise InputError(
            f"the display matrix of video {path} turns it by no whole quarters",
            "write it anew with its frames turned, as ffmpeg does",
        )
    right, down = (-1 if side < 0 else 1 for side in along)
    return pixels[::down, ::right]
