"""Behind a turned camera a plan goes astray, and the correction repairs it."""

import math

import numpy as np
import pytest
import torch

from worldmodel.planners import CEM, MPC, ActionBounds, LatentEnergy, Proposer, WorldModel
from worldmodel.planners.camera_rotation import TurnedWorld
from worldmodel.pose import integrate

STEP = ActionBounds.symmetric([0.075] * 3 + [0.15] * 3 + [0.5])


def rotation(degrees: float) -> np.ndarray:
    angle = math.radians(degrees)
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


class Astray:
    """A model behind a camera that is turned: it takes the arm's moves for turned ones."""

    control_hz = 4.0
    action_limit = (0.1,) * 7

    def __init__(self, world, degrees: float) -> None:
        self.world, self.matrix = world, torch.tensor(rotation(degrees)).float()

    def believed(self, actions):
        return torch.cat([actions[..., :2] @ self.matrix.mT, actions[..., 2:]], dim=-1)

    def encode(self, frames):
        return self.world.encode(frames)

    def predict(self, latents, proprio, actions):
        return self.world.predict(latents, proprio, self.believed(actions))

    def rollout(self, latents, proprio, actions):
        believed = actions.clone()
        ahead = latents.shape[1] - 1
        believed[:, :, ahead:] = self.believed(actions[:, :, ahead:])
        return self.world.rollout(latents, proprio, believed)

    def propose(self, latents, proprio, goal):
        """Guesses in its own directions, from latents that know nothing of the turn."""
        return torch.tensor([[0.05, 0.0, 0.02, 0.1, 0.2, 0.3, 0.4]]).expand(len(goal), 7)


def drive(world, toy, start, goal, steps: int) -> list[np.ndarray]:
    cem = CEM(cost=LatentEnergy(), num_samples=96, num_elites=12, num_iterations=10)
    mpc = MPC(world, cem, plan_bounds=STEP, step_bounds=STEP, control_hz=4.0, seed=3)
    mpc.set_goal(toy.image_of(goal))
    poses = [np.asarray(start, dtype=np.float32)]
    for _ in range(steps):
        [decision] = mpc.act(toy.image_of(poses[-1])[None], poses[-1][None])
        poses.append(integrate(poses[-1], decision.action))
    return poses


def test_a_turned_model_goes_astray_and_the_correction_repairs_it(toy):
    start = toy.start[0].numpy()
    goal = integrate(start, np.float32([0.05, -0.04, 0.02, 0, 0, 0, 0]))
    astray = Astray(toy.mixed, 100)

    def distance(world) -> float:
        return float(np.linalg.norm(drive(world, toy, start, goal, 1)[-1][:3] - goal[:3]))

    straight = distance(toy.mixed)
    assert straight < 0.005
    assert distance(astray) > 0.05
    # It believes moves turned by 100 degrees, so it finds them turned by -100: turn them by 100.
    assert distance(TurnedWorld(astray, rotation(100))) < 0.005
    assert distance(TurnedWorld(astray, rotation(-100))) > 0.05


def test_only_horizontal_moves_are_turned(toy):
    seen = []

    class Watching(Astray):
        def believed(self, actions):
            seen.append(actions)
            return actions

    world = TurnedWorld(Watching(toy.mixed, 0), rotation(90))
    actions = torch.tensor([[[[0.05, 0.0, 0.02, 0.1, 0.2, 0.3, 0.4]]]])
    state = toy.start[:, None]
    world.rollout(toy.mixed.latents_of(state), state, actions)
    world.predict(toy.mixed.latents_of(state), state, actions[0])
    expected = torch.tensor([0.0, -0.05, 0.02, 0.1, 0.2, 0.3, 0.4])
    for given in seen:
        torch.testing.assert_close(given.flatten(), expected)
    assert len(seen) == 2


def test_proposals_come_back_in_the_arms_directions(toy):
    world = TurnedWorld(Astray(toy.mixed, 0), rotation(90))
    latents = toy.mixed.latents_of(toy.start)
    proposed = world.propose(latents, toy.start, latents)
    expected = torch.tensor([[0.0, 0.05, 0.02, 0.1, 0.2, 0.3, 0.4]])
    torch.testing.assert_close(proposed, expected)
    with pytest.raises(TypeError, match="LinearWorld has no method propose.*num_proposals to 0"):
        TurnedWorld(toy.mixed, rotation(90)).propose(latents, toy.start, latents)


def test_it_is_a_world_model_with_the_rate_and_limits_of_its_own(toy):
    world = TurnedWorld(Astray(toy.mixed, 20), rotation(20))
    assert isinstance(world, WorldModel) and isinstance(world, Proposer)
    assert world.control_hz == 4.0 and world.action_limit == (0.1,) * 7
    frames = torch.from_numpy(toy.image_of(toy.start[0]))[None, None]
    torch.testing.assert_close(world.encode(frames), toy.mixed.encode(frames))


@pytest.mark.parametrize(
    "matrix", [np.eye(3), np.diag([1.0, -1.0]), np.zeros((2, 2)), 1.1 * np.eye(2)]
)
def test_what_is_no_rotation_is_refused(toy, matrix, without_shape_checks):
    with pytest.raises(ValueError, match="expected a rotation of the plane"):
        TurnedWorld(toy.mixed, matrix)
