import numpy as np
import pytest
import torch

from worldmodel.planners import CEM, MPC, ActionBounds, LatentL1Energy, Plan
from worldmodel.pose import integrate

STEP = ActionBounds.symmetric([0.075] * 3 + [0.15] * 3 + [0.5])
FAR = ActionBounds.symmetric([0.3] * 3 + [0.15] * 3 + [0.5])


def cem(**changes):
    settings = {"cost": LatentL1Energy(), "num_samples": 96, "num_elites": 12, "num_iterations": 12}
    return CEM(**(settings | changes))


def controller(world, planner, **changes):
    settings = {"plan_bounds": STEP, "step_bounds": STEP, "control_hz": 4.0}
    return MPC(world, planner, **(settings | changes))


class Script:
    """A planner that returns written plans and remembers what it was given."""

    def __init__(self, *plans):
        self.plans, self.calls = [torch.as_tensor(p, dtype=torch.float32) for p in plans], []

    def plan(self, world, observation, goal, **arguments):
        self.calls.append(arguments | {"observation": observation})
        actions = self.plans[min(len(self.calls), len(self.plans)) - 1][None]
        return Plan(
            actions=actions, std=torch.zeros_like(actions), cost=torch.tensor([0.25]),
            evaluations=1, iterations=1, elapsed_ms=0.0, deadline_hit=False,
            cost_history=torch.tensor([[0.25]]),
        )  # fmt: skip


def drive(mpc, toy, proprio, steps):
    """Executes decisions exactly; returns them and the proprio before each, and the last."""
    decisions, poses = [], [np.asarray(proprio, dtype=np.float32)]
    for _ in range(steps):
        decision = mpc.act(toy.image_of(poses[-1]), poses[-1])
        decisions.append(decision)
        poses.append(integrate(poses[-1], decision.action))
    return decisions, poses


def move(x=0.0, y=0.0, yaw=0.0, grip=0.0):
    return [x, y, 0, 0, 0, yaw, grip]


# --- Closed loop --------------------------------------------------------------------------------


@pytest.mark.parametrize("plan_bounds", [STEP, FAR])
def test_reaches_a_far_goal_given_as_an_image(toy, plan_bounds):
    start = toy.start[0].numpy()
    goal = integrate(start, np.float32([0.2, -0.28, 0.1, 0.05, 0.1, 0.2, 0.4]))
    mpc = controller(toy.mixed, cem(), plan_bounds=plan_bounds, goal_tolerance=0.05)
    mpc.set_goal(toy.image_of(goal))
    decisions, poses = drive(mpc, toy, start, steps=12)
    assert np.linalg.norm(poses[-1][:3] - goal[:3]) < 0.005
    assert not decisions[0].reached and decisions[-1].reached
    for decision in decisions:
        assert decision.action.shape == (7,) and decision.action.dtype == np.float32
        assert (np.abs(decision.action) <= STEP.high.numpy()).all()


def test_the_energy_reported_is_the_distance_of_the_present_image_to_the_goal(toy):
    start, goal = toy.start[0], toy.start[0] + 0.05
    mpc = controller(toy.mixed, cem())
    mpc.set_goal(toy.image_of(goal))
    decision = mpc.act(toy.image_of(start), start.numpy())
    energy = (toy.mixed.latents_of(start) - toy.mixed.latents_of(goal)).abs().mean()
    assert decision.energy_now == pytest.approx(energy.item())
    assert decision.predicted_energy == decision.plan.cost.item() < decision.energy_now


def test_the_same_seed_drives_the_same_way_also_after_a_reset(toy):
    start, goal = toy.start[0].numpy(), toy.image_of(toy.start[0] + 0.1)
    mpc = controller(toy.mixed, cem(), seed=5)
    runs = []
    for seed in (None, None, 6):
        mpc.reset(seed=seed)
        mpc.set_goal(goal)
        runs.append(np.array(drive(mpc, toy, start, steps=3)[1]))
    assert np.array_equal(runs[0], runs[1]) and not np.array_equal(runs[0], runs[2])


# --- What is left of a plan ---------------------------------------------------------------------


def test_the_first_plan_starts_cold_and_the_next_from_the_shifted_plan_and_zeros(toy):
    script = Script([move(0.05), move(0.02), move(y=0.03)])
    mpc = controller(toy.mixed, script)
    mpc.set_goal(toy.image_of(toy.start[0]))
    drive(mpc, toy, toy.start[0], steps=2)
    assert script.calls[0]["warm_start"] is None
    expected = torch.tensor([[move(0.02), move(y=0.03), move()]])
    torch.testing.assert_close(script.calls[1]["warm_start"], expected)


