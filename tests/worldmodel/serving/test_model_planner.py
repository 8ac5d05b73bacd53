# pyright: reportAttributeAccessIssue=false
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from worldmodel import checkpoint, envs
from worldmodel.cli import compose
from worldmodel.closed_loop import PlannerSettings
from worldmodel.envs import panda
from worldmodel.envs.robots.wire import pack, unpack
from worldmodel.planners import CEM, LatentEnergy
from worldmodel.serving.chunks import JOINT_UNIT, ROW_HZ
from worldmodel.serving.model_planner import ModelPlanner
from worldmodel.verbs.serving import goal_policy

SETTINGS = PlannerSettings(
    search=CEM(cost=LatentEnergy(), num_samples=8, num_elites=2, num_iterations=1, horizon=2),
    axes=("x", "y", "z", "gripper"),
    limits=(0.4,) * 6 + (1.0,),
    warm_start=False,
    replan_every=1,
    num_context=1,
    deadline_ms=None,
    gripper_snap=0.25,
    precision="float32",
)
PROPRIO = np.array([0.5, 0, 0.3, np.pi, 0, 0, 0], np.float32)


def make_planner(world, settings: PlannerSettings = SETTINGS) -> ModelPlanner:
    return ModelPlanner(world, settings, speed=0.2, turn_speed=0.4, device=torch.device("cpu"))


def pictures(number: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(number)]


def test_the_actions_are_the_plan_cut_into_steps_of_the_speed(make_world) -> None:
    planner = make_planner(make_world())
    assert planner.step_s == 0.25
    image, goal = pictures(2)
    actions = planner.plan(image, goal, PROPRIO, num_actions=40)
    plan = planner._controller._arms[0].plan
    assert plan is not None
    planned = plan.actions[0].double().numpy()
    assert 2 < len(actions) <= 40
    assert np.abs(actions[:, :3]).max() <= 0.2 * 0.25 + 1e-9
    assert np.allclose(actions[:, :3].sum(0), planned[:, :3].sum(0), atol=1e-5)
    assert np.isin(actions[:, 6], [-1, 0, 1]).all()  # in full or not at all
    assert len(make_planner(make_world()).plan(image, goal, PROPRIO, num_actions=2)) == 2


def test_another_goal_is_taken_up_at_once(make_world) -> None:
    planner = make_planner(make_world())
    image, one, other = pictures(3)
    planner.plan(image, one, PROPRIO, num_actions=1)
    first = planner._controller._arms[0].goal
    planner.plan(image, other, PROPRIO, num_actions=1)
    second = planner._controller._arms[0].goal
    assert not torch.equal(first, second)
    planner.plan(image, one, PROPRIO, num_actions=1)
    assert torch.equal(planner._controller._arms[0].goal, first)


def test_a_model_of_two_cameras_plans_from_both_through_the_wire(
    run_server, droid_request, make_world, tmp_path
) -> None:
    """What openpi's DROID script sends, unchanged, has both pictures."""
    world = make_world(num_views=2, merge=2, standardise=True)
    checkpoint.save(world, tmp_path / "two", provenance={"camera": "exterior+wrist"})
    goals = tmp_path / "goals"
    goals.mkdir()
    for name, picture in zip(("exterior", "wrist"), pictures(2), strict=True):
        Image.fromarray(picture).save(goals / f"red cube.{name}.png")
    words = [
        "workspace=[[0.2,-0.4,0.0],[0.7,0.4,0.6]]",
        f"goals={goals}",
        f"checkpoint={tmp_path / 'two'}",
        "camera=exterior+wrist",
        "planner.search.num_samples=8",
        "planner.search.num_samples_first=8",
        "planner.search.num_elites=2",
        "planner.search.num_iterations=1",
        "planner.search.num_proposals=0",
        "planner.precision=float32",
    ]
    policy = goal_policy(compose("serve", words))
    assert policy.metadata["needs_wrist_camera"] is True
    energies = []
    with run_server(policy) as running:
        for wrist in (droid_request["observation/wrist_image_left"], pictures(2)[1]):
            answer = running.ask(droid_request | {"observation/wrist_image_left": wrist})
            assert answer["actions"].shape == (10, 8)
            arm = policy.planner._controller._arms[0]
            energies.append(float((arm.context[-1][0][:, 0] - arm.goal).abs().mean()))
        assert energies[1] < energies[0]  # the wrist's view alone came to the goal's
        del droid_request["observation/wrist_image_left"]
        assert "bad_image: observation/wrist_image_left is missing" in running.ask(droid_request)


@pytest.mark.parametrize("changes", [{"warm_start": True}, {"replan_every": 2}, {"num_context": 2}])
def test_what_needs_a_steady_rate_is_refused(make_world, changes: dict) -> None:
    with pytest.raises(ValueError, match=f"planner.{next(iter(changes))} must be"):
        make_planner(make_world(), replace(SETTINGS, **changes))
    world = make_world()
    world.control_hz = None
    with pytest.raises(ValueError, match="no control_hz"):
        make_planner(world)


class SimulatedDroid:
    """The simulated arm as DROID's environment drives it: joint velocities, 15 rows a second."""

    def __init__(self, env) -> None:
        self.arm = env.unwrapped._arm
        self.env = env
        self._ticks = round(1 / ROW_HZ / self.arm.model.opt.timestep)

    @property
    def joints(self) -> np.ndarray:
        return self.arm.data.qpos[self.arm._qpos].copy()

    def observe(self, prompt: str) -> dict:
        return {
            "observation/exterior_image_1_left": self.env.unwrapped.view("exterior"),
            "observation/joint_position": self.joints,
            "observation/gripper_position": self.arm.proprio[6:].astype(float),
            "prompt": prompt,
        }

    def step(self, row: np.ndarray) -> None:
        import mujoco

        data, start = self.arm.data, self.joints
        change = JOINT_UNIT * np.clip(row[:7], -1, 1)
        feed_forward = panda.DAMPING / panda.STIFFNESS * change * ROW_HZ
        for tick in range(self._ticks):
            part = (tick + 1) / self._ticks
            data.ctrl[self.arm._servos] = start + part * change + feed_forward
            data.ctrl[self.arm._gripper] = float(row[7] > 0.5)
            mujoco.mj_step(self.arm.model, data)
        self.arm._refresh()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_the_shipped_model_reaches_a_goal_through_the_wire(run_server, tmp_path, seed) -> None:
    env = envs.make("reach", backend="ray")
    observation, _ = env.reset(seed=seed)
    Image.fromarray(observation["goal_image"]).save(tmp_path / "reach it.png")
    config = compose("serve", ["workspace=[[0.2,-0.4,0.0],[0.7,0.4,0.6]]", f"goals={tmp_path}"])
    robot, goal = SimulatedDroid(env), observation["goal_proprio"][:3]
    distances = [float(np.linalg.norm(robot.arm.tcp_pos_base - goal))]
    with run_server(goal_policy(config)) as running, running.client() as client:
        for _ in range(7):
            client.send(pack(robot.observe("reach it")))
            answer = unpack(client.recv(120))
            assert answer["actions"].shape == (10, 8)
            for row in answer["actions"][:8]:
                robot.step(row)
            distances.append(float(np.linalg.norm(robot.arm.tcp_pos_base - goal)))
    assert distances[0] > 0.15
    assert (
        max(distances[-3:]) < 0.01
    )  # though the elbow is another than that of the goal image at first
