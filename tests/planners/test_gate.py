import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worldmodel.planners.gate import SEVERITY, GateState, SurpriseGate


def distance(before, predicted, after):
    return (after - predicted).abs().mean(dim=(1, 2))


class Unasked:
    """A world for what needs none."""

    def encode(self, frames): ...
    def predict(self, latents, proprio, actions): ...
    def rollout(self, latents, proprio, actions): ...


def make_gate(world=None, **changes) -> SurpriseGate:
    settings = {"slow_above": 1.0, "hold_above": 2.0, "calm_below": 0.5} | changes
    return SurpriseGate(world or Unasked(), distance, **settings)


def verdicts(scores, **changes) -> list[str]:
    gate, state, found = make_gate(**changes), GateState(), []
    for score in scores:
        state = gate.advance(state, score)
        found.append(state.verdict)
    return found


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.1, 0.9, 0.9], "ok ok ok"),
        ([1.5, 0.1, 0.1, 0.1], "slow slow slow ok"),
        ([1.5, 0.1, 0.9, 0.1, 0.1, 0.1], "slow slow slow slow slow ok"),  # 0.9 is not calm
        ([1.5, 1.5, 1.5, 1.5], "slow replan replan hold"),
        ([1.5, 0.9, 1.5], "slow slow replan"),  # not calm in between: repeated
        ([1.5, 0.1, 1.5], "slow slow slow"),  # calm in between: two single surprises
        ([9.0, 0.1, 0.1, 0.1, 0.1], "hold hold hold replan ok"),
        ([9.0, 0.1, 0.9, 0.1, 0.1, 0.1], "hold hold hold hold hold replan"),
        ([2.0, 1.0, 0.5], "slow slow slow"),  # thresholds themselves are not above
    ],
)
def test_what_a_row_of_scores_leads_to(scores, expected):
    assert " ".join(verdicts(scores)) == expected


SCORES = st.lists(st.sampled_from([0.1, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0]), max_size=30)
COUNTS = st.tuples(st.integers(1, 3), st.integers(0, 3), st.integers(1, 4))


@given(st.lists(st.tuples(st.floats(0, 4), st.floats(0, 4)), max_size=30), COUNTS)
def test_higher_scores_never_give_a_milder_verdict(pairs, counts):
    replan, more, calm = counts
    settings = {"replan_after": replan, "hold_after": replan + more, "calm_steps": calm}
    low = verdicts([min(pair) for pair in pairs], **settings)
    high = verdicts([max(pair) for pair in pairs], **settings)
    for mild, severe in zip(low, high, strict=True):
        assert SEVERITY.index(mild) <= SEVERITY.index(severe)


@given(SCORES, st.integers(1, 4))
def test_a_hold_ends_only_after_calm_steps_in_a_row_and_with_a_new_plan(scores, calm_steps):
    found = verdicts(scores, calm_steps=calm_steps)
    for t in range(1, len(found)):
        if found[t - 1] == "hold" and found[t] != "hold":
            assert found[t] == "replan"
            assert all(score <= 0.5 for score in scores[t + 1 - calm_steps : t + 1])


@given(SCORES)
def test_what_was_long_ago_is_forgotten(scores):
    assert verdicts([*scores, 0.1, 0.1, 0.1, 0.1])[-1] == "ok"


def test_arms_are_judged_by_their_own_prediction_errors(toy):
    gate, world = make_gate(toy.mixed), toy.mixed
    start = toy.start.expand(3, 7)
    action = torch.tensor([[0.05, 0, 0, 0, 0, 0, 0], [0.0] * 7, [0.0, 0.05, 0, 0, 0, 0, 0]])
    before = world.latents_of(start)
    after = world.predict(before, start, action)  # every arm moves as it should
    after[1] += torch.tensor(1.5)  # but what arm 1 sees has changed by itself
    after[2] += torch.tensor(9.0)
    step = {"before": before, "proprio": start, "action": action, "after": after}
    states = gate.judge((GateState(),) * 3, **step)
    assert [state.verdict for state in states] == ["ok", "slow", "hold"]
    assert [state.scale for state in states] == [1.0, 0.5, 0.0]
    assert [state.score for state in states] == pytest.approx([0.0, 1.5, 9.0], abs=1e-5)
    states = gate.judge(states, **step)
    assert [state.verdict for state in states] == ["ok", "replan", "hold"]


def test_what_cannot_be_judged_is_refused(toy):
    gate, world = make_gate(toy.mixed), toy.mixed
    before = world.latents_of(toy.start)
    step = {"proprio": toy.start, "action": torch.zeros(1, 7), "before": before}
    with pytest.raises(ValueError, match="are its latents finite"):
        gate.judge([GateState()], **step, after=before * float("nan"))
    with pytest.raises(ValueError, match="2 states but latents of 1 arms"):
        gate.judge([GateState()] * 2, **step, after=before)


def test_a_gate_judges_in_single_precision_whatever_the_planner_does(toy):
    """It was calibrated so; half precision alone would look like small errors everywhere."""
    frames = torch.from_numpy(toy.image_of(toy.start[0].numpy()))[None, None]
    dtypes = []

    class Watching(Unasked):
        def encode(self, frames):
            dtypes.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
            return toy.mixed.encode(frames)

        def predict(self, latents, proprio, actions):
            dtypes.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
            return toy.mixed.predict(latents, proprio, actions)

    gate = make_gate(Watching())
    with torch.autocast("cpu", torch.bfloat16):
        seen = gate.see(frames)
        step = {"before": seen, "proprio": toy.start[:1], "action": torch.zeros(1, 7)}
        gate.judge([GateState()], **step, after=seen)
    assert dtypes == [torch.float32] * 2
    torch.testing.assert_close(seen, toy.mixed.encode(frames)[:, 0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"calm_below": 1.5}, "calm_below <= slow_above <= hold_above"),
        ({"hold_above": float("nan")}, "calm_below <= slow_above <= hold_above"),
        ({"hold_above": float("inf")}, "calm_below <= slow_above <= hold_above"),
        ({"replan_after": 0}, "replan_after"),
        ({"hold_after": 1}, "hold_after"),
        ({"calm_steps": 0}, "calm_steps"),
        ({"slow_scale": 0.0}, "slow_scale"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_gate(**changes)
