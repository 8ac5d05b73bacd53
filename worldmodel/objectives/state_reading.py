"""State reading: the end-effector's state at a frame, read from its latents by a small head.

The head is thrown away. Recordings hold the states anyway, and an encoder that must tell them sees
hand and gripper, which masked prediction alone has little reason to.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from worldmodel.encoder import VideoEncoder
from worldmodel.jepa import encode_frames
from worldmodel.losses import state_loss
from worldmodel.objectives.interface import Batch, Loss, Needs, Objective
from worldmodel.state_head import StateHead


class StateReading(Objective):
    """Reads position, rotation and gripper from single frames, see `worldmodel.losses.state_loss`.

    Args:
        encoder: The encoder that is trained.
        grid_size: Tokens of a frame along rows and columns.
        merge: Side of the square of tokens joined into one before the head, as in planning.
    """

    remedy = "raise state_weight: pictures that look alike cannot tell where the hand is"

    def __init__(self, *, encoder: VideoEncoder, grid_size: Sequence[int], merge: int):
        super().__init__()
        rows, columns = grid_size
        if rows % merge or columns % merge:
            raise ValueError(f"{rows} x {columns} tokens cannot be joined in squares of {merge}")
        self.merge = merge
        self.needs = Needs(frames=1)
        self.head = StateHead(
            latent_dim=encoder.embed_dim * merge**2,
            num_tokens=(rows // merge) * (columns // merge),
        )

    def set_scales(self, proprio: Sequence[Float[Tensor, "_ 7"]]) -> None:
        """Sets mean and scale of the states that are read."""
        self.head.set_scales(torch.cat(list(proprio)))

    def losses(self, encoder: VideoEncoder, batch: Batch) -> Iterator[Loss]:
        """Yields the loss of reading the states."""
        latents = encode_frames(encoder, batch.frames[:, 0], self.merge)
        read = state_loss(self.head, latents, batch.proprio[:, 0])
        parts = {"position": read.position, "rotation": read.rotation, "gripper": read.gripper}
        yield Loss(total=read.total, parts=parts)
