"""Pictures of a drive, judged where they lie one model step apart."""

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
    return Watch(gate, step_s=0.25)


START = torch.tensor([[0.4, 0.0, 0.3, 0.0, 0.0, 0.0, 0.0]])


def at(x_m: float) -> torch.Tensor:
    return START + torch.tensor([[x_m, 0, 0, 0, 0, 0, 0]])


def test_an_arm_that_sees_its_moves_is_let_alone() -> None:
    seen = watch()
    for k, time in enumerate((0.0, 0.25, 0.48, 0.78, 1.0)):
        state = seen.look(frames_of(at(0.02 * k)), at(0.02 * k), at=time)
        assert state.verdict == "ok"
    assert (seen.judged, seen.unjudged) == (4, 0)


def test_a_picture_that_does_not_follow_the_arm_slows_and_holds_it() -> None:
    seen = watch()
    told = [
        seen.look(frames_of(at(0.0)), at(0.02 * k), at=0.25 * k).verdict  # the camera froze
        for k in range(6)
    ]
    assert told == ["ok", "slow", "replan", "replan", "hold", "hold"]
    jump = watch()
    jump.look(frames_of(at(0.0)), at(0.0), at=0.0)
    assert jump.look(frames_of(at(0.2)), at(0.0), at=0.25).verdict == "hold"
    jump.begin()
    assert jump.look(frames_of(at(0.0)), at(0.0), at=9.0).verdict == "ok"


def test_pictures_between_steps_are_passed_over_and_gaps_are_not_judged() -> None:
    seen = watch()
    seen.look(frames_of(at(0.0)), at(0.0), at=0.0)
    assert seen.look(frames_of(at(0.3)), at(0.0), at=0.1).verdict == "ok"  # too soon to tell
    assert seen.judged == 0
    assert seen.look(frames_of(at(0.02)), at(0.02), at=0.25).verdict == "ok"  # from the first on
    assert seen.judged == 1
    assert seen.look(frames_of(at(0.3)), at(0.02), at=0.75).verdict == "ok"  # half a second
    assert (seen.judged, seen.unjudged) == (1, 1)
    assert seen.look(frames_of(at(0.02)), at(0.02), at=1.0).verdict == "hold"


def test_what_is_no_number_is_refused() -> None:
    seen = watch()
    seen.look(frames_of(at(0.0)), at(0.0), at=0.0)
    with pytest.raises(ValueError, match="the surprise of a step is nan"):
        seen.look(frames_of(at(float("nan"))), at(0.0), at=0.25)
