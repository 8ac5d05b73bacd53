"""Held-out windows: what every measure of this package is taken on.

A window is F frames of one recording, one model step apart by their timestamps. Latents are made
once, whatever is measured afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from worldmodel.data.episode import Episode, validate
from worldmodel.data.frames import Frames
from worldmodel.data.source import Source
from worldmodel.data.windows import WindowIndex
from worldmodel.planners.action_space import POSES, ActionSpace
from worldmodel.planners.interfaces import Observation, WorldModel
from worldmodel.views import camera_names, check_views

MAX_GAP_STEPS = 1.75  # rows further apart than so many model steps have lost one between them
FRAMES_AT_ONCE = 32


@dataclass(frozen=True, eq=False)
class HeldOut:
    """W windows of F frames, in the order of their recordings.

    Attributes:
        latents: As the model encodes the frames.
        proprio: The arm's states in `space`: x, y, z [m], roll, pitch, yaw [rad], gripper; or
            joints and gripper.
        episodes: Which recording each window is of.
        space: What the arm speaks in.
    """

    latents: Float[Tensor, "windows frames tokens dim"]
    proprio: Float[np.ndarray, "windows frames proprio"]
    episodes: Int[np.ndarray, " windows"]
    space: ActionSpace = POSES

    def __post_init__(self) -> None:
        """Refuses windows that cannot be measured on."""
        W = len(self.latents)
        if W < 2 or self.latents.shape[1] < 2:
            raise ValueError(
                f"expected at least 2 windows of at least 2 frames, got {W} of "
                f"{self.latents.shape[1]}; give more or longer recordings"
            )
        if self.proprio.shape[:2] != self.latents.shape[:2] or len(self.episodes) != W:
            raise ValueError(
                f"latents are of {tuple(self.latents.shape[:2])} windows and frames, proprio of "
                f"{self.proprio.shape[:2]}, episodes of {len(self.episodes)}"
            )

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.latents)

    @property
    def steps(self) -> int:
        """Model steps in a window."""
        return self.latents.shape[1] - 1

    @cached_property
    def actions(self) -> Float[np.ndarray, "windows steps action"]:
        """What was done between the frames, measured."""
        proprio = torch.from_numpy(self.proprio.astype(np.float64))
        return self.space.between(proprio[:, :-1], proprio[:, 1:]).numpy()

    def observation(self, rows: slice | np.ndarray) -> Observation:
        """Returns the first frames of some windows, as a planner sees them."""
        latents = self.latents[rows]
        states = torch.from_numpy(self.proprio[rows, :1].astype(np.float32)).to(latents.device)
        return Observation(
            latents=latents[:, :1],
            proprio=states,
            past_actions=states.new_zeros(len(states), 0, states.shape[-1]),
        )

    def take(self, number: int) -> "HeldOut":
        """Returns so many of the windows, spread evenly; all if there are no more."""
        rows = np.unique(np.linspace(0, len(self) - 1, min(number, len(self))).round().astype(int))
        return HeldOut(
            self.latents[rows], self.proprio[rows], self.episodes[rows], space=self.space
        )

    def others(self) -> Int[np.ndarray, " windows"]:
        """Returns for each window another one, of another recording as far as there is one.

        Half the list away, which is another recording unless one has half of all windows.
        """
        return np.roll(np.arange(len(self)), len(self) // 2)


@torch.inference_mode()
def read_held_out(
    world: WorldModel,
    source: Source,
    *,
    camera: str,
    hz: float,
    frames: int,
    windows: int,
    episodes: int,
    seed: int,
    space: ActionSpace = POSES,
    progress: bool = True,
) -> HeldOut:
    """Draws windows from recordings and encodes their frames.

    Args:
        world: Encodes the frames.
        source: Recordings that the model was not trained on.
        camera: Name of the camera; of all that the model sees, joined by "+".
        hz: Rate of the model [Hz].
        frames: Frames of a window, F.
        windows: How many windows at most.
        episodes: From how many recordings at most.
        seed: Of the draw of recordings and windows.
        space: What the model is spoken to in; joints are those of the recordings.
        progress: Whether to show a progress bar.

    Raises:
        KeyError: A recording has no such camera.
        ValueError: A recording is broken or has no such joints, its rate gives no windows at the
            model's, all are too short, or its cameras differ in size.
    """
    cameras = camera_names(camera)
    rng = np.random.default_rng(seed)
    ids = np.asarray(source.ids())
    chosen = np.sort(rng.choice(ids, min(episodes, len(ids)), replace=False)).tolist()
    recordings = [_checked(source.read(i), cameras, name=f"episode {i}") for i in chosen]
    index = WindowIndex(
        [recording.timestamps for recording in recordings],
        1 / hz,
        frames,
        max_gap=MAX_GAP_STEPS / hz,
        usable=[recording.usable for recording in recordings],
    )
    drawn = np.sort(rng.choice(len(index), min(windows, len(index)), replace=False))
    found = [index[int(i)] for i in drawn]
    states = [
        _states(recording, space, name=f"episode {i}")
        for i, recording in zip(chosen, recordings, strict=True)
    ]
    latents, proprio = [], []
    with tqdm(total=len(found), desc="encode", unit="window", disable=not progress) as bar:
        for number, recording in enumerate(recordings):
            rows = [window.frames for window in found if window.episode == number]
            if not rows:
                continue
            needed, places = np.unique(np.stack(rows), return_inverse=True)
            encoded = encode_rows(world, [recording.frames[name] for name in cameras], needed)
            latents.append(encoded[places.reshape(-1, frames)])
            proprio.append(states[number][np.stack(rows)])
            bar.update(len(rows))
    return HeldOut(
        latents=torch.cat(latents),
        proprio=np.concatenate(proprio),
        episodes=np.array([chosen[window.episode] for window in found]),
        space=space,
    )


def encode_rows(
    world: WorldModel, views: Sequence[Frames], rows: Int[np.ndarray, " rows"]
) -> Float[Tensor, "rows tokens dim"]:
    """Returns the latents of some moments of a recording, read and encoded a few at a time."""
    parts = [rows[i : i + FRAMES_AT_ONCE] for i in range(0, len(rows), FRAMES_AT_ONCE)]
    latents = []
    for part in parts:
        frames = [torch.from_numpy(view[part]) for view in views]
        seen = torch.stack(frames, dim=1) if len(frames) > 1 else frames[0]
        latents.append(world.encode(seen[None])[0])
    return torch.cat(latents)


def _states(episode: Episode, space: ActionSpace, *, name: str) -> np.ndarray:
    if space is POSES:
        return episode.proprio
    states = episode.joints_and_gripper(name=name)
    if states.shape[1] != space.proprio_size:
        raise ValueError(
            f"{name} has {states.shape[1] - 1} joints, and the embodiment of this model has "
            f"{space.proprio_size - 1}"
        )
    return states


def _checked(episode: Episode, cameras: Sequence[str], *, name: str) -> Episode:
    validate(episode, name=name)
    sizes = {camera: frames.shape[1:3] for camera, frames in episode.frames.items()}
    check_views(sizes, cameras, name=name)
    return episode
