"""What is normal: the errors of clean recordings, and how likely a clean episode scores as high."""

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from worldmodel.checkpoint import fingerprint
from worldmodel.error_model import FLOOR, ErrorModel, new_error_model, teach
from worldmodel.jepa import JEPA

CALIBRATION_FILE = "calibration.safetensors"
FORMAT, VERSION = "worldmodel surprise calibration", 2
QUESTIONS = ("somewhere", "unseen")
LEVEL = 0.01  # share of clean episodes that are flagged
BINS = 12  # of the expected change, with equally many clean values each
TAIL = 0.2  # share of the clean episodes, the highest, that the tail is fitted to

Steps = tuple[Tensor, Tensor, Tensor]
"""Latents (T, N, D) before each of T steps, predicted from them, and seen after it."""


@dataclass(frozen=True, eq=False)
class Scale:
    """What is normal for a value, given how much change the model expected.

    Attributes:
        expected: (K,) increasing.
        middle: (K,) median of clean values at that much expected change.
        width: (K,) from there to their 95 % quantile.
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
    def fit(cls, values: np.ndarray, expected: np.ndarray) -> "Scale":
        """Fits a scale to clean values (n,), in bins of equally many.

        Medians and widths never fall as more change is expected.
        """
        bins = np.array_split(np.argsort(expected, kind="stable"), min(BINS, len(values)))
        medians = np.array([np.median(values[rows]) for rows in bins])
        middle = np.maximum.accumulate(medians)
        above = [np.quantile(values[rows], 0.95) - middle[k] for k, rows in enumerate(bins)]
        width = np.maximum(np.maximum.accumulate(above), FLOOR)
        return cls(np.array([expected[rows].mean() for rows in bins]), middle, width)


@dataclass(frozen=True, eq=False)
class Prediction:
    """How predictions of T frames compare with what was seen; L1 of standardised latents.

    A latent token that joins several patches of the encoder is taken apart again: the finer, the
    less of a small object's error is averaged away. P patches are in row-major order.

    Attributes:
        errors: (T, P) of the prediction, for each patch.
        changes: (T, P) how much there was: the error of predicting none.
        expected: (T,) how much change from the frame before was predicted.
        unseen: (T,) how much of that, along its own direction, was not there.
    """

    errors: Float[np.ndarray, "steps patches"]
    changes: Float[np.ndarray, "steps patches"]
    expected: Float[np.ndarray, " steps"]
    unseen: Float[np.ndarray, " steps"]

    @classmethod
    def compare(cls, steps: Steps, *, merge: int) -> "Prediction":
        """Compares predicted with seen latents.

        Args:
            steps: The latents.
            merge: Side of the square of patches that one token joins.
        """
        before, predicted, after = steps
        ahead, change = predicted - before, after - before
        along = (ahead * change).sum(dim=(1, 2)) / (ahead**2).sum(dim=(1, 2)).clamp(min=1e-12)
        expected = _numpy(ahead.abs().mean(dim=(1, 2)))
        return cls(
            errors=_numpy(_size(after - predicted, merge).flatten(1)),
            changes=_numpy(_size(change, merge).flatten(1)),
            expected=expected,
            unseen=(1 - _numpy(along)) * expected,
        )


@dataclass(frozen=True, eq=False)
class Judgement:
    """What a calibration makes of T steps.

    Attributes:
        prediction: The errors behind it.
        patches: (T, P) where: the surprise of each patch; 1 is what 1 % of clean episodes reach
            anywhere.
        questions: (T, 2) the answers to `QUESTIONS`; 1 is what 1 % of clean episodes reach.
    """

    prediction: Prediction
    patches: Float[np.ndarray, "steps patches"]
    questions: Float[np.ndarray, "steps questions"]

    @property
    def scores(self) -> Float[np.ndarray, " steps"]:
        """The surprise of each step."""
        return self.questions.max(axis=1)


@dataclass(frozen=True, eq=False)
class SurpriseCalibration:
    """What clean recordings of one model, camera and robot look like.

    Attributes:
        model: Fingerprint of the model; another model's errors mean something else.
        camera: Camera of the recordings.
        merge: Side of the square of patches that one latent token joins.
        error_model: Which error it expects of each patch.
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
    error_model: ErrorModel
    missing: Scale
    limits: np.ndarray
    step_scores: np.ndarray
    episode_scores: np.ndarray
    steps: int
    recordings: str

    def judge(self, steps: Steps) -> Judgement:
        """Returns how surprising each step is, and where.

        Raises:
            ValueError: The latents are not those of the calibration's model.
        """
        prediction = Prediction.compare(steps, merge=self.merge)
        features = _features(self.error_model, steps, merge=self.merge)
        answers, patches = _answers(self.error_model, self.missing, features, prediction)
        return Judgement(prediction, patches / self.limits[0], answers / self.limits)

    def step_surprise(self, before: Tensor, predicted: Tensor, after: Tensor) -> Tensor:
        """Returns the scores (B,) of one step of B arms: the `score` of a `SurpriseGate`.

        Args:
            before: Latents (B, N, D) before the step.
            predicted: Latents that the model predicted from them.
            after: Latents seen.
        """
        return torch.from_numpy(self.judge((before, predicted, after)).scores)

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
        """Writes the calibration as one safetensors file, whole or not at all, and returns it."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {
            "limits": self.limits,
            "step_scores": self.step_scores,
            "episode_scores": self.episode_scores,
            **{f"missing.{name}": values for name, values in vars(self.missing).items()},
        }
        tensors = {name: torch.from_numpy(np.float32(values)) for name, values in arrays.items()}
        for name, value in self.error_model.state_dict().items():
            tensors[f"error_model.{name}"] = value.cpu().contiguous()
        about = {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model,
            "camera": self.camera,
            "merge": self.merge,
            "channels": self.error_model.channels,
            "side": self.error_model.side,
            "steps": self.steps,
            "recordings": self.recordings,
        }
        part = path.with_name(f"{path.name}.part")
        save_file(tensors, part, metadata={"calibration": json.dumps(about)})
        os.replace(part, path)
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
        " worldmodel surprise data=RECORDINGS calibrate=true calibration=FILE checkpoint=MODEL"
    )
    if not path.is_file():
        raise FileNotFoundError(f"no surprise calibration at {path}; {make}")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("calibration", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no {FORMAT}, or damaged ({error}); {make}") from error
    if about.get("format") != FORMAT or about.get("version") != VERSION:
        raise ValueError(f"{path} is not a {FORMAT} of version {VERSION}; {make}")
    if about["model"] != fingerprint(world):
        raise ValueError(f"{path} was made with another model; {make}")
    if about["camera"] != camera:
        raise ValueError(
            f"{path} is of camera '{about['camera']}', not of '{camera}'; use that camera, or "
            f"{make}"
        )
    error_model = ErrorModel(channels=about["channels"], side=about["side"])
    error_model.load_state_dict(_under("error_model.", tensors))
    missing = {name: _numpy(values) for name, values in _under("missing.", tensors).items()}
    device = next(world.parameters()).device
    return SurpriseCalibration(
        model=about["model"],
        camera=about["camera"],
        merge=about["merge"],
        error_model=error_model.to(device).eval().requires_grad_(False),
        missing=Scale(**missing),
        limits=_numpy(tensors["limits"]),
        step_scores=_numpy(tensors["step_scores"]),
        episode_scores=_numpy(tensors["episode_scores"]),
        steps=about["steps"],
        recordings=about["recordings"],
    )


def fit_calibration(
    clean: Iterable[Steps],
    *,
    merge: int,
    model: str,
    camera: str,
    recordings: str,
    progress: bool = True,
) -> SurpriseCalibration:
    """Returns the calibration that clean episodes give.

    Every other episode teaches the error model, and the rest say how large errors are for episodes
    that it was not taught with.

    Args:
        clean: The steps of each episode.
        merge: Side of the square of patches that one latent token joins.
        model: Fingerprint of the model.
        camera: Name of the camera.
        recordings: Where the episodes come from, for people.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: There are fewer than two episodes.
    """
    error_model: ErrorModel | None = None
    found: list[tuple[Tensor, Prediction]] = []
    for steps in clean:
        if error_model is None:
            channels, side = _pictures(steps[0], merge).shape[1:3]
            error_model = new_error_model(channels=channels, side=side).to(steps[0].device)
        features = _features(error_model, steps, merge=merge)
        found.append((features, Prediction.compare(steps, merge=merge)))
    lessons, rest = found[::2], found[1::2]
    if error_model is None or not rest:
        raise ValueError(f"a calibration needs two clean episodes or more, got {len(found)}")
    teach(
        error_model,
        torch.cat([features for features, _ in lessons]),
        torch.cat([_logs(prediction, like=features) for features, prediction in lessons]),
        progress=progress,
    )
    missing = Scale.fit(
        np.concatenate([prediction.unseen for _, prediction in rest]),
        np.concatenate([prediction.expected for _, prediction in rest]),
    )
    answers = [
        _answers(error_model, missing, features, prediction)[0] for features, prediction in rest
    ]
    worst = np.stack([episode.max(axis=0) for episode in answers])  # (episodes, 2)
    limits = np.maximum(np.quantile(worst, 1 - LEVEL, axis=0), FLOOR)
    scores = [(episode / limits).max(axis=1) for episode in answers]
    return SurpriseCalibration(
        model=model,
        camera=camera,
        merge=merge,
        error_model=error_model,
        missing=missing,
        limits=limits,
        step_scores=np.sort(np.concatenate(scores)),
        episode_scores=np.sort([episode.max() for episode in scores]),
        steps=int(np.median([len(episode) for episode in scores])),
        recordings=recordings,
    )


@torch.inference_mode()
def _answers(
    error_model: ErrorModel, missing: Scale, features: Tensor, prediction: Prediction
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the answers (T, 2) to `QUESTIONS` and those of all patches (T, P) to the first.

    Both are in units of each one's clean spread.
    """
    patches = error_model.widths_above(features, _logs(prediction, like=features))
    patches = _numpy(patches.flatten(1))
    unseen = missing(prediction.unseen, prediction.expected)
    return np.stack([patches.max(axis=1), unseen], axis=1), patches


