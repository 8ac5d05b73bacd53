"""What linear probes can read of the arm from the latents of a frozen encoder."""

from dataclasses import dataclass

import torch
from torch import Tensor

from worldmodel.clips import View
from worldmodel.interfaces import Encoder
from worldmodel.jepa import encode_frames
from worldmodel.pose import GRIPPER, POSITION
from worldmodel.probes import fit_linear_probe


@dataclass(frozen=True)
class ProbeErrors:
    """How well linear probes of the latents know the arm, on held-out episodes.

    Attributes:
        position_cm: Mean distance of the hand from where the probe puts it.
        gripper: Mean absolute error of the gripper's opening, of 1.
    """

    position_cm: float
    gripper: float


@torch.inference_mode()
def probe_errors(
    encoder: Encoder,
    view: View,
    train_ids: list[int],
    validation_ids: list[int],
    *,
    merge: int,
    device: torch.device,
    max_episodes: int = 100,
) -> ProbeErrors:
    """Returns how well linear probes of the latents know the arm on held-out episodes.

    The latents are those a planner sees, of all cameras at once. Without held-out episodes the
    errors are NaN.
    """

    def features(ids: list[int]) -> tuple[Tensor, Tensor]:
        latents, states = [], []
        for i in ids[:max_episodes]:
            shown = [one.read(i) for one in view.of_each_camera()]
            seen = [
                encode_frames(encoder, torch.from_numpy(frames[::2]).to(device), merge).flatten(1)
                for frames, *_ in shown
            ]
            latents.append(torch.cat(seen, dim=1).cpu())
            states.append(torch.from_numpy(shown[0][1][::2]))
        return torch.cat(latents), torch.cat(states)

    if not validation_ids:
        return ProbeErrors(float("nan"), float("nan"))
    probe = fit_linear_probe(*features(train_ids))
    latents, states = features(validation_ids)
    error = probe(latents) - states
    return ProbeErrors(
        position_cm=100 * float(error[:, POSITION].norm(dim=-1).mean()),
        gripper=float(error[:, GRIPPER].abs().mean()),
    )
