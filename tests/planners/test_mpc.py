import numpy as np
import pytest
import torch

from worldmodel.planners import CEM, MPC, ActionBounds, GoalImage, LatentEnergy, Plan, SwitchRule
from worldmodel.planners.gate import SurpriseGate
from worldmodel.pose import integrate

STEP = ActionBounds.symmetric([0.075] * 3 + [0.15] * 3 + [0.5])
FAR = ActionBounds.symmetric([0.3] * 3 + [0.15] * 3 + [0.5])


def cem(**changes):
    settings = {"cost": LatentEnergy(), "num_samples": 96, "num_elites": 12, "num_iterations": 12}
    return CEM(**(settings | changes))


def controller(world, planner, **changes):
    settings = {"plan_bounds": STEP, "step_bounds": STEP, "control_hz": 4.0}
    return MPC(world, planner, **(settings | changes))


class Script:
    """A planner that returns written plans and remembers what it was given.

    `gains`: of each plan; by default every one looks worth its while.
    """

    def __init__(self, *plans, gains=(0.75,)):
        self.plans, self.calls = [torch.as_tensor(p, dtype=torch.float32) for p in plans], []
        self.gains = gains

    def plan(self, world, observation, goal, **arguments):
        self.calls.append(arguments | {"observation": observation, "goal": goal})
        B, number = len(goal), len(self.calls) - 1
        actions = self.plans[min(number, len(self.plans) - 1)].expand(B, -1, -1)
        gain = self.gains[min(number, len(self.gains) - 1)]
        return Plan(
            actions=actions,
            std=torch.zeros_like(actions),
            cost=torch.full((B,), 0.25),
            gain=torch.full((B,), gain),
            evaluations=1,
            iterations=1,
            elapsed_ms=0.0,
            deadline_hit=False,
            cost_history=torch.full((1, B), 0.25),
        )


def act(mpc, toy, proprio):
    """One step of a single arm."""
    proprio = np.asarray(proprio, dtype=np.float32)
    [decision] = mpc.act(toy.image_of(proprio)[None], proprio[None])
    return decision


def drive(mpc, toy, proprio, steps):
    """Executes decisions exactly; returns them and the proprio before each, and the last."""
    decisions, poses = [], [np.asarray(proprio, dtype=np.float32)]
    for _ in range(steps):
        decisions.append(act(mpc, toy, poses[-1]))
        poses.append(integrate(poses[-1], decisions[-1].action))
    return decisions, poses


def move(x=0.0, y=0.0, yaw=0.0, grip=0.0):
    return [x, y, 0, 0, 0, yaw, grip]


# --- Closed loop --------------------------------------------------------------------------------


@pytest.mark.parametrize("plan_bounds", [STEP, FAR])
def test_reaches_a_far_goal_given_as_an_image(toy, plan_bounds):
    start = toy.start[0].numpy()
    goal = integrate(start, np.float32([0.2, -0.28, 0.1, 0.05, 0.1, 0.2, 0.4]))
    mpc = controller(toy.mixed, cem(), plan_bounds=plan_bounds, switch=SwitchRule(tolerance=0.05))
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
    decision = act(mpc, toy, start)
    energy = (toy.mixed.latents_of(start) - toy.mixed.latents_of(goal)).abs().mean()
    assert decision.energy_now == pytest.approx(energy.item())
    assert decision.predicted_energy == decision.plan.cost.item() < decision.energy_now


def test_the_same_seed_drives_the_same_way_also_after_a_reset(toy):
    start, goal = toy.start[0].numpy(), toy.image_of(toy.start[0] + 0.1)
    mpc = controller(toy.mixed, cem(), seed=5)
    runs = []
    for seed in (None, [5], [6]):
        mpc.reset(seeds=seed)
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


# --- Sub-goals ----------------------------------------------------------------------------------


def goals_at(toy, *poses, limits=None):
    limits = [None] * len(poses) if limits is None else limits
    return [GoalImage(toy.image_of(p), k) for p, k in zip(poses, limits, strict=True)]


