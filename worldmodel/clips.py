"""Frames of recordings in memory, and random windows of them, for pretraining."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from worldmodel.data.sampling import rows_at_rate
from worldmodel.data.source import Source
from worldmodel.data.windows import WindowIndex
from worldmodel.images import Crop, fit_frames
from worldmodel.views import camera_names


@dataclass(frozen=True)
class View:
    """What an encoder is shown of recordings.

    Attributes:
        source: Recordings of any format.
        camera: Camera whose frames are used; several, joined by "+", are shown one at a time.
        model_hz: Rate of the rows [Hz]; None keeps every row.
        image_size: Height and width that frames are brought to; None keeps square frames.
        crop: How, see `worldmodel.images`.
    """

    source: Source
    camera: str
    model_hz: float | None = None
    image_size: int | None = None
    crop: Crop = "none"

    def of_each_camera(self) -> "list[View]":
        """Returns the same of each camera by itself."""
        return [replace(self, camera=name) for name in camera_names(self.camera)]

    def read(self, episode_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """Returns frames (n, size, size, 3), proprio (n, 7) and times (n,) [s], and the rate.

        Of one camera: see `of_each_camera`.

        Raises:
            ValueError: The camera is missing, the rate does not fit, or frames have another size.
        """
        episode = self.source.read(episode_id)
        if self.camera not in episode.frames:
            raise ValueError(
                f"episode {episode_id} of {self.source.path} has no camera '{self.camera}'; it has "
                f"{', '.join(episode.frames)}"
            )
        rows = rows_at_rate(episode.timestamps, self.model_hz, usable=episode.usable)
        frames = episode.frames[self.camera][rows]
        frames = fit_frames(frames, self.image_size or frames.shape[1], self.crop)
        hz = self.model_hz or episode.metadata.control_hz
        return frames, episode.proprio[rows], episode.timestamps[rows], hz


@dataclass(frozen=True)
class Clips:
    """Frames in memory, with their proprio and times, episode by episode and camera by camera.

    Attributes:
        frames: Frames (n, size, size, 3) that one camera took of an episode.
        proprio: Proprio (n, 7) of each.
        times: Times (n,) [s] of each.
        ids: Numbers of the episodes in the recordings; with several cameras each comes as often.
        hz: Model steps per second.
    """

    frames: list[np.ndarray]
    proprio: list[np.ndarray]
    times: list[np.ndarray]
    ids: list[int]
    hz: float

    @property
    def num_frames(self) -> int:
        """How many frames are in memory."""
        return sum(len(frames) for frames in self.frames)

    @property
    def num_episodes(self) -> int:
        """How many episodes they are of."""
        return len(set(self.ids))

    @property
    def image_size(self) -> int:
        """Height and width of the frames."""
        return self.frames[0].shape[1]

    def pictures(self, n: int, *, seed: int) -> UInt8[Tensor, "n height width 3"]:
        """Returns n single frames, of all in memory, the same for the same seed."""
        windows = ClipWindows(self, frames=1, strides=[1])
        frames, _ = windows.load(*windows.draw(np.random.default_rng((seed, 0)), n))
        return frames[:, 0]


def read_clips(
    view: View, ids: list[int], *, frames_in_memory: int | None = None, seed: int = 0
) -> Clips:
    """Returns the frames of episodes.

    Args:
        view: What is read.
        ids: Episodes to read.
        frames_in_memory: About how many frames may be kept: episodes are taken in random order
            until there are so many. None keeps all.
        seed: Of that order.

    Raises:
        ValueError: A camera is missing, the rate does not fit, or frames differ in size.
    """
    if frames_in_memory is not None:
        ids = np.random.default_rng((seed, 0)).permutation(ids).tolist()  # steps begin at 1
    clips = Clips([], [], [], [], hz=1.0)
    for i in tqdm(ids, desc="reading frames", unit="episode"):
        for one in view.of_each_camera():
            frames, proprio, times, hz = one.read(i)
            clips.frames.append(frames)
            clips.proprio.append(proprio)
            clips.times.append(times)
            clips.ids.append(i)
            clips = replace(clips, hz=hz)
            if frames.shape[1] != clips.image_size:
                raise ValueError(
                    f"camera {one.camera} of episode {i} shows {frames.shape[1]} pixels, others "
                    f"{clips.image_size}; bring them to one size with image_size=... and crop=..."
                )
        if frames_in_memory is not None and clips.num_frames >= frames_in_memory:
            break
    return clips


class ClipWindows:
    """Windows of equally spaced frames of what is in memory; of one frame, every frame is one.

    Args:
        clips: What is in memory.
        frames: Frames of a window.
        strides: Distances of consecutive frames in model steps.
    """

    def __init__(self, clips: Clips, *, frames: int, strides: Sequence[int]):
        self.clips = clips
        self.index = WindowIndex(clips.times, 1 / clips.hz, frames, strides=strides)

    def draw(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns n random windows: episodes (n,) in memory and rows (n, frames) in them."""
        return self.index.sample(rng, n)

    def load(
        self, episodes: np.ndarray, rows: np.ndarray
    ) -> tuple[UInt8[Tensor, "n frames height width 3"], Float[Tensor, "n frames 7"]]:
        """Returns the frames of windows, and proprio at them."""
        pixels = _gather(self.clips.frames, episodes, rows)
        states = _gather(self.clips.proprio, episodes, rows)
        return torch.from_numpy(pixels), torch.from_numpy(states)


def _gather(arrays: list[np.ndarray], episodes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.stack([arrays[e][r] for e, r in zip(episodes, rows, strict=True)])
