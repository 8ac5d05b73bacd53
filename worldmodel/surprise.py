"""Surprise: how badly the model's prediction of the next frame fails, against what is normal.

From the latents of one frame, the arm's state and its measured move, the model predicts the latents
of the next frame. Some things are always predicted less well than others, so an error says little
by itself. It is judged against the error that was to be expected: that depends on the frame before
and the prediction alone, never on the frame that is judged, so a violation cannot excuse itself.

Two questions are asked of every step, each answered in units of what clean recordings show:

    somewhere  is the error larger than an `ErrorModel` expected, at one patch? A cube that vanishes
               touches one or two.
    unseen     is change missing that was predicted? A frozen camera shows none.

The score of a step is the larger of the two (docs/surprise.md has what else was tried); an
episode's is that of its worst step. It is flagged if of clean episodes of its length at most 1 %
score as high.

Source of the idea: violation of expectation, measured by a model's prediction error (Smith et al.
2019, "Modeling expectation violation in intuitive physics"; Garrido et al. 2025, arXiv 2502.11831,
with V-JEPA's latents).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from worldmodel.checkpoint import fingerprint
from worldmodel.data.episode import Episode
from worldmodel.data.sampling import TOLERANCE, rows_at_rate
from worldmodel.data.source import Source
from worldmodel.jepa import JEPA
from worldmodel.names import unknown
from worldmodel.pose import action_between
from worldmodel.surprise_calibration import (
    Judgement,
    Steps,
    SurpriseCalibration,
    fit_calibration,
)

MIN_EPISODES = 200  # half of fewer cannot tell what one in a hundred clean episodes does
_FRAMES_AT_ONCE = 32


@dataclass(frozen=True, eq=False)
class EpisodeSurprise:
    """What a recording's T predicted steps look like to a calibrated model.

    Attributes:
        rows: (T,) numbers of the frames, in the recording, that were predicted.
        judgement: How surprising each is, why, and where.
        p_value: Share of clean episodes of this length that score as high.
        threshold: Score that `LEVEL` of them exceed.
    """

    rows: np.ndarray
    judgement: Judgement
    p_value: float
    threshold: float

    @property
    def scores(self) -> np.ndarray:
        """The surprise (T,) of each step."""
        return self.judgement.scores

    @property
    def flagged(self) -> bool:
        """Whether the worst step is above the threshold."""
        return bool(self.scores.max() > self.threshold)

    @property
    def worst(self) -> int:
        """Index of the most surprising step."""
        return int(np.argmax(self.scores))


def calibrate(
    world: JEPA,
    source: Source,
    *,
    camera: str,
    progress: bool = True,
) -> SurpriseCalibration:
    """Learns from clean recordings how well the model predicts when nothing is wrong.

    Args:
        world: The model.
        source: At least `MIN_EPISODES` recordings that it was not trained on, of the same robot and
            camera, moving as it will move.
        camera: Name of the camera.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: There are too few recordings, or one is broken or too short.
        KeyError: A recording has no such camera.
    """
    ids = source.ids()
    if len(ids) < MIN_EPISODES:
        raise ValueError(
            f"{source.path} has {len(ids)} episodes; to say what one clean episode in a hundred "
            f"does, a calibration needs at least {MIN_EPISODES}"
        )
    bar = tqdm(ids, desc="calibrate", unit="episode", disable=not progress)
    return fit_calibration(
        (predict_episode(world, source.read(i), camera=camera)[1] for i in bar),
        merge=_merge(world),
        model=fingerprint(world),
        camera=camera,
        recordings=f"{source.path.name}, {len(ids)} episodes",
        progress=progress,
    )


def episode_surprise(
    world: JEPA, calibration: SurpriseCalibration, episode: Episode
) -> EpisodeSurprise:
    """Scores a recording.

    Raises:
        ValueError: It is broken, too short, or of another rate than the model's.
        KeyError: It does not have the calibration's camera.
    """
    rows, steps = predict_episode(world, episode, camera=calibration.camera)
    judgement = calibration.judge(steps)
    return EpisodeSurprise(
        rows=rows,
        judgement=judgement,
        p_value=calibration.p_value(float(judgement.scores.max()), steps=len(rows)),
        threshold=calibration.threshold(steps=len(rows)),
    )


@torch.inference_mode()
def predict_episode(world: JEPA, episode: Episode, *, camera: str) -> tuple[np.ndarray, Steps]:
    """Predicts every frame of a recording from the frame one model step before it.

    Args:
        world: The model.
        episode: The recording; rows at the model's rate are taken. A step across a gap is left out.
        camera: Name of the camera.

    Returns:
        The row (T,) of each predicted frame, and the latents before it, predicted and seen.

    Raises:
        KeyError: The recording has no such camera.
        ValueError: It has no two frames one model step apart.
    """
    if camera not in episode.frames:
        raise KeyError(unknown("camera", camera, episode.frames))
    rows = rows_at_rate(episode.timestamps, world.control_hz, usable=episode.usable)
    times = episode.timestamps[rows]
    gaps = np.diff(times)
    if len(gaps) == 0:
        raise ValueError(
            f"a recording needs two usable frames to be predicted, this has {len(rows)}"
        )
    step = 1 / world.control_hz if world.control_hz else float(np.median(gaps))
    first = np.flatnonzero(np.abs(gaps - step) <= 2 * TOLERANCE * step)
    if len(first) == 0:
        raise ValueError(f"no two frames of the recording are one model step of {step:g} s apart")
    latents = torch.cat(
        [
            world.encode(
                torch.from_numpy(episode.frames[camera][rows[i : i + _FRAMES_AT_ONCE]])[None]
            )[0]
            for i in range(0, len(rows), _FRAMES_AT_ONCE)
        ]
    )
    proprio = episode.proprio[rows].astype(np.float64)
    action = action_between(proprio[first], proprio[first + 1])
    before, after = latents[first], latents[first + 1]
    predicted = torch.cat(
        [
            world.predict(z[:, None], s[:, None], a[:, None])[:, 0]
            for z, s, a in zip(
                before.split(_FRAMES_AT_ONCE),
                _float(proprio[first], latents).split(_FRAMES_AT_ONCE),
                _float(action, latents).split(_FRAMES_AT_ONCE),
                strict=True,
            )
        ]
    )
    return rows[first + 1], (before, predicted, after)


def _merge(world: JEPA) -> int:
    """Returns how a token is taken apart; one that is an average of others cannot be."""
    return world.merge if world.pool == 1 else 1


def _float(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like)