def test_follows_a_sequence_of_images_by_their_energy(toy):
    start = toy.start[0].numpy()
    above = integrate(start, np.float32([0.15, -0.1, 0, 0, 0, 0, 0]))
    down = integrate(above, np.float32([0, 0, -0.12, 0, 0, 0.1, 0.4]))
    back = integrate(down, np.float32([-0.1, 0.1, 0.1, 0, 0, 0, 0]))
    mpc = controller(toy.mixed, cem(), switch=SwitchRule(tolerance=0.01))
    mpc.set_goals([goals_at(toy, above, down, back)])
    decisions, poses = drive(mpc, toy, start, steps=12)
    stages = [d.stage for d in decisions]
    assert stages == sorted(stages) and set(stages) == {0, 1, 2}
    for stage, goal in ((1, above), (2, down)):
        first = stages.index(stage)
        assert decisions[first].switched == "energy"
        assert np.linalg.norm(poses[first][:3] - goal[:3]) < 0.01
    assert [d.switched for d in decisions].count(None) == 10
    assert np.linalg.norm(poses[-1][:3] - back[:3]) < 0.01
    assert decisions[-1].reached and not any(d.reached for d in decisions if d.stage < 2)


@pytest.mark.parametrize("rule", [SwitchRule(min_gain=0.1), SwitchRule(still_m=0.01)])
def test_goes_on_without_an_absolute_energy_when_no_plan_is_worth_it(toy, rule):
    start = toy.start[0].numpy()
    above = integrate(start, np.float32([0.1, -0.1, 0, 0, 0, 0, 0]))
    mpc = controller(toy.mixed, cem(hold=True), switch=rule)
    mpc.set_goals([goals_at(toy, above, start)])
    decisions, poses = drive(mpc, toy, start, steps=8)
    first = [d.stage for d in decisions].index(1)
    assert decisions[first].switched == ("gain" if rule.still_m is None else "still")
    assert np.linalg.norm(poses[first][:3] - above[:3]) < 0.01


def test_limits_count_executed_steps_and_the_last_image_stays(toy):
    script = Script([move(0.01)])
    mpc = controller(toy.mixed, script)
    far = toy.start[0] + 1.0
    mpc.set_goals([goals_at(toy, far, far, far, limits=[4, 1, 1])])
    decisions, _ = drive(mpc, toy, toy.start[0], steps=8)
    assert [d.stage for d in decisions] == [0, 0, 0, 0, 1, 2, 2, 2]
    assert [d.switched for d in decisions] == [None] * 4 + ["limit"] * 2 + [None] * 2
    assert len(script.calls) == 8  # a limit is known before planning


def test_a_stage_lasts_at_least_one_step_even_where_it_is_reached_already(toy):
    start = toy.start[0]
    mpc = controller(toy.mixed, Script([move()]), switch=SwitchRule(tolerance=0.05))
    mpc.set_goals([goals_at(toy, start, start, start)])
    decisions, _ = drive(mpc, toy, start, steps=4)
    assert [d.stage for d in decisions] == [0, 1, 2, 2]


def test_an_arm_that_is_there_plans_to_the_next_image_in_the_same_step(toy):
    now = [0.0]

    class Slow(Script):
        def plan(self, *positional, **arguments):
            now[0] += 0.03
            return super().plan(*positional, **arguments)

    script = Slow(
        [move(0.05), move(0.05)], [move(0.02)], [move(y=0.04)],
        gains=[0.5, -0.1, 0.5],
    )  # fmt: skip
    rule = SwitchRule(min_gain=0.0)
    mpc = controller(toy.mixed, script, switch=rule, clock=lambda: now[0])
    mpc.set_goals([goals_at(toy, toy.start[0] + 0.1, toy.start[0] - 0.1)])
    first, second = drive(mpc, toy, toy.start[0], steps=2)[0]
    assert (first.stage, first.switched) == (0, None) and first.plan_ms == pytest.approx(30)
    assert (second.stage, second.switched) == (1, "gain") and second.plan_ms == pytest.approx(60)
    np.testing.assert_allclose(second.action, move(y=0.04), atol=1e-6)
    old, new = script.calls[1], script.calls[2]
    assert old["warm_start"] is not None and new["warm_start"] is None
    torch.testing.assert_close(old["goal"], toy.mixed.latents_of(toy.start + 0.1))
    torch.testing.assert_close(new["goal"], toy.mixed.latents_of(toy.start - 0.1))
    energy = (toy.mixed.latents_of(torch.tensor(move(0.05)) + 0.1)).abs().mean()
    assert second.energy_now == pytest.approx(float(energy), rel=1e-4)


