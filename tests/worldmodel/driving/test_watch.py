"""Steps of a drive, judged by what was seen before and after them."""

import numpy as np
import pytest
import torch

from worldmodel.driving.watch import Watch
from worldmodel.planners.gate import SurpriseGate
from worldmodel.pose import integrate


class World:
    """Latents are the proprio that an image carries in its bytes."""

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        raw = frames.flatten(2)[..., :28].contiguous().numpy()
        return torch.from_numpy(raw.view(np.float32).copy())[:, :, None]  # (B, 1, 1, 7)

    def predict(self, latents, proprio, actions):
        return integrate(latents[:, :, 0], actions)[:, :, None]

    def rollout(self, latents, proprio, actions):
        raise NotImplementedError


def frames_of(proprio: torch.Tensor) -> torch.Tensor:
    pixels = np.zeros(48, dtype=np.uint8)
    pixels[:28] = proprio[0].numpy().view(np.uint8)
    return torch.from_numpy(pixels.reshape(1, 1, 4, 4, 3))


def watch() -> Watch:
    def score(before, predicted, after):
        return 100 * (predicted - after).abs().amax(dim=(1, 2))  # [cm]

    gate = SurpriseGate(World(), score, calm_below=0.5, slow_above=1.0, hold_above=5.0)
    return Watch(gate)


def at(x_m: float) -> torch.Tensor:
    return torch.tensor([[0.4 + x_m, 0.0, 0.3, 0.0, 0.0, 0.0, 0.0]])


def look(seen: Watch, *, pictures: tuple[float, float], arm: tuple[float, float]) -> str:
    """The verdict where the arm went so far, and the pictures show that."""
    return seen.look([frames_of(at(x)) for x in pictures], [at(x) for x in arm]).verdict


def test_an_arm_that_sees_its_moves_is_let_alone() -> None:
    seen = watch()
    for k in range(4):
        move = (0.02 * k, 0.02 * k + 0.02)
        assert look(seen, pictures=move, arm=move) == "ok"
    assert (seen.judged, seen.unjudged) == (4, 0)


def test_pictures_that_do_not_follow_the_arm_slow_and_hold_it() -> None:
    seen = watch()
    told = [look(seen, pictures=(0.0, 0.0), arm=(0.0, 0.02)) for _ in range(4)]
    assert told == ["slow", "replan", "replan", "hold"]
    jump = watch()
    assert look(jump, pictures=(0.0, 0.2), arm=(0.0, 0.0)) == "hold"
    assert jump.pass_over().verdict == "hold"  # nothing new is known
    assert (jump.judged, jump.unjudged) == (1, 1)
    jump.begin()
    assert jump.pass_over().verdict == "ok"


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="the surprise of a step is nan"):
        look(watch(), pictures=(0.0, float("nan")), arm=(0.0, 0.0))
