"""The surprise gate of an arm that is driven: judges from one plan's picture to the next.

A gate knows what one step of its model may change. Plans are made as fast as the machine can, so
their pictures lie now nearer together and now farther apart; those that are about one model step
apart are judged, and of the others nothing is said.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from worldmodel.planners.gate import Gate, GateState
from worldmodel.pose import action_between

TOLERANCE = 0.3  # of a model step, by which two pictures that are judged may miss it


@dataclass(frozen=True, eq=False)
class _Seen:
    latents: Tensor  # (1, ...)
    proprio: Tensor  # (1, 7)
    at: float


class Watch:
    """What a gate makes of one drive.

    Args:
        gate: Judges.
        step_s: Of the gate's model.

    Attributes:
        state: After the last picture that was judged.
        judged: Pictures judged.
        unjudged: Pictures that came too late after the one before to be judged.
    """

    def __init__(self, gate: Gate, *, step_s: float):
        self._gate, self._step_s = gate, step_s
        self.begin()

    def begin(self) -> None:
        """Begins a drive, as if there had been none before."""
        self.state, self.judged, self.unjudged = GateState(), 0, 0
        self._last: _Seen | None = None

    @torch.inference_mode()
    def look(
        self,
        frames: UInt8[Tensor, "1 1 *views height width 3"],
        proprio: Float[Tensor, "1 7"],
        *,
        at: float,
    ) -> GateState:
        """Returns the verdict with the picture of a plan seen; pictures come in their order.

        Args:
            frames: What the model is shown.
            proprio: Where the arm was when they were taken, float32, as the model knows it.
            at: When they were taken [s].
        """
        since = None if self._last is None else (at - self._last.at) / self._step_s
        if since is not None and since < 1 - TOLERANCE:
            return self.state  # the next picture is nearer to one step
        now = _Seen(self._gate.see(frames), proprio, at)
        if self._last is not None and since is not None:
            if since <= 1 + TOLERANCE:
                (self.state,) = self._gate.judge(
                    [self.state],
                    before=self._last.latents,
                    proprio=self._last.proprio,
                    action=action_between(self._last.proprio, proprio),
                    after=now.latents,
                )
                self.judged += 1
            else:
                self.unjudged += 1
        self._last = now
        return self.state