def test_a_call_that_fails_does_not_move_an_arm_to_its_next_image(toy):
    class Broken(Script):
        def plan(self, world, observation, goal, **arguments):
            if len(self.calls) == 1:
                self.calls.append({})
                raise ValueError("the world model broke")
            return super().plan(world, observation, goal, **arguments)

    mpc = controller(toy.mixed, Broken([move()]), switch=SwitchRule(tolerance=0.05))
    mpc.set_goals([goals_at(toy, toy.start[0], toy.start[0])])
    assert act(mpc, toy, toy.start[0]).stage == 0
    with pytest.raises(ValueError, match="broke"):
        act(mpc, toy, toy.start[0])
    decision = act(mpc, toy, toy.start[0])
    assert (decision.stage, decision.switched) == (1, "energy")


# --- The gripper --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "planned, executed", [(0.31, 0.5), (0.29, 0.0), (-0.05, 0.0), (-0.9, -0.5)]
)
def test_the_gripper_goes_all_the_way_or_not_at_all_and_leaves_nothing(toy, planned, executed):
    script = Script([move(0.1, grip=planned), move(grip=0.2)])
    wide = ActionBounds.symmetric([0.3] * 3 + [0.15] * 3 + [1.0])
    mpc = controller(toy.mixed, script, plan_bounds=wide, gripper_snap=0.3)
    mpc.set_goal(toy.image_of(toy.start[0]))
    decisions, _ = drive(mpc, toy, toy.start[0], steps=2)
    np.testing.assert_allclose(decisions[0].action, move(0.075, grip=executed), atol=1e-6)
    expected = torch.tensor([[move(0.025), move(grip=0.2)]])
    torch.testing.assert_close(script.calls[1]["warm_start"], expected, atol=1e-6, rtol=0)


def test_a_gripper_change_too_small_to_execute_does_not_hold_a_stage_back(toy):
    def stages(**changes):
        script = Script([move(grip=0.28)], gains=[0.0])
        mpc = controller(toy.mixed, script, switch=SwitchRule(min_gain=0.0), **changes)
        mpc.set_goals([goals_at(toy, toy.start[0] + 0.1, toy.start[0])])
        return [d.stage for d in drive(mpc, toy, toy.start[0], steps=2)[0]]

    assert stages(gripper_snap=0.3) == [0, 1] and stages() == [0, 0]


# --- Several arms -------------------------------------------------------------------------------


def drive_all(mpc, toy, poses, steps, arms=None):
    """Executes the decisions of some arms exactly; returns actions (steps, B, 7) and stages."""
    poses, actions, stages = np.asarray(poses, np.float32), [], []
    for _ in range(steps):
        images = np.stack([toy.image_of(p) for p in poses])
        decisions = mpc.act(images, poses, arms=arms)
        actions.append(np.stack([d.action for d in decisions]))
        stages.append([d.stage for d in decisions])
        poses = integrate(poses, actions[-1])
    return np.array(actions), np.array(stages), poses


@pytest.mark.parametrize("changes", [{}, {"num_context": 3, "replan_every": 2}])
def test_an_arm_does_among_others_what_it_does_alone(toy, changes):
    generator = np.random.default_rng(3)
    starts = toy.start[0].numpy() + 0.05 * generator.standard_normal((4, 7)).astype(np.float32)
    starts[:, 6] = 0.5
    moves = 0.15 * generator.standard_normal((4, 3, 7)).astype(np.float32)
    goals = [
        goals_at(toy, *[start + move for move in own[:number]], limits=[3, 2, None][:number])
        for start, own, number in zip(starts, moves, (3, 1, 2, 3), strict=True)
    ]
    rule = SwitchRule(tolerance=0.05, min_gain=0.02, still_m=0.01)
    together = controller(toy.mixed, cem(covariance="full"), num_arms=4, switch=rule, **changes)
    together.reset(seeds=[11, 12, 13, 14])
    together.set_goals(goals)
    actions, stages, _ = drive_all(together, toy, starts, steps=7)
    assert len({tuple(own) for own in stages.T}) > 1  # the arms are at different stages
    alone = controller(toy.mixed, cem(covariance="full"), switch=rule, **changes)
    for i in range(4):
        alone.reset(seeds=[11 + i])
        alone.set_goals([goals[i]])
        own_actions, own_stages, _ = drive_all(alone, toy, starts[i : i + 1], steps=7)
        assert np.array_equal(own_stages[:, 0], stages[:, i])
        # Not bit for bit: a matrix product on a batch rounds otherwise than on one arm.
        np.testing.assert_allclose(own_actions[:, 0], actions[:, i], atol=1e-4)