@torch.inference_mode()
def _features(error_model: ErrorModel, steps: Steps, *, merge: int) -> Tensor:
    before, predicted = (_pictures(latents, merge) for latents in steps[:2])
    if before.shape[1:] != (error_model.channels, error_model.side, error_model.side):
        raise ValueError(
            f"the calibration is of {error_model.side} x {error_model.side} patches with "
            f"{error_model.channels} numbers, but there are {tuple(before.shape[2:])} with "
            f"{before.shape[1]}"
        )
    return error_model.features(before.float(), predicted.float())


def _logs(prediction: Prediction, *, like: Tensor) -> Tensor:
    """Returns the logarithm of the errors (T, S, S): their spread is about the same for all."""
    logs = torch.from_numpy(np.log(prediction.errors + FLOOR)).to(like.device, torch.float32)
    return logs.unflatten(1, like.shape[2:])


def _size(latents: Tensor, merge: int) -> Tensor:
    """Returns the mean absolute value (T, S, S) of every patch."""
    return _pictures(latents, merge).abs().mean(dim=1)


def _pictures(latents: Tensor, merge: int) -> Tensor:
    """Returns latents (T, N, D) as pictures (T, D / merge^2, S, S) of the encoder's patches."""
    side = math.isqrt(latents.shape[1])
    if side**2 != latents.shape[1]:
        raise ValueError(
            f"surprise is of pictures with a square grid of tokens, this has {latents.shape[1]}"
        )
    tokens = latents.unflatten(2, (merge, merge, -1)).unflatten(1, (side, side))
    return tokens.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _numpy(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy()
