"""Surprise: how badly the model's prediction of the next frame fails, against what is normal.

From the latents of one frame, the arm's state and its measured move, the model predicts the latents
of the next frame. Large moves are predicted less well than small ones, so an error says little by
itself. It is judged against the errors on clean recordings *where the model expected as much
change*: what it expects depends on the frame before and the move alone, never on the frame that is
judged, so a violation cannot excuse itself.

Two questions are asked of every step, each answered in units of what clean recordings show:

    somewhere  is the error too large at one patch? A cube that vanishes touches one or two.
    unseen     is change missing that was predicted? A frozen camera shows none.

The score of a step is the larger of the two (docs/surprise.md has what else was tried); an
episode's is that of its worst step. It is flagged if of clean episodes of its length at most 1 %
score as high.

Source of the idea: violation of expectation, measured by a model's prediction error (Smith et al.
2019, "Modeling expectation violation in intuitive physics"; Garrido et al. 2025, arXiv 2502.11831,
with V-JEPA's latents).
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from worldmodel.checkpoint import fingerprint
from worldmodel.data.episode import Episode
from worldmodel.data.sampling import TOLERANCE, rows_at_rate
from worldmodel.data.source import Source
from worldmodel.jepa import JEPA
from worldmodel.names import unknown
from worldmodel.pose import action_between
from worldmodel.runs import write_json

CALIBRATION_FILE = "calibration.json"
FORMAT, VERSION = "worldmodel surprise calibration", 1
QUESTIONS = ("somewhere", "unseen")
LEVEL = 0.01  # share of clean episodes that are flagged
MIN_EPISODES = 100  # fewer cannot tell what one in a hundred clean episodes does
BINS = 12  # of the expected change, with equally many clean values each
TAIL = 0.2  # share of the clean episodes, the highest, that the tail is fitted to
FLOOR = 0.01  # of a latent's standard deviation; what is smaller is as good as nothing
_FRAMES_AT_ONCE = 32


@dataclass(frozen=True, eq=False)
class Scale:
    """What is normal for a value, given how much change the model expected.

    Attributes:
        expected: (K,) increasing.
        middle: (K,) median of clean values at that much expected change.
        width: (K,) how far clean values spread about it.
    """

    expected: Float[np.ndarray, " bins"]
    middle: Float[np.ndarray, " bins"]
    width: Float[np.ndarray, " bins"]

    def __call__(self, values: np.ndarray, expected: np.ndarray) -> np.ndarray:
        """Returns how many widths values (...) lie above the middle.

        Beyond the least and the largest change ever expected the outermost bin goes on.
        """
        middle = np.interp(expected, self.expected, self.middle)
        return (values - middle) / np.interp(expected, self.expected, self.width)

    @classmethod
    def fit(cls, values: np.ndarray, expected: np.ndarray, *, even: bool) -> "Scale":
        """Fits a scale to clean values (n,), in bins of equally many.

        Args:
            values: Clean values.
            expected: The change expected at each.
            even: Whether the width is one standard deviation, the same for all; else it is from
                the median of each bin to its 95 % quantile. Medians and widths never fall as more
                change is expected.
        """
        bins = np.array_split(np.argsort(expected, kind="stable"), min(BINS, len(values)))
        middle = np.maximum.accumulate([np.median(values[rows]) for rows in bins])
        centres = np.array([expected[rows].mean() for rows in bins])
        if even:
            spread = float(np.std(values - np.interp(expected, centres, middle)))
            width = np.full(len(bins), spread)
        else:
            above = [np.quantile(values[bins[k]], 0.95) - middle[k] for k in range(len(bins))]
            width = np.maximum.accumulate(above)
        return cls(centres, middle, np.maximum(width, FLOOR))


@dataclass(frozen=True, eq=False)
class Prediction:
    """How predictions of T frames compare with what was seen; L1 of standardised latents.

    A latent token that joins several patches of the encoder is taken apart again: the finer, the
    less of a small object's error is averaged away. P patches are in row-major order.

    Attributes:
        errors: (T, P) of the prediction, for each patch.
        expected: (T, P) how much change from the frame before was predicted.
        changes: (T, P) how much there was: the error of predicting none.
        unseen: (T,) how much of the expected change, along its own direction, was not there.
    """

    errors: Float[np.ndarray, "steps patches"]
    expected: Float[np.ndarray, "steps patches"]
    changes: Float[np.ndarray, "steps patches"]
    unseen: Float[np.ndarray, " steps"]

    @classmethod
    def compare(
        cls,
        before: Float[Tensor, "steps tokens dim"],
        predicted: Float[Tensor, "steps tokens dim"],
        after: Float[Tensor, "steps tokens dim"],
        *,
        merge: int,
    ) -> "Prediction":
        """Compares predicted with seen latents, each step with the frame before it.

        Args:
            before: Latents one step earlier.
            predicted: Latents predicted from them.
            after: Latents seen.
            merge: Side of the square of patches that one token joins.
        """
        ahead, change = predicted - before, after - before
        along = (ahead * change).sum(dim=(1, 2)) / (ahead**2).sum(dim=(1, 2)).clamp(min=1e-12)
        expected = _by_patch(ahead, merge)
        return cls(
            errors=_by_patch(after - predicted, merge),
            expected=expected,
            changes=_by_patch(change, merge),
            unseen=(1 - along).double().cpu().numpy() * expected.mean(axis=1),
        )


@dataclass(frozen=True, eq=False)
class EpisodeSurprise:
    """What a recording's T predicted steps look like to a calibrated model.

    Attributes:
        rows: (T,) numbers of the frames, in the recording, that were predicted.
        scores: (T,) surprise of each.
        questions: (T, 2) its parts, in the order of `QUESTIONS`.
        patch_scores: (T, P) where: the surprise of each patch of the picture, row-major.
        prediction: The errors behind them.
        p_value: Share of clean episodes of this length that score as high.
        threshold: Score that `LEVEL` of them exceed.
    """

    rows: np.ndarray
    scores: np.ndarray
    questions: np.ndarray
    patch_scores: np.ndarray
    prediction: Prediction
    p_value: float
    threshold: float

    @property
    def flagged(self) -> bool:
        """Whether the worst step is above the threshold."""
        return bool(self.scores.max() > self.threshold)

    @property
    def worst(self) -> int:
        """Index of the most surprising step."""
        return int(np.argmax(self.scores))


@dataclass(frozen=True, eq=False)
class SurpriseCalibration:
    """What clean recordings of one model, camera and robot look like.

    Attributes:
        model: Fingerprint of the model; another model's errors mean something else.
        camera: Camera of the recordings.
        merge: Side of the square of patches that one latent token joins.
        patches: One scale for the logarithm of the error of each patch.
        missing: Scale of the predicted change that was not seen.
        limits: (2,) for each of `QUESTIONS` the value that 1 % of clean episodes exceed.
        step_scores: Scores of all clean steps, ascending.
        episode_scores: Highest score of each clean episode, ascending.
        steps: Median number of steps of a clean episode.
        recordings: Where they came from, for people.
    """

    model: str
    camera: str
    merge: int
    patches: tuple[Scale, ...]
    missing: Scale
    limits: np.ndarray
    step_scores: np.ndarray
    episode_scores: np.ndarray
    steps: int
    recordings: str

    def patch_scores(self, prediction: Prediction) -> Float[np.ndarray, "steps patches"]:
        """Returns the surprise of each patch; 1 is what 1 % of clean episodes reach anywhere."""
        return _of_patches(self.patches, prediction) / self.limits[0]

    def questions(self, prediction: Prediction) -> Float[np.ndarray, "steps questions"]:
        """Returns each step's answers to `QUESTIONS`; 1 is what 1 % of clean episodes reach."""
        return _answers(self.patches, self.missing, prediction) / self.limits

    def step_surprise(self, before: Tensor, predicted: Tensor, after: Tensor) -> Tensor:
        """Returns the scores (B,) of one step of B arms: the `score` of a `SurpriseGate`.

        Args:
            before: Latents (B, N, D) before the step.
            predicted: Latents that the model predicted from them.
            after: Latents seen.
        """
        answers = self.questions(Prediction.compare(before, predicted, after, merge=self.merge))
        return torch.from_numpy(answers.max(axis=1))

    def step_quantile(self, share: float) -> float:
        """Returns the score that `share` of clean steps do not exceed, for a gate's thresholds."""
        return float(np.quantile(self.step_scores, share))

    def p_value(self, score: float, *, steps: int) -> float:
        """Returns the share of clean episodes of `steps` steps whose worst step scores as high.

        Among the clean episodes it is counted; from the highest fifth of them on, an exponential
        tail is fitted to the excesses (a peaks-over-threshold estimate), so that it keeps falling
        where no clean episode reached. Steps are taken to be independent for other lengths.
        """
        start, mean_excess = self._tail()
        if score <= start:
            share = float(np.mean(self.episode_scores >= score))
        else:
            share = TAIL * math.exp(-(score - start) / mean_excess)
        return -math.expm1(steps / self.steps * math.log1p(-min(share, 1 - 1e-12)))

    def threshold(self, *, steps: int, level: float = LEVEL) -> float:
        """Returns the score that `level` of clean episodes of `steps` steps exceed."""
        start, mean_excess = self._tail()
        share = -math.expm1(math.log1p(-level) * self.steps / steps)  # of episodes of `self.steps`
        if share >= TAIL:
            return float(np.quantile(self.episode_scores, 1 - share))
        return start + mean_excess * math.log(TAIL / share)

    def _tail(self) -> tuple[float, float]:
        """Returns where the tail of the episodes' scores begins, and the mean excess over that."""
        start = float(np.quantile(self.episode_scores, 1 - TAIL))
        above = self.episode_scores[self.episode_scores > start]
        return start, max(float(np.mean(above - start)) if len(above) else 0.0, 1e-6)

    def save(self, path: str | Path) -> Path:
        """Writes the calibration as JSON and returns the file."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            path,
            {
                "format": FORMAT,
                "version": VERSION,
                "model": self.model,
                "camera": self.camera,
                "recordings": self.recordings,
                "steps": self.steps,
                "limits": dict(zip(QUESTIONS, self.limits.tolist(), strict=True)),
                "merge": self.merge,
                "missing": _scale_to_json(self.missing),
                "patches": [_scale_to_json(scale) for scale in self.patches],
                "episode_scores": np.round(self.episode_scores, 6).tolist(),
                "step_scores": np.round(self.step_scores, 6).tolist(),
            },
        )
        return path


def load_calibration(path: str | Path, *, world: JEPA, camera: str) -> SurpriseCalibration:
    """Reads a calibration and checks that it is of this model and camera.

    Raises:
        FileNotFoundError: There is none; the message says how to make it.
        ValueError: The file is no calibration, or of another model or camera.
    """
    path = Path(path)
    make = (
        "make one from clean recordings of this robot and camera that the model was not trained on:"
        f" worldmodel surprise data=RECORDINGS calibrate=true calibration={path}"
    )
    if not path.is_file():
        raise FileNotFoundError(f"no surprise calibration at {path}; {make}")
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); {make}") from error
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        raise ValueError(f"{path} is not a {FORMAT} of version {VERSION}; {make}")
    calibration = SurpriseCalibration(
        model=content["model"],
        camera=content["camera"],
        merge=content["merge"],
        patches=tuple(_scale_from_json(scale) for scale in content["patches"]),
        missing=_scale_from_json(content["missing"]),
        limits=np.array([content["limits"][name] for name in QUESTIONS]),
        step_scores=np.array(content["step_scores"]),
        episode_scores=np.array(content["episode_scores"]),
        steps=content["steps"],
        recordings=content["recordings"],
    )
    if calibration.model != fingerprint(world):
        raise ValueError(f"{path} was made with another model; {make}")
    if calibration.camera != camera:
        raise ValueError(
            f"{path} is of camera '{calibration.camera}', not of '{camera}'; use that camera, or "
            f"{make}"
        )
    return calibration


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
    clean = [predict_episode(world, source.read(i), camera=camera)[1] for i in bar]
    return fit_calibration(
        clean,
        merge=_merge(world),
        model=fingerprint(world),
        camera=camera,
        recordings=f"{source.path.name}, {len(ids)} episodes",
    )


def fit_calibration(
    clean: list[Prediction], *, merge: int, model: str, camera: str, recordings: str
) -> SurpriseCalibration:
    """Returns the calibration that clean episodes give."""
    logs = np.concatenate([_logs(episode) for episode in clean])  # (steps, P)
    expected = np.concatenate([episode.expected for episode in clean])
    unseen = np.concatenate([episode.unseen for episode in clean])
    patches = tuple(Scale.fit(logs[:, n], expected[:, n], even=True) for n in range(logs.shape[1]))
    missing = Scale.fit(unseen, expected.mean(axis=1), even=False)
    answers = [_answers(patches, missing, episode) for episode in clean]
    worst = np.stack([episode.max(axis=0) for episode in answers])  # (episodes, 2)
    limits = np.maximum(np.quantile(worst, 1 - LEVEL, axis=0), FLOOR)
    scores = [(episode / limits).max(axis=1) for episode in answers]
    return SurpriseCalibration(
        model=model,
        camera=camera,
        merge=merge,
        patches=patches,
        missing=missing,
        limits=limits,
        step_scores=np.sort(np.concatenate(scores)),
        episode_scores=np.sort([episode.max() for episode in scores]),
        steps=int(np.median([len(episode) for episode in scores])),
        recordings=recordings,
    )


def episode_surprise(
    world: JEPA, calibration: SurpriseCalibration, episode: Episode
) -> EpisodeSurprise:
    """Scores a recording.

    Raises:
        ValueError: It is broken, too short, or of another rate than the model's.
        KeyError: It does not have the calibration's camera.
    """
    rows, prediction = predict_episode(world, episode, camera=calibration.camera)
    questions = calibration.questions(prediction)
    scores = questions.max(axis=1)
    return EpisodeSurprise(
        rows=rows,
        scores=scores,
        questions=questions,
        patch_scores=calibration.patch_scores(prediction),
        prediction=prediction,
        p_value=calibration.p_value(float(scores.max()), steps=len(scores)),
        threshold=calibration.threshold(steps=len(scores)),
    )


@torch.inference_mode()
def predict_episode(world: JEPA, episode: Episode, *, camera: str) -> tuple[np.ndarray, Prediction]:
    """Predicts every frame of a recording from the frame one model step before it.

    Args:
        world: The model.
        episode: The recording; rows at the model's rate are taken. A step across a gap is left out.
        camera: Name of the camera.

    Returns:
        The row (T,) of each predicted frame, and how the predictions compare.

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
    return rows[first + 1], Prediction.compare(before, predicted, after, merge=_merge(world))


