"""The two ways in which arms speak, and a controller of an arm that speaks in joints."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from worldmodel.planners import CEM, MPC, ActionBounds, GoalImage, LatentEnergy, SwitchRule
from worldmodel.planners.action_space import POSES, JointSpace
from worldmodel.planners.split import split_action

JOINTS = 4
JOINT_STEP = ActionBounds.symmetric([0.1] * JOINTS + [0.5])
JOINT_FAR = ActionBounds.symmetric([0.4] * JOINTS + [0.5])


class JointWorld:
    """Latents are a fixed linear map of joints and gripper, which an image carries in its bytes."""

    control_hz = 2.0

    def __init__(self) -> None:
        self.action_space = JointSpace(JOINTS)
        self.matrix = torch.randn(JOINTS + 1, 24, generator=torch.Generator().manual_seed(3))

    def latents_of(self, joints: torch.Tensor) -> torch.Tensor:
        return (joints @ self.matrix).unflatten(-1, (4, 6))

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        raw = frames.flatten(2)[..., : 4 * (JOINTS + 1)].contiguous().numpy()
        return self.latents_of(torch.from_numpy(raw.view(np.float32).copy()))

    def predict(self, latents, proprio, actions):
        return self.latents_of(proprio + actions)

    def rollout(self, latents, proprio, actions):
        C = proprio.shape[1]
        past = actions[:, 0, : C - 1]
        torch.testing.assert_close(proprio[:, :-1] + past, proprio[:, 1:])  # the measured motion
        ahead = actions[:, :, C - 1 :].cumsum(dim=2)
        return self.latents_of(proprio[:, None, -1:] + ahead)


def image_of(joints: np.ndarray) -> np.ndarray:
    pixels = np.zeros(48, dtype=np.uint8)
    pixels[: 4 * (JOINTS + 1)] = np.asarray(joints, dtype=np.float32).view(np.uint8)
    return pixels.reshape(4, 4, 3)


def controller(world=None, **changes) -> MPC:
    planner = CEM(cost=LatentEnergy(), num_samples=96, num_elites=12, num_iterations=12)
    settings = {"plan_bounds": JOINT_FAR, "step_bounds": JOINT_STEP, "control_hz": 2.0}
    return MPC(world or JointWorld(), planner, **(settings | changes))


def drive(mpc: MPC, joints: np.ndarray, steps: int, **told) -> tuple[np.ndarray, list]:
    decisions = []
    for _ in range(steps):
        [decision] = mpc.act(image_of(joints)[None], joints[None], **told)
        joints = joints + decision.action
        decisions.append(decision)
    return joints, decisions


@pytest.mark.parametrize("num_context", [1, 2])
def test_an_arm_of_four_joints_is_driven_to_a_goal_image(num_context: int) -> None:
    start = np.float32([0.3, -0.5, 1.0, 0.2, 0.1])
    goal = start + np.float32([0.5, -0.3, 0.2, -0.4, 0.6])
    mpc = controller(num_context=num_context)
    mpc.set_goal(image_of(goal))
    reached, decisions = drive(mpc, start, steps=9)
    np.testing.assert_allclose(reached, goal, atol=0.03)
    actions = np.stack([decision.action for decision in decisions])
    assert actions.shape == (9, JOINTS + 1)
    assert (np.abs(actions) <= np.array([0.1] * JOINTS + [0.5]) + 1e-6).all()


def test_the_plan_begins_where_committed_changes_of_joints_lead() -> None:
    start, mpc = np.float32([0.3, -0.5, 1.0, 0.2, 0.1]), controller()
    under_way = np.array([[0.1, 0.0, 0.0, 0.0, 0.0], [0.1, 0.1, 0.0, 0.0, 0.0]])
    mpc.set_goal(image_of(start + np.float32([0.2, 0.1, 0.0, 0.0, 0.0])))
    [decision] = mpc.act(image_of(start)[None], start[None], committed=[under_way])
    assert np.abs(decision.plan.actions.numpy()).max() < 0.03  # nothing is left to do
    observation, _ = mpc.problem(image_of(start)[None], start[None], committed=under_way)
    np.testing.assert_allclose(observation.proprio[0, -1], start + under_way.sum(0), rtol=1e-5)


def test_a_long_move_of_joints_keeps_its_direction() -> None:
    part, rest = split_action(
        np.array([0.4, -0.2, 0.0, 0.1, 0.2]), JOINT_STEP, space=JointSpace(JOINTS)
    )
    np.testing.assert_allclose(part, [0.1, -0.05, 0.0, 0.025, 0.2])
    assert rest is not None
    np.testing.assert_allclose(rest, [0.3, -0.15, 0.0, 0.075, 0.0], atol=1e-12)


@given(
    before=arrays(np.float64, 5, elements=st.floats(0.05, 0.95)),
    action=arrays(np.float64, 5, elements=st.floats(-0.04, 0.04)),
    share=st.floats(0, 1),
)
def test_joints_compose(before: np.ndarray, action: np.ndarray, share: float) -> None:
    space = JointSpace(4)
    start, move = torch.from_numpy(before), torch.from_numpy(action)
    torch.testing.assert_close(space.between(start, space.integrate(start, move)), move)
    part = share * action
    rest = torch.from_numpy(space.remainder(action, part))
    torch.testing.assert_close(
        space.integrate(space.integrate(start, torch.from_numpy(part)), rest),
        space.integrate(start, move),
    )


def test_a_gripper_does_not_open_further_than_open() -> None:
    joints = torch.tensor([0.5, 0.9])
    for space, size in ((JointSpace(1), 2), (POSES, 7)):
        state = torch.cat([torch.zeros(size - 1), joints[-1:]])
        more = torch.cat([torch.zeros(size - 1), torch.tensor([0.4])])
        assert space.integrate(state, more)[-1] == 1.0
    assert joints.tolist() == pytest.approx([0.5, 0.9])  # the caller's are left alone


def test_what_is_of_poses_is_refused_where_an_arm_speaks_in_joints() -> None:
    with pytest.raises(ValueError, match="plan_bounds must have 5 axes, got .7,."):
        controller(plan_bounds=ActionBounds.symmetric([0.1] * 7))
    with pytest.raises(ValueError, match="still_m=0.015 of the switch rule is a way of the hand"):
        controller(switch=SwitchRule(still_m=0.015))
    mpc = controller(switch=SwitchRule(tolerance=0.05))
    mpc.set_goals([[GoalImage(image_of(np.zeros(5)))]])
    with pytest.raises(ValueError, match=r"proprio must have shape \(1, 5\), got \(1, 7\)"):
        mpc.act(image_of(np.zeros(5))[None], np.zeros((1, 7), np.float32))


def test_a_world_that_says_nothing_speaks_in_poses(toy) -> None:
    bounds = SimpleNamespace(plan_bounds=toy.bounds, step_bounds=toy.bounds)
    mpc = controller(toy.mixed, control_hz=4.0, **vars(bounds))
    assert mpc.space is POSES