def test_all_arms_are_encoded_at_once_and_planned_for_at_once(toy):
    encoded = []

    class Counting(toy.LinearWorld):
        def encode(self, frames):
            encoded.append(tuple(frames.shape[:2]))
            return super().encode(frames)

    script = Script([move(0.05)])
    mpc = controller(Counting(toy.mixed.matrix), script, num_arms=3)
    starts = toy.start.numpy() + np.float32([[0.0], [0.1], [0.2]])
    mpc.set_goals([goals_at(toy, starts[0], starts[1]), *[goals_at(toy, p) for p in starts[1:]]])
    drive_all(mpc, toy, starts, steps=2)
    assert encoded == [(4, 1), (3, 1), (3, 1)]
    assert [len(call["goal"]) for call in script.calls] == [3, 3]
    seeds = [g.initial_seed() for g in script.calls[0]["generator"]]
    assert seeds == [0, 1, 2]


def test_one_arm_starts_again_while_the_others_go_on(toy):
    starts = toy.start.numpy() + np.float32([[0.0], [0.05], [0.1]])
    goals = [goals_at(toy, p + 0.1) for p in starts]
    mpc = controller(toy.mixed, cem(), num_arms=3, num_context=3)
    mpc.set_goals(goals)
    _, _, poses = drive_all(mpc, toy, starts, steps=3)
    mpc.reset(seeds=[77], arms=[1])
    mpc.set_goals([goals[0]], arms=[1])
    poses[1] = starts[0]
    actions, _, _ = drive_all(mpc, toy, poses, steps=4)
    alone = controller(toy.mixed, cem(), num_context=3, seed=77)
    alone.set_goals([goals[0]])
    own, _, _ = drive_all(alone, toy, starts[:1], steps=4)
    np.testing.assert_allclose(own[:, 0], actions[:, 1], atol=1e-4)
    undisturbed = controller(toy.mixed, cem(), num_arms=3, num_context=3)
    undisturbed.set_goals(goals)
    expected, _, _ = drive_all(undisturbed, toy, starts, steps=7)
    np.testing.assert_allclose(expected[3:, [0, 2]], actions[:, [0, 2]], atol=1e-4)


def test_arms_that_do_not_act_stay_as_they_are(toy):
    script = Script([move(0.05), move(0.02)])
    mpc = controller(toy.mixed, script, num_arms=3)
    mpc.set_goals([goals_at(toy, toy.start[0])] * 3)
    pose = toy.start.numpy()
    _, _, pose = drive_all(mpc, toy, pose, steps=2, arms=[2])
    drive_all(mpc, toy, np.repeat(toy.start.numpy(), 2, 0), steps=1, arms=[0, 1])
    assert [call["warm_start"] is None for call in script.calls] == [True, False, True]
    assert [len(call["goal"]) for call in script.calls] == [1, 1, 2]


