import numpy as np
import pytest

from worldmodel.planners import GoalImage, SwitchRule
from worldmodel.planners.subgoals import check_image

RULE = SwitchRule(tolerance=0.1, min_gain=0.05, still_m=0.01, still_rad=0.1, still_gripper=0.25)


def plan(*, x=0.0, yaw=0.0, grip=0.0):
    return np.array([[x, 0, 0, 0, 0, yaw, grip]])


def reason(rule, *, gain=0.8, actions):
    return rule.on_planning(gain=gain, actions=actions)


@pytest.mark.parametrize(
    "energy, steps, max_steps, expected",
    [
        (0.1, 1, None, "energy"),
        (0.11, 1, None, None),
        (0.11, 100, None, None),
        (0.11, 3, 4, None),
        (0.11, 4, 4, "limit"),
        (0.05, 4, 4, "energy"),  # it arrived in its last step
    ],
)
def test_seeing_ends_a_stage_by_its_energy_or_its_limit(energy, steps, max_steps, expected):
    assert RULE.on_seeing(energy=energy, steps=steps, max_steps=max_steps) == expected


def test_a_rule_without_settings_knows_limits_only():
    rule = SwitchRule()
    assert rule.on_seeing(energy=0.0, steps=1, max_steps=2) is None
    assert rule.on_seeing(energy=9.0, steps=2, max_steps=2) == "limit"
    assert reason(rule, gain=-1.0, actions=plan()) is None


@pytest.mark.parametrize(
    "gain, expected", [(0.06, None), (0.05, "gain"), (0.0, "gain"), (-0.7, "gain")]
)
def test_a_plan_that_gains_little_or_looks_worse_than_staying_is_at_the_minimum(gain, expected):
    assert reason(SwitchRule(min_gain=0.05), gain=gain, actions=plan(x=0.3)) == expected


@pytest.mark.parametrize(
    "actions, expected",
    [
        (plan(x=0.009, yaw=0.09), "still"),
        (plan(x=-0.011), None),
        (plan(yaw=0.11), None),
        (np.concatenate([plan(x=0.008), plan(x=-0.008)]), None),  # to and fro is not still
    ],
)
def test_a_plan_that_hardly_moves_is_still(actions, expected):
    assert reason(SwitchRule(still_m=0.01), actions=actions) == expected


@pytest.mark.parametrize("grip, waits", [(0.26, True), (-0.3, True), (0.2, False)])
def test_a_wish_to_move_the_gripper_is_neither_still_nor_without_gain(grip, waits):
    for rule, why in ((SwitchRule(still_m=0.01), "still"), (SwitchRule(min_gain=0.0), "gain")):
        assert reason(rule, gain=0.0, actions=plan(grip=grip)) == (None if waits else why)


def test_a_threshold_below_zero_is_refused_and_so_is_a_gain_of_everything():
    with pytest.raises(ValueError, match="still_m of the switch rule must be at least 0, got -1"):
        SwitchRule(still_m=-1.0)
    with pytest.raises(ValueError, match="tolerance of the switch rule.*got nan"):
        SwitchRule(tolerance=float("nan"))
    with pytest.raises(ValueError, match="min_gain of the switch rule must be below 1, got 1"):
        SwitchRule(min_gain=1.0)
    assert SwitchRule(min_gain=-0.1).min_gain == -0.1


@pytest.mark.usefixtures("without_shape_checks")
def test_a_goal_image_is_uint8_rgb_and_its_limit_at_least_one_step():
    image = np.zeros((4, 4, 3), np.uint8)
    assert GoalImage(image).max_steps is None
    with pytest.raises(ValueError, match="max_steps of a goal image must be at least 1, got 0"):
        GoalImage(image, 0)
    with pytest.raises(TypeError, match="goal image must be uint8 RGB.*got float32"):
        GoalImage(image.astype(np.float32))
    with pytest.raises(ValueError, match=r"must have shape \(height, width, 3\), got \(4, 3\)"):
        GoalImage(image[0])
    with pytest.raises(ValueError, match="goal image is 4x4 pixels, but the goal images are 8x8"):
        check_image("goal image", image, size=(8, 8))