def _answers(patches: tuple[Scale, ...], missing: Scale, prediction: Prediction) -> np.ndarray:
    """Returns (T, 2): the answers to `QUESTIONS`, in units of each one's clean spread."""
    somewhere = _of_patches(patches, prediction).max(axis=1)
    unseen = missing(prediction.unseen, prediction.expected.mean(axis=1))
    return np.stack([somewhere, unseen], axis=1)


def _of_patches(patches: tuple[Scale, ...], prediction: Prediction) -> np.ndarray:
    if len(patches) != prediction.errors.shape[1]:
        raise ValueError(
            f"the calibration is of {len(patches)} patches a frame, but there are "
            f"{prediction.errors.shape[1]}"
        )
    columns = zip(patches, _logs(prediction).T, prediction.expected.T, strict=True)
    return np.stack([scale(logs, expected) for scale, logs, expected in columns], axis=1)


def _logs(prediction: Prediction) -> np.ndarray:
    """Returns the logarithm of the errors: their spread is then about the same for all moves."""
    return np.log(prediction.errors + FLOOR)


def _by_patch(latents: Tensor, merge: int) -> np.ndarray:
    """Returns mean absolute values (T, P) of latents (T, N, D), patches in row-major order."""
    side = math.isqrt(latents.shape[1])
    if merge == 1:
        return latents.abs().mean(dim=2).double().cpu().numpy()
    patches = latents.unflatten(2, (merge, merge, -1)).abs().mean(dim=4)  # (T, N, merge, merge)
    grid = patches.unflatten(1, (side, side)).permute(0, 1, 3, 2, 4)
    return grid.flatten(1).double().cpu().numpy()


def _merge(world: JEPA) -> int:
    """Returns how a token is taken apart; one that is an average of others cannot be."""
    return world.merge if world.pool == 1 else 1


def _scale_to_json(scale: Scale) -> dict[str, Any]:
    return {name: np.round(values, 6).tolist() for name, values in vars(scale).items()}


def _scale_from_json(content: dict[str, list[float]]) -> Scale:
    return Scale(**{name: np.array(values) for name, values in content.items()})


def _float(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like)