@pytest.mark.usefixtures("without_shape_checks")
def test_refuses_arguments_that_do_not_fit_the_arms(toy):
    mpc = controller(toy.mixed, Script([move()]), num_arms=2)
    image, pose = toy.image_of(toy.start[0])[None], toy.start.numpy()
    goal = goals_at(toy, toy.start[0])
    with pytest.raises(ValueError, match=r"goals must be one per arm \(2\), got 1"):
        mpc.set_goals([goal])
    with pytest.raises(ValueError, match=r"arms \[1\] have a goal of no images"):
        mpc.set_goals([goal, []])
    with pytest.raises(ValueError, match="goal image is 8x8 pixels, but the goal images are 4x4"):
        mpc.set_goals([goal, [GoalImage(np.zeros((8, 8, 3), np.uint8))]])
    with pytest.raises(ValueError, match="for one arm and this controller has 2; call set_goals"):
        mpc.set_goal(image[0])
    with pytest.raises(ValueError, match=r"seeds must be one per arm \(2\), got 3"):
        mpc.reset(seeds=[1, 2, 3])
    for arms in ([2], [0, 0], []):
        with pytest.raises(ValueError, match="different indices from 0 to 1"):
            mpc.reset(arms=arms)
    mpc.set_goals([goal, goal])
    with pytest.raises(ValueError, match=r"images must be one per arm \(2\), got 1"):
        mpc.act(image, pose)
    with pytest.raises(ValueError, match="num_arms must be at least 1, got 0"):
        controller(toy.mixed, Script(), num_arms=0)
    with pytest.raises(ValueError, match="gripper_snap must be at least 0, got -1"):
        controller(toy.mixed, Script(), gripper_snap=-1.0)


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
        act(mpc, toy, toy.start[0])
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
        decision = act(mpc, toy, toy.start[0])
        assert script.calls[0]["deadline_ms"] == (expected and pytest.approx(expected))
        assert decision.encode_ms == pytest.approx(60) and decision.plan_ms == 0


# --- Errors -------------------------------------------------------------------------------------


def test_refuses_a_proprio_that_is_not_finite_and_is_then_as_before(toy):
    script = Script([move(0.05)])
    mpc = controller(toy.mixed, script, num_context=2)
    mpc.set_goal(toy.image_of(toy.start[0]))
    broken = toy.start[0].numpy().copy()
    broken[3] = np.nan
    with pytest.raises(
        ValueError, match=r"observation proprio contains NaN at \[0, 3\]; the planner"
    ):
        mpc.act(toy.image_of(toy.start[0])[None], broken[None])
    act(mpc, toy, toy.start[0])
    assert script.calls[0]["observation"].proprio.shape[1] == 1


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    "image, error, message",
    [
        (np.zeros((4, 4, 3), np.float32), TypeError, "images must be uint8 RGB.*got float32"),
        (np.zeros((3, 4, 4), np.uint8), ValueError, r"\(B, height, width, 3\), got \(1, 3, 4, 4\)"),
        (
            np.zeros((8, 8, 3), np.uint8),
            ValueError,
            "images is 8x8 pixels, but the goal images are 4x4",
        ),
    ],
)
def test_refuses_an_image_that_is_not_what_the_goal_was(toy, image, error, message):
    mpc = controller(toy.mixed, Script([move()]))
    mpc.set_goal(toy.image_of(toy.start[0]))
    with pytest.raises(error, match=message):
        mpc.act(image[None], toy.start.numpy())


def test_refuses_a_proprio_of_another_size_and_acting_without_a_goal(toy):
    mpc = controller(toy.mixed, Script([move()]))
    with pytest.raises(ValueError, match=r"arms \[0\] have no goal; call set_goals"):
        act(mpc, toy, toy.start[0])
    mpc.set_goal(toy.image_of(toy.start[0]))
    with pytest.raises(ValueError, match=r"proprio must have shape \(1, 7\), got \(1, 6\)"):
        mpc.act(toy.image_of(toy.start[0])[None], np.zeros((1, 6), np.float32))


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


# --- The surprise gate --------------------------------------------------------------------------


def surprise_gate(world, score):
    return SurpriseGate(
        world,
        score,
        calm_below=0.001,
        slow_above=0.01,
        hold_above=0.15,
        replan_after=2,
        hold_after=3,
        calm_steps=2,
    )


def prediction_error(before, predicted, after):
    return (predicted - after).abs().mean(dim=(1, 2))


def test_a_gate_that_sees_nothing_odd_changes_nothing(toy):
    start = toy.start[0].numpy()
    goal = toy.image_of(integrate(start, np.float32(move(x=0.2, y=-0.2))))
    courses = []
    for gate in (None, surprise_gate(toy.mixed, prediction_error)):
        mpc = controller(toy.mixed, cem(), gate=gate)
        mpc.set_goal(goal)
        courses.append(drive(mpc, toy, start, steps=4)[1])
    np.testing.assert_array_equal(*courses)