def test_a_long_action_is_executed_in_parts_and_its_remainder_is_the_warm_start(toy):
    script = Script([move(0.3, 0.1, yaw=0.3, grip=0.2), move(y=0.06)])
    mpc = controller(toy.mixed, script, plan_bounds=FAR)
    mpc.set_goal(toy.image_of(toy.start[0]))
    decisions, _ = drive(mpc, toy, toy.start[0], steps=2)
    first = move(0.075, 0.025, yaw=0.15, grip=0.2)
    np.testing.assert_allclose(decisions[0].action, first, atol=1e-6)
    expected = torch.tensor([[move(0.225, 0.075, yaw=0.15), move(y=0.06)]])
    torch.testing.assert_close(script.calls[1]["warm_start"], expected, atol=1e-6, rtol=0)


def test_continuing_one_plan_executes_all_of_it(toy):
    script = Script([move(0.3, 0.1, yaw=0.3), move(y=0.06)])
    mpc = controller(toy.mixed, script, plan_bounds=FAR, replan_every=5)
    mpc.set_goal(toy.image_of(toy.start[0]))
    decisions, _ = drive(mpc, toy, toy.start[0], steps=5)
    assert [d.replanned for d in decisions] == [True, False, False, False, False]
    assert all(d.plan is decisions[0].plan for d in decisions) and decisions[3].plan_ms == 0
    total = np.sum([d.action for d in decisions], axis=0)
    np.testing.assert_allclose(total, move(0.3, 0.16, yaw=0.3), atol=1e-5)
    np.testing.assert_allclose(decisions[4].action, move(y=0.06), atol=1e-6)


def test_replans_early_when_nothing_is_left_of_the_plan(toy):
    script = Script([move(0.05), move(0.01)])
    mpc = controller(toy.mixed, script, replan_every=10)
    mpc.set_goal(toy.image_of(toy.start[0]))
    decisions, _ = drive(mpc, toy, toy.start[0], steps=3)
    assert [d.replanned for d in decisions] == [True, False, True]


def test_a_new_goal_drops_the_plan_but_keeps_the_context(toy):
    script = Script([move(0.3)])
    mpc = controller(toy.mixed, script, plan_bounds=FAR, replan_every=4, num_context=3)
    mpc.set_goal(toy.image_of(toy.start[0]))
    _, poses = drive(mpc, toy, toy.start[0], steps=1)
    mpc.set_goal(toy.image_of(toy.start[0] + 0.1))
    drive(mpc, toy, poses[-1], steps=1)
    assert len(script.calls) == 2 and script.calls[1]["warm_start"] is None
    assert script.calls[1]["observation"].latents.shape[1] == 2


# --- Context ------------------------------------------------------------------------------------


def test_the_context_grows_to_its_length_and_holds_the_measured_motion(toy):
    script = Script([move(0.05, yaw=0.1, grip=0.1)])
    mpc = controller(toy.mixed, script, num_context=3)
    mpc.set_goal(toy.image_of(toy.start[0]))
    _, poses = drive(mpc, toy, toy.start[0], steps=5)
    assert [c["observation"].proprio.shape[1] for c in script.calls] == [1, 2, 3, 3, 3]
    last = script.calls[-1]["observation"]
    np.testing.assert_allclose(last.proprio[0].numpy(), poses[2:5])
    executed = np.tile(np.float32(move(0.05, yaw=0.1, grip=0.1)), (2, 1))
    np.testing.assert_allclose(last.past_actions[0].numpy(), executed, atol=1e-6)


def test_plans_with_a_context_of_several_frames(toy):
    start = toy.start[0].numpy()
    goal = start + np.float32([0.1, -0.1, 0.05, 0, 0, 0, 0])
    mpc = controller(toy.mixed, cem(), num_context=2)  # the toy world checks what it is given
    mpc.set_goal(toy.image_of(goal))
    _, poses = drive(mpc, toy, start, steps=5)
    assert np.linalg.norm(poses[-1][:3] - goal[:3]) < 0.01


def test_goal_and_picture_are_encoded_once_however_long_the_search(toy):
    encoded = []

    class Counting(toy.LinearWorld):
        def encode(self, frames):
            encoded.append(tuple(frames.shape[:2]))
            return super().encode(frames)

    mpc = controller(Counting(toy.mixed.matrix), cem(chunk_size=10), num_context=2)
    mpc.set_goal(toy.image_of(toy.start[0]))
    for k in range(3):
        mpc.act(toy.image_of(toy.start[0]), toy.start[0].numpy())
        assert encoded == [(1, 1)] * (2 + k)


