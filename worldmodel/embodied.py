"""Arms that do not speak in end-effector poses: joint angles in, and input layers of their own.

Proprio are the measured joints and the gripper, an action is their change from one frame to the
next, however far apart these are. A predictor gets a new layer for each of the two and keeps the
rest (`worldmodel.embodiment`). A head of its own may read the joints from a picture.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from worldmodel.data.latent_views import LatentViews
from worldmodel.data.latents import LatentCache
from worldmodel.data.source import Source
from worldmodel.embodiment import Embodiment
from worldmodel.jepa import JEPA
from worldmodel.joined_views import JoinedViews
from worldmodel.joint_head import MIN_JOINT_STD, JointHead
from worldmodel.planners.action_space import JointSpace
from worldmodel.predictor import ActionConditionedPredictor

MIN_MOVE_STD = 0.01
LIMIT_QUANTILE = 0.99  # of the moves in training: the largest that a planner may imagine


class Embodied:
    """A world model as one of its embodiments is spoken to; a `WorldModel` of planners.

        world = Embodied(joined(load("runs/my_arm/model")), "my_arm")
        controller = MPC(world, CEM(cost=LatentEnergy()), plan_bounds=..., step_bounds=..., ...)

    Args:
        world: The model.
        embodiment: Whose actions and proprio are meant.

    Attributes:
        action_limit: Largest change of each joint and the gripper in training; how far a planner
            may look in one step.
        action_space: Joints and gripper; how a controller composes them.
        control_hz: The rate it was trained at.
        joint_head: Reads the joints from latents, for `propose`; None if it was not trained.
        num_views: Cameras seen at once.

    Raises:
        ValueError: The model was never told of it.
    """

    def __init__(self, world: JEPA | JoinedViews, embodiment: str):
        model = world.world if isinstance(world, JoinedViews) else world
        predictor = _polyglot(model)
        if embodiment not in predictor.embodiments:
            known = ", ".join(predictor.embodiments) or "none"
            raise ValueError(
                f"this model was never told of the embodiment {embodiment!r}; it knows {known} "
                "besides the end effector (worldmodel train embodiment=NAME)"
            )
        robot = predictor.embodiment_encoders[embodiment]
        assert isinstance(robot, Embodiment)
        self.world, self.embodiment = world, embodiment
        self.action_limit: list[float] = robot.action_limit.tolist()
        self.action_space = JointSpace(len(self.action_limit) - 1)
        self.control_hz = world.control_hz
        head = model.joint_heads[embodiment] if embodiment in model.joint_heads else None
        assert head is None or isinstance(head, JointHead)
        self.joint_head = head
        self.num_views: int = getattr(world, "num_views", 1)

    def encode(self, frames: Tensor) -> Tensor:
        """Returns the latents of frames."""
        return self.world.encode(frames)

    def predict(
        self,
        latents: Float[Tensor, "batch frames tokens dim"],
        proprio: Float[Tensor, "batch frames proprio"],
        actions: Float[Tensor, "batch frames action"],
    ) -> Float[Tensor, "batch frames tokens dim"]:
        """Returns the latents predicted for the frame after each given one."""
        return self.world.predict(latents, proprio, actions, embodiment=self.embodiment)

    def rollout(
        self,
        latents: Float[Tensor, "batch context tokens dim"],
        proprio: Float[Tensor, "batch context proprio"],
        actions: Float[Tensor, "batch *samples steps action"],
    ) -> Float[Tensor, "batch *samples horizon tokens dim"]:
        """Imagines what follows C frames; the first C - 1 actions lie between them."""
        if actions.ndim == 4:
            S = actions.shape[1]
            each = latents.repeat_interleave(S, dim=0), proprio.repeat_interleave(S, dim=0)
            return self.rollout(*each, actions.flatten(0, 1)).unflatten(0, (-1, S))
        C, states = latents.shape[1], proprio
        for t in range(C, actions.shape[1] + 1):
            ahead = self.predict(latents, states, actions[:, :t])[:, -1:]
            latents = torch.cat((latents, ahead), dim=1)
            moved = self.action_space.integrate(states[:, -1:], actions[:, t - 1 : t])
            states = torch.cat((states, moved), dim=1)
        return latents[:, C:]

    def propose(
        self,
        latents: Float[Tensor, "batch tokens dim"],
        proprio: Float[Tensor, "batch joints"],
        goal: Float[Tensor, "batch tokens dim"],
    ) -> Float[Tensor, "batch joints"]:
        """Returns the action that seems to lead each arm straight to its goal.

        From the joints read from what it sees to those read from the goal, see `JEPA.propose`.

        Args:
            latents: Latents of the frames the arms see.
            proprio: Their joints; not needed here.
            goal: Latents of the goal images.

        Raises:
            ValueError: The model has no head that reads these joints.
        """
        if self.joint_head is None:
            raise ValueError(
                f"this model has no head that reads the joints of {self.embodiment!r}; train it "
                "with state_weight above 0, or plan without proposals"
            )
        here, there = self.joint_head(latents), self.joint_head(goal)
        return self.action_space.between(here, there)


def read_joints(
    source: Source, cache: LatentCache | LatentViews, ids: Sequence[int]
) -> dict[int, np.ndarray]:
    """Returns measured joints [rad] and gripper, float32 (rows, joints + 1), of cached rows.

    Raises:
        ValueError: A recording has no joints, or other ones than when it was encoded.
    """
    found: dict[int, np.ndarray] = {}
    for i in ids:
        episode = source.read(i)
        both = episode.joints_and_gripper(name=f"episode {i} of {source.path}")
        times = cache.timestamps(i)
        rows = np.searchsorted(episode.timestamps, times).clip(max=len(episode.timestamps) - 1)
        if not np.array_equal(episode.timestamps[rows], times):
            raise ValueError(
                f"episode {i} of {source.path} has other timestamps than when it was encoded; run "
                "worldmodel encode again"
            )
        found[i] = both[rows]
    sizes = {values.shape[1] - 1 for values in found.values()}
    if len(sizes) > 1:
        raise ValueError(
            f"the recordings of {source.path} have {sorted(sizes)} joints; expected one number"
        )
    return found


def learn_to_speak(
    world: JEPA,
    embodiment: str,
    joints: Mapping[int, np.ndarray],
    moves: Float[Tensor, "n action"],
    *,
    joint_head: bool,
    seed: int,
) -> None:
    """Gives a model the layers of an embodiment, unless it has them.

    Args:
        world: The model.
        embodiment: Its name.
        joints: Proprio of the training recordings, for the scales.
        moves: Actions of training windows, for the scales.
        joint_head: Whether it gets a head that reads the joints from latents, too.
        seed: Of the first weights.

    Raises:
        ValueError: The predictor takes no embodiments, or has one of this name and other sizes.
    """
    predictor = _polyglot(world)
    size = moves.shape[-1]
    states = torch.from_numpy(np.concatenate(list(joints.values())))
    known = predictor.embodiments.get(embodiment)
    if known is None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            robot = predictor.add_embodiment(embodiment, action_size=size, proprio_size=size)
        robot.proprio_mean.copy_(states.mean(0))
        robot.proprio_std.copy_(states.std(0).clamp_min(MIN_JOINT_STD))
        robot.action_std.copy_(moves.std(0).clamp_min(MIN_MOVE_STD))
        robot.action_limit.copy_(moves.abs().quantile(LIMIT_QUANTILE, dim=0))
    elif known != (size, size):
        raise ValueError(
            f"the model knows {embodiment!r} with {known[0] - 1} joints, the recordings have "
            f"{size - 1}; give the new arm another name"
        )
    if joint_head and embodiment not in world.joint_heads:
        tokens = predictor.num_views * predictor.grid_size[0] * predictor.grid_size[1]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            head = JointHead(size=size, latent_dim=predictor.latent_dim, num_tokens=tokens)
        head.set_scales(states)
        world.joint_heads[embodiment] = head


def _polyglot(world: JEPA) -> ActionConditionedPredictor:
    """Returns the predictor of a model that can have embodiments."""
    predictor = world.predictor
    if not isinstance(predictor, ActionConditionedPredictor):
        raise ValueError(
            f"a {type(predictor).__name__} speaks in end-effector poses only; use predictor=mini, "
            "small or vjepa2_ac, or leave embodiment out"
        )
    return predictor