def test_the_gate_slows_replans_and_holds_and_lets_go(toy):
    scores = iter([0.0, 0.05, 0.05, 0.05, 0.0, 0.0, 0.0])
    planner = Script([move(x=0.3, grip=0.3)])
    gate = surprise_gate(toy.mixed, lambda *latents: torch.tensor([next(scores)]))
    mpc = controller(toy.mixed, planner, plan_bounds=FAR, gate=gate, replan_every=100)
    start = toy.start[0].numpy()
    mpc.set_goal(toy.image_of(start))
    decisions, _ = drive(mpc, toy, start, steps=8)
    verdicts = [decision.gate.verdict for decision in decisions]
    assert verdicts == ["ok", "ok", "slow", "replan", "hold", "hold", "replan", "ok"]
    moved = [float(decision.action[0]) for decision in decisions]
    full, half = 0.075, 0.0375
    np.testing.assert_allclose(moved[:7], [full, full, half, half, 0, 0, half], atol=1e-6)
    # Both replans start from scratch; nothing else plans again, the hold keeps what was left.
    assert [call["warm_start"] for call in planner.calls] == [None, None, None]
    assert [decision.replanned for decision in decisions] == [
        True, False, False, True, False, False, True, False,
    ]  # fmt: skip
    assert decisions[3].action[6] == pytest.approx(0.3)  # the gripper is not halved


def test_the_gate_is_asked_about_the_measured_step_of_each_arm(toy):
    asked = []

    class Asking:  # with a world of its own: the planner's latents are others
        def see(self, frames):
            return toy.separable.encode(frames)[:, 0]

        def judge(self, states, **step):
            asked.append(step)
            return tuple(states)

    start = toy.start[0].numpy()
    mpc = controller(toy.mixed, Script([move(x=0.05)]), num_arms=2, gate=Asking())
    images = np.stack([toy.image_of(start)] * 2)
    mpc.set_goals([[GoalImage(images[0])], [GoalImage(images[1])]])
    mpc.act(images, np.stack([start, start]))
    assert not asked  # nothing has moved yet
    ends = [integrate(start, np.float32(move(x=0.01))), integrate(start, np.float32(move(y=0.02)))]
    mpc.act(np.stack([toy.image_of(end) for end in ends]), np.stack(ends))
    [step] = asked
    np.testing.assert_allclose(step["action"], [move(x=0.01), move(y=0.02)], atol=1e-6)
    torch.testing.assert_close(step["before"], toy.separable.latents_of(step["proprio"]))
    seen = toy.separable.latents_of(torch.tensor(np.stack(ends)))
    torch.testing.assert_close(step["after"], seen)


def test_the_gate_judges_the_step_after_a_new_subgoal_too(toy):
    judged = []

    class Asking:
        def see(self, frames):
            return toy.mixed.encode(frames)[:, 0]

        def judge(self, states, **step):
            judged.append(len(states))
            return tuple(states)

    start = toy.start[0].numpy()
    image = toy.image_of(start)
    mpc = controller(toy.mixed, Script([move(x=0.05)]), gate=Asking())
    mpc.set_goals(
        [[GoalImage(image, max_steps=1), GoalImage(image, max_steps=1), GoalImage(image)]]
    )
    stages = [mpc.act(image[None], start[None])[0].stage for _ in range(4)]
    assert stages == [0, 1, 2, 2]
    assert judged == [1, 1, 1]


# --- Actions under way, and decisions made again -------------------------------------------------


def test_a_plan_begins_where_the_committed_actions_lead(toy):
    """What is imagined is what the camera would show there, and no step of the plan repeats it."""
    start = toy.start[0].numpy()
    under_way = np.stack([move(x=0.05), move(x=0.02, y=-0.03)])
    there = start
    for action in under_way:
        there = integrate(there, np.float32(action))
    goal = integrate(there, np.float32(move(x=-0.04, y=0.06)))
    planner = Script([move()])
    mpc = controller(toy.mixed, planner)
    mpc.set_goal(toy.image_of(goal))
    mpc.act(toy.image_of(start)[None], start[None], committed=[under_way])
    (call,) = planner.calls
    observation = call["observation"]
    torch.testing.assert_close(observation.proprio[0, -1], torch.from_numpy(there))
    expected = toy.mixed.latents_of(torch.from_numpy(there))[None, None]
    torch.testing.assert_close(observation.latents, expected)
    assert observation.past_actions.shape == (1, 0, 7)
    found = controller(toy.separable, cem())
    found.set_goal(toy.image_of(goal))
    (decision,) = found.act(toy.image_of(start)[None], start[None], committed=[under_way])
    assert np.allclose(decision.action[:2], [-0.04, 0.06], atol=0.01)
    assert decision.energy_now > 2 * decision.predicted_energy  # of the picture as it is


