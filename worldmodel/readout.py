"""Reads some numbers from the latents of one frame."""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn


class Readout(nn.Module):
    """A small network from the tokens of a frame to numbers.

    Every token passes one narrow projection, so the tokens keep their places.

    Args:
        size: How many numbers are read.
        latent_dim: Size D of a latent token.
        num_tokens: Tokens N of a frame.
        token_dim: Size a token is projected to.
        hidden_dim: Width of the hidden layers.
        num_hidden: Number of hidden layers.
    """

    def __init__(
        self,
        size: int,
        *,
        latent_dim: int,
        num_tokens: int,
        token_dim: int = 64,
        hidden_dim: int = 512,
        num_hidden: int = 2,
    ):
        super().__init__()
        if num_hidden < 1:
            raise ValueError(f"num_hidden must be 1 or more, got {num_hidden}")
        self.latent_dim = latent_dim
        self.num_tokens = num_tokens
        self.token_dim = token_dim
        self.hidden_dim = hidden_dim
        self.num_hidden = num_hidden
        self.token_proj = nn.Linear(latent_dim, token_dim)
        sizes = [num_tokens * token_dim, *[hidden_dim] * num_hidden]
        layers: list[nn.Module] = []
        for size_in, size_out in pairwise(sizes):
            layers += [nn.Linear(size_in, size_out), nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden_dim, size))

    def normalised(self, latents: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch size"]:
        """Returns the numbers as the network gives them, float32: each in units of its own spread.

        Raises:
            ValueError: The latents have another shape than the model takes.
        """
        if latents.ndim != 3 or latents.shape[1:] != (self.num_tokens, self.latent_dim):
            raise ValueError(
                f"latents must have shape (batch, {self.num_tokens}, {self.latent_dim}), "
                f"got {tuple(latents.shape)}"
            )
        return self.mlp(self.token_proj(latents).flatten(1)).float()