# --- Deadline -----------------------------------------------------------------------------------


def test_the_planner_gets_what_encoding_left_of_the_deadline(toy):
    now = [0.0]

    class SlowEyes(toy.LinearWorld):
        def encode(self, frames):
            now[0] += 0.06
            return super().encode(frames)

    for deadline_ms, expected in ((200.0, 140.0), (50.0, 0.0), (None, None)):
        script = Script([move(0.05)])
        mpc = controller(
            SlowEyes(toy.mixed.matrix), script, deadline_ms=deadline_ms, clock=lambda: now[0]
        )
        mpc.set_goal(toy.image_of(toy.start[0]))
        decision = mpc.act(toy.image_of(toy.start[0]), toy.start[0].numpy())
        assert script.calls[0]["deadline_ms"] == (expected and pytest.approx(expected))
        assert decision.encode_ms == pytest.approx(60) and decision.plan_ms == 0


# --- Errors -------------------------------------------------------------------------------------


def test_refuses_a_proprio_that_is_not_finite_and_is_then_as_before(toy):
    script = Script([move(0.05)])
    mpc = controller(toy.mixed, script, num_context=2)
    mpc.set_goal(toy.image_of(toy.start[0]))
    broken = toy.start[0].numpy().copy()
    broken[3] = np.nan
    with pytest.raises(ValueError, match=r"observation proprio contains NaN at \[3\]; the planner"):
        mpc.act(toy.image_of(toy.start[0]), broken)
    mpc.act(toy.image_of(toy.start[0]), toy.start[0].numpy())
    assert script.calls[0]["observation"].proprio.shape[1] == 1


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    "image, error, message",
    [
        (np.zeros((4, 4, 3), np.float32), TypeError, "image must be uint8 RGB.*got float32"),
        (np.zeros((3, 4, 4), np.uint8), ValueError, r"\(height, width, 3\), got \(3, 4, 4\)"),
        (
            np.zeros((8, 8, 3), np.uint8),
            ValueError,
            r"\(8, 8, 3\) but the goal image has \(4, 4, 3",
        ),
    ],
)
def test_refuses_an_image_that_is_not_what_the_goal_was(toy, image, error, message):
    mpc = controller(toy.mixed, Script([move()]))
    mpc.set_goal(toy.image_of(toy.start[0]))
    with pytest.raises(error, match=message):
        mpc.act(image, toy.start[0].numpy())


def test_refuses_a_proprio_of_another_size_and_acting_without_a_goal(toy):
    mpc = controller(toy.mixed, Script([move()]))
    with pytest.raises(ValueError, match="no goal; call set_goal"):
        mpc.act(toy.image_of(toy.start[0]), toy.start[0].numpy())
    mpc.set_goal(toy.image_of(toy.start[0]))
    with pytest.raises(ValueError, match=r"proprio must have shape \(7,\), got \(6,\)"):
        mpc.act(toy.image_of(toy.start[0]), np.zeros(6, np.float32))


def test_refuses_to_run_the_arm_at_another_rate_than_the_model(toy):
    with pytest.raises(ValueError, match="control_hz is 15 Hz but the model was trained at 4 Hz"):
        controller(toy.mixed, Script(), control_hz=15.0)
    with pytest.raises(ValueError, match="model_hz=5 but the world model says 4 Hz"):
        controller(toy.mixed, Script(), model_hz=5.0)


def test_a_model_without_a_rate_needs_one_stated(toy):
    world = toy.LinearWorld(toy.mixed.matrix)
    world.control_hz = None
    with pytest.raises(ValueError, match="states no control_hz; pass .* as model_hz"):
        controller(world, Script())
    with pytest.raises(ValueError, match="trained at 5 Hz"):
        controller(world, Script(), model_hz=5.0)
    controller(world, Script(), model_hz=4.0)


def test_refuses_bounds_the_arm_could_never_follow(toy):
    fixed = ActionBounds.symmetric([0.075] * 3 + [0.0] * 3 + [0.5])
    with pytest.raises(ValueError, match=r"plan_bounds lets axes \[3, 4, 5\] move"):
        controller(toy.mixed, Script(), step_bounds=fixed)
    forward = ActionBounds(low=torch.zeros(7), high=STEP.high)
    with pytest.raises(ValueError, match=r"from below zero to above zero.*axes \[0, 1, 2"):
        controller(toy.mixed, Script(), step_bounds=forward)
    with pytest.raises(ValueError, match="plan_bounds must have 7 axes"):
        controller(toy.mixed, Script(), plan_bounds=ActionBounds.symmetric([0.1] * 4))