def test_arms_have_actions_of_their_own_under_way(toy):
    starts = np.repeat(toy.start.numpy(), 3, axis=0)
    committed = [np.zeros((0, 7)), np.array([move(x=0.05)]), np.array([move(y=0.05)])]
    planner = Script([move()])
    mpc = controller(toy.mixed, planner, num_arms=3)
    images = np.stack([toy.image_of(start) for start in starts])
    mpc.set_goals([[GoalImage(image)] for image in images])
    mpc.act(images, starts, committed=committed)
    assert [len(call["goal"]) for call in planner.calls] == [1, 2]  # none, and one each
    moved = planner.calls[1]["observation"].proprio[:, -1, :2].numpy() - starts[0, :2]
    assert np.allclose(moved, [[0.05, 0], [0, 0.05]], atol=1e-6)


@pytest.mark.parametrize("bad", [np.zeros((2, 6)), np.full((1, 7), np.nan)])
def test_committed_actions_that_make_no_sense_are_refused(toy, bad, without_shape_checks):
    mpc = controller(toy.mixed, Script([move()]))
    image = toy.image_of(toy.start[0])
    mpc.set_goal(image)
    with pytest.raises(ValueError, match="committed"):
        mpc.act(image[None], toy.start.numpy(), committed=[bad])
    with pytest.raises(ValueError, match=r"committed must be one per arm \(1\), got 2"):
        mpc.act(image[None], toy.start.numpy(), committed=[np.zeros((0, 7))] * 2)


@pytest.mark.parametrize("num_context, horizon", [(1, 1), (2, 2)])
def test_any_decision_can_be_made_again_to_the_last_bit(toy, num_context, horizon):
    start = toy.start[0].numpy()
    goal = integrate(start, np.float32([0.2, -0.1, 0.1, 0.0, 0.0, 0.1, 0.2]))
    settings = {"num_context": num_context, "plan_bounds": FAR}
    mpc = controller(toy.mixed, cem(horizon=horizon, num_iterations=3), **settings)
    mpc.set_goal(toy.image_of(goal))
    pose, seen, decisions = start, [], []
    for step in range(5):
        committed = np.array([move(x=0.01)] * (step % 2)).reshape(-1, 7)
        (decision,) = mpc.act(toy.image_of(pose)[None], pose[None], committed=[committed])
        seen.append((pose, committed))
        decisions.append(decision)
        pose = integrate(pose, decision.action)
    other = controller(toy.mixed, cem(horizon=horizon, num_iterations=3), seed=99, **settings)
    other.set_goal(toy.image_of(goal))
    for step in (3, 0, 4):  # in any order
        poses = np.stack([p for p, _ in seen[max(0, step - num_context + 1) : step + 1]])
        images = np.stack([toy.image_of(p) for p in poses])
        observation, there = other.problem(images, poses, committed=seen[step][1])
        begun = decisions[step].start
        warm = begun.warm_start
        assert (warm is None) == (step == 0)
        generator = torch.Generator()
        generator.set_state(torch.from_numpy(begun.generator_state.copy()))
        again = other.planner.plan(
            toy.mixed,
            observation,
            there,
            bounds=other.plan_bounds,
            warm_start=None if warm is None else torch.from_numpy(warm)[None],
            generator=[generator],
        )
        assert torch.equal(again.actions, decisions[step].plan.actions)


def test_the_problem_is_that_of_one_arm_with_a_goal(toy):
    image, pose = toy.image_of(toy.start[0])[None], toy.start.numpy()
    with pytest.raises(ValueError, match="one arm with a goal"):
        controller(toy.mixed, Script([move()])).problem(image, pose)
    with pytest.raises(ValueError, match="one arm with a goal"):
        controller(toy.mixed, Script([move()]), num_arms=2).problem(image, pose)
