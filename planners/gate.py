"""Slow down, plan anew or stand still when the world does not do what the model predicted.

After every control step the model's prediction of what the camera would show is compared with what
it shows. One surprising step slows the arm; the next ones drop the plan that was made for another
world; many, or a single enormous one, hold the arm until the scene has been calm for a while.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from worldmodel.planners.checks import require_count
from worldmodel.planners.interfaces import WorldModel

Verdict = Literal["ok", "slow", "replan", "hold"]
SEVERITY: tuple[Verdict, ...] = ("ok", "slow", "replan", "hold")

Score = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``score(before, predicted, after) -> (B,)`` of latents (B, N, D); higher is more surprising."""


@dataclass(frozen=True)
class GateState:
    """What a gate makes of the past of one arm; the default is the start of an episode.

    Attributes:
        verdict: "ok": go on; "slow": go on with a scaled action; "replan": the same, and plan from
            scratch without a warm start; "hold": do not move.
        scale: Factor for the next action: 1, the gate's `slow_scale`, or 0.
        score: Surprise of the last step; NaN before there was one.
        surprised: Surprising steps since the last calm one.
        calm: Calm steps in a row.
    """

    verdict: Verdict = "ok"
    scale: float = 1.0
    score: float = math.nan
    surprised: int = 0
    calm: int = 0


@runtime_checkable
class Gate(Protocol):
    """What a controller asks once per control step, when it has seen what its action did."""

    def see(
        self, frames: UInt8[Tensor, "batch 1 *views height width 3"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Returns what the gate needs of the frames, for `judge`; RGB, one time step."""
        ...

    def judge(
        self,
        states: Sequence[GateState],
        *,
        before: Float[Tensor, "batch tokens dim"],
        proprio: Float[Tensor, "batch 7"],
        action: Float[Tensor, "batch 7"],
        after: Float[Tensor, "batch tokens dim"],
    ) -> tuple[GateState, ...]:
        """Returns each arm's state after one more step; changes nothing.

        Args:
            states: Of each arm, as this method returned them one step ago.
            before: What `see` made of the frames before the step.
            proprio: Arm state measured with them.
            action: Change of proprio over the step, as measured.
            after: What `see` makes of the frames now.
        """
        ...


class SurpriseGate:
    """Turns surprise into a verdict, with hysteresis. It remembers nothing: the states do.

    A score above `slow_above` is surprising, one up to `calm_below` is calm, one in between changes
    no count but breaks a row of calm steps. Higher scores never give a milder verdict.

    It has a world model of its own, which may be the one that plans or one that sees what planning
    does not need. It runs in single precision, whatever the planner does: so it was calibrated.

    A camera that froze cannot be told from a scene at rest while the arm holds: the gate then lets
    go after `calm_steps`, and holds again when the arm has moved.
    """

    def __init__(
        self,
        world: WorldModel,
        score: Score,
        *,
        slow_above: float,
        hold_above: float,
        calm_below: float,
        replan_after: int = 2,
        hold_after: int = 4,
        calm_steps: int = 3,
        slow_scale: float = 0.5,
    ) -> None:
        """Builds a gate.

        Args:
            world: Predicts what should have been seen.
            score: Surprise of one step, such as `SurpriseCalibration.step_surprise`.
            slow_above: Score from which a step is surprising, such as the 99 % quantile of clean
                steps.
            hold_above: Score from which a single step stops the arm, such as the 99.9 % quantile.
            calm_below: Score up to which a step is calm, such as the 90 % quantile.
            replan_after: Surprising steps that drop the plan.
            hold_after: Surprising steps that stop the arm.
            calm_steps: Calm steps in a row after which the arm goes on as if nothing had been.
            slow_scale: Factor for actions while slow, above 0 and up to 1.

        Raises:
            ValueError: Thresholds or counts are out of order or not finite.
        """
        if not -math.inf < calm_below <= slow_above <= hold_above < math.inf:
            raise ValueError(
                "expected finite calm_below <= slow_above <= hold_above, got "
                f"{calm_below}, {slow_above} and {hold_above}"
            )
        require_count("replan_after", replan_after, low=1)
        require_count("hold_after", hold_after, low=replan_after)
        require_count("calm_steps", calm_steps, low=1)
        if not 0 < slow_scale <= 1:
            raise ValueError(f"slow_scale must be above 0 and up to 1, got {slow_scale}")
        self.world = world
        self.score = score
        self.slow_above, self.hold_above, self.calm_below = slow_above, hold_above, calm_below
        self.replan_after, self.hold_after = replan_after, hold_after
        self.calm_steps, self.slow_scale = calm_steps, slow_scale

    @torch.inference_mode()
    def see(
        self, frames: UInt8[Tensor, "batch 1 *views height width 3"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Returns the latents of the frames, see `Gate.see`."""
        with torch.autocast(frames.device.type, enabled=False):
            return self.world.encode(frames)[:, 0]

    @torch.inference_mode()
    def judge(
        self,
        states: Sequence[GateState],
        *,
        before: Float[Tensor, "batch tokens dim"],
        proprio: Float[Tensor, "batch 7"],
        action: Float[Tensor, "batch 7"],
        after: Float[Tensor, "batch tokens dim"],
    ) -> tuple[GateState, ...]:
        """Returns each arm's state after one more step, see `Gate.judge`.

        Raises:
            ValueError: A score is not finite, or there is not one state per arm.
        """
        if len(states) != len(before):
            raise ValueError(f"there are {len(states)} states but latents of {len(before)} arms")
        with torch.autocast(before.device.type, enabled=False):
            predicted = self.world.predict(before[:, None], proprio[:, None], action[:, None])[:, 0]
            scores = self.score(before, predicted, after).tolist()
        return tuple(map(self.advance, states, scores))

    def advance(self, state: GateState, score: float) -> GateState:
        """Returns what the gate makes of one more score of an arm.

        Raises:
            ValueError: The score is not finite.
        """
        if not math.isfinite(score):
            raise ValueError(f"the surprise of a step is {score}; are its latents finite?")
        surprising, is_calm = score > self.slow_above, score <= self.calm_below
        surprised = 0 if is_calm else state.surprised + surprising
        calm = state.calm + 1 if is_calm else 0
        holding = state.verdict == "hold"
        verdict: Verdict
        if score > self.hold_above or surprised >= self.hold_after:
            verdict = "hold"
        elif holding and calm < self.calm_steps:
            verdict = "hold"
        elif holding or (surprising and surprised >= self.replan_after):
            verdict = "replan"
        elif calm >= self.calm_steps or (state.verdict == "ok" and not surprising):
            verdict = "ok"
        else:
            verdict = "slow"
        scales = {"ok": 1.0, "slow": self.slow_scale, "replan": self.slow_scale, "hold": 0.0}
        return GateState(verdict, scales[verdict], score, surprised, calm)
