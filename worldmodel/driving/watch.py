"""The surprise gate of an arm that is driven.

A gate knows what one step of its model may change, and plans are made at no fixed rate. So with
every plan it is shown two pictures that lie one step apart: the plan's own, and one before it.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from worldmodel.planners.gate import Gate, GateState
from worldmodel.pose import action_between


class Watch:
    """What a gate makes of one drive.

    Args:
        gate: Judges.

    Attributes:
        state: With the last step that was judged.
        judged: Steps judged.
        unjudged: Plans without a picture one step before theirs.
    """

    def __init__(self, gate: Gate):
        self._gate = gate
        self.begin()

    def begin(self) -> None:
        """Begins a drive, as if there had been none before."""
        self.state, self.judged, self.unjudged = GateState(), 0, 0

    def pass_over(self) -> GateState:
        """Returns the verdict so far, for a plan of which nothing can be judged."""
        self.unjudged += 1
        return self.state

    @torch.inference_mode()
    def look(
        self,
        frames: Sequence[UInt8[Tensor, "1 1 *views height width 3"]],
        proprio: Sequence[Float[Tensor, "1 7"]],
    ) -> GateState:
        """Returns the verdict on a step.

        Args:
            frames: What was seen before and after it, as the model is shown it.
            proprio: Where the arm was, float32, as the model knows it.
        """
        before, after = (self._gate.see(frame) for frame in frames)
        (self.state,) = self._gate.judge(
            [self.state],
            before=before,
            proprio=proprio[0],
            action=action_between(*proprio),
            after=after,
        )
        self.judged += 1
        return self.state
