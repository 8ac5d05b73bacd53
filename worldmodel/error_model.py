"""How wrong will this prediction be? Learned from clean recordings, for each patch of the picture.

What a model predicts badly when nothing is wrong is easily foreseen: the moving gripper, what it
uncovers, the far end of a fast move. A network reads the frame before and the predicted change, and
says which error to expect where, and how surely. It never sees the frame that is judged, so nothing
that this frame shows can excuse it.

Source of the idea: Nix and Weigend 1994, "Estimating the mean and variance of the target
probability distribution"; Kendall and Gal 2017, arXiv 1703.04977 (aleatoric uncertainty).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

FLOOR = 0.01  # of a latent's standard deviation; what is smaller is as good as nothing
PROJECTED = 64  # numbers that what a patch shows is projected to
HIDDEN, LAYERS = 64, 2
LOG_WIDTH = (-4.0, 3.0)  # how sure, and how unsure, the network may be
UPDATES, BATCH, CHECK_EVERY = 1500, 64, 100
PEAK_RATE, WEIGHT_DECAY = 2e-3, 0.05
HELD_OUT = 0.1  # share of the clean steps, the last ones, that say which update was the best


class ErrorModel(nn.Module):
    """Takes each patch's log error to be normally distributed, and says with what middle and width.

    Args:
        channels: Numbers D that a patch's latent has.
        side: Patches S along each side of the picture.
    """

    projection: Tensor

    def __init__(self, *, channels: int, side: int) -> None:
        super().__init__()
        self.channels, self.side = channels, side
        projected = min(PROJECTED, channels)
        directions = torch.linalg.qr(torch.randn(channels, projected)).Q
        self.register_buffer("projection", directions.T.contiguous())
        self.read = nn.Conv2d(2 * projected + 2, HIDDEN, 1)
        self.place = nn.Parameter(torch.zeros(HIDDEN, side, side))
        self.layers = nn.ModuleList(nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1) for _ in range(LAYERS))
        self.say = nn.Conv2d(HIDDEN, 2, 1)
        self.usual = nn.Parameter(torch.zeros(2, side, side))

    def features(
        self,
        before: Float[Tensor, "steps channels side side"],
        predicted: Float[Tensor, "steps channels side side"],
    ) -> Float[Tensor, "steps features side side"]:
        """Returns what `forward` reads, in float16: small enough to keep of every clean step."""
        ahead = predicted - before
        change = ahead.abs().mean(dim=1, keepdim=True)
        seen, moved = (
            torch.einsum("pc,tcyx->tpyx", self.projection, latents) for latents in (before, ahead)
        )
        return torch.cat((seen, moved, change, (change + FLOOR).log()), dim=1).half()

    def forward(
        self, features: Float[Tensor, "steps features side side"]
    ) -> tuple[Float[Tensor, "steps side side"], Float[Tensor, "steps side side"]]:
        """Returns middle and width of the logarithm of each patch's error."""
        hidden = F.gelu(self.read(features.float()) + self.place)
        for layer in self.layers:
            hidden = hidden + F.gelu(layer(hidden))
        middle, log_width = (self.say(hidden) + self.usual).unbind(dim=1)
        return middle, log_width.clamp(*LOG_WIDTH).exp()

    def widths_above(
        self,
        features: Float[Tensor, "steps features side side"],
        logs: Float[Tensor, "steps side side"],
    ) -> Float[Tensor, "steps side side"]:
        """Returns how many widths these log errors lie above the middle."""
        middle, width = self(features)
        return (logs - middle) / width


def new_error_model(*, channels: int, side: int) -> ErrorModel:
    """Returns one that has learned nothing yet; always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ErrorModel(channels=channels, side=side)


def teach(
    model: ErrorModel,
    features: Float[Tensor, "steps features side side"],
    logs: Float[Tensor, "steps side side"],
    *,
    progress: bool,
) -> None:
    """Maximises the likelihood of clean log errors; keeps the weights best on held-out steps.

    Args:
        model: Taught in place.
        features: Of the clean steps, see `ErrorModel.features`.
        logs: Logarithms of their errors.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: There are fewer than two steps.
    """
    if len(logs) < 2:
        raise ValueError(f"an error model needs two clean steps or more, got {len(logs)}")
    first_held_out = len(logs) - max(1, round(HELD_OUT * len(logs)))
    shuffled = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, UPDATES)
    best, kept = float("inf"), {}
    with torch.enable_grad(), torch.inference_mode(False):
        for update in tqdm(range(1, UPDATES + 1), desc="errors", disable=not progress):
            chosen = torch.randint(first_held_out, (BATCH,), generator=shuffled)
            optimizer.zero_grad()
            _surprisal(model, features[chosen], logs[chosen]).backward()
            optimizer.step()
            schedule.step()
            if update % CHECK_EVERY == 0:
                with torch.no_grad():
                    found = _surprisal(model, features[first_held_out:], logs[first_held_out:])
                if found < best:
                    best = float(found)
                    kept = {name: value.clone() for name, value in model.state_dict().items()}
    if not kept:
        raise ValueError("the clean errors are not finite; are the latents?")
    model.load_state_dict(kept)
    model.eval().requires_grad_(False)


def _surprisal(model: ErrorModel, features: Tensor, logs: Tensor) -> Tensor:
    """Returns the mean negative log likelihood, but for a constant."""
    middle, width = model(features)
    return (((logs - middle) / width).square() / 2 + width.log()).mean()
