"""The oracle: the same search and the same sub-goals, with the true simulator as world model.

It shows what perfect dynamics and a perfect measure of progress would give with a small search,
so that a planner's failures can be told from a bad model or a bad search. It reads the state of the
simulator, costs a simulated step per imagined one, and is no planner for a real arm.

Its latents are the features of `FrankaEnv.features`, one token: metres as they are, the gripper
times 0.05. Energy and cost are the sum of the absolute differences to the sub-goal's features, so
they are in metres; orientation does not count.
"""

from dataclasses import replace

import gymnasium
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from worldmodel.closed_loop import PlannerSettings, drive, make_controller
from worldmodel.fleet import Arms
from worldmodel.planners.cem import CEM
from worldmodel.planners.energy import LatentEnergy
from worldmodel.planners.subgoals import SwitchRule
from worldmodel.results import FEATURE_GRIPPER, EpisodeResult

GRIPPER_WEIGHT = 0.05  # [m] that a closed gripper in place of an open one is worth
REACHED = 0.015  # [m] sum of absolute errors at which a sub-goal counts as reached
HORIZON, SAMPLES, ELITES, ITERATIONS = 2, 32, 6, 4  # 256 simulated steps per control step


class SimulatorWorld:
    """A `WorldModel` that copies the simulator, does the actions there, and reads its state.

    It imagines from where the arm is now, whatever latents it is given.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        """Takes an environment of `worldmodel.envs`."""
        self._inner = env.unwrapped
        self.control_hz: float = self._inner.control_hz  # type: ignore[attr-defined]

    def encode(self, frames: UInt8[Tensor, "batch time 1 width 3"]) -> Float[Tensor, "..."]:
        """Returns latents (B, T, 1, n) of features disguised by `as_image`."""
        B, T, _, width, _ = frames.shape
        content = frames.reshape(B, T, 3 * width).cpu().numpy()
        features = content[..., : 3 * width // 8 * 8].copy().view(np.float64)
        return self._latents(features)[:, :, None]

    def predict(self, latents: Tensor, proprio: Tensor, actions: Tensor) -> Tensor:
        """Is not there: the simulator can be copied only where it is.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("the simulator imagines from the present only; use rollout")

    def rollout(
        self,
        latents: Float[Tensor, "1 context 1 latent"],
        proprio: Float[Tensor, "1 context proprio"],
        actions: Float[Tensor, "1 sample steps action"],
    ) -> Float[Tensor, "1 sample horizon 1 latent"]:
        """Returns the latents at the end of each plan, H times: only the last step is known."""
        plans = actions[0, :, latents.shape[1] - 1 :]  # (S, H, 7)
        ends = self._latents(self._inner.imagine(plans.double().numpy()))  # type: ignore[attr-defined]
        return ends[None, :, None, None].expand(-1, -1, plans.shape[1], -1, -1)

    @staticmethod
    def _latents(features: np.ndarray) -> Tensor:
        weights = np.ones(features.shape[-1])
        weights[FEATURE_GRIPPER] = GRIPPER_WEIGHT
        # Times their number: the energy, a mean over the latent, becomes the sum [m].
        return torch.from_numpy(features * weights * features.shape[-1]).float()


def as_image(features: Float[np.ndarray, " feature"]) -> UInt8[np.ndarray, "1 width 3"]:
    """Returns features (n,) float64 as the bytes of an image: what the oracle's camera shows."""
    content = np.frombuffer(features.astype(np.float64).tobytes(), np.uint8)
    padding = -len(content) % 3
    return np.pad(content, (0, padding)).reshape(1, -1, 3)


def oracle_settings(
    *, axes: tuple[str, ...], limits: tuple[float, ...], subgoals: bool
) -> PlannerSettings:
    """Returns the oracle's search: actions that fit in one control step, replanned every step."""
    return PlannerSettings(
        search=CEM(
            cost=LatentEnergy(),
            horizon=HORIZON,
            num_samples=SAMPLES,
            num_elites=ELITES,
            num_iterations=ITERATIONS,
            returns="best",
            hold=True,
        ),
        axes=axes,
        limits=limits,
        warm_start=True,
        replan_every=1,
        num_context=1,
        deadline_ms=None,
        subgoals=subgoals,
        switch=SwitchRule(tolerance=REACHED),
        precision="float32",
    )


def run_oracle(
    env: gymnasium.Env, seed: int, *, axes: tuple[str, ...], subgoals: bool
) -> EpisodeResult:
    """Runs one episode of the oracle.

    Args:
        env: Environment of `worldmodel.envs`.
        seed: Seed of its reset and of the search.
        axes: Names of the action axes it searches.
        subgoals: Whether it is given all sub-goals, or the goal alone.
    """
    arms, cpu = Arms([env]), torch.device("cpu")
    body = arms.body()
    settings = oracle_settings(
        axes=axes, limits=tuple(body.action_high.tolist()), subgoals=subgoals
    )
    controller = make_controller(SimulatorWorld(env), settings, body, device=cpu)
    (episode,) = drive(
        arms,
        controller,
        [seed],
        subgoals=subgoals,
        look=lambda seen: as_image(seen.features),
    )
    # Its energies are no latent energies, and its times those of a simulator.
    nothing = np.zeros(0)
    return replace(episode, energies=nothing, plan_ms=nothing, encode_ms=nothing)
