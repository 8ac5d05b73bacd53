"""What answers a request: the goal its prompt names, a plan to it, and rows of commands.

A client's requests do not depend on each other, but for the gripper: its measured opening does not
say whether it was told to close, so what was last commanded is kept for as long as a client is
connected.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

from worldmodel.data.rotations import angle_between
from worldmodel.franka_arm import joint_frames
from worldmodel.images import fit_views
from worldmodel.pose import euler_to_matrix, matrix_to_euler
from worldmodel.serving.chunks import ROW_HZ, ActionSpace, Chunk, Limits, make_chunk
from worldmodel.serving.dialects import OPENPI_ROWS, Request, RequestError, metadata
from worldmodel.serving.goals import Goals
from worldmodel.serving.kinematics import Tool

SAME_POSITION, SAME_ROTATION = 0.01, 0.05  # m, rad: of a flange from its joints and as sent


@dataclass
class Session:
    """What is remembered of a client: the gripper's last command, None before the first."""

    gripper: float | None = None


@runtime_checkable
class Policy(Protocol):
    """Answers requests. One request is worked on at a time, in a thread of its own."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What a client is told when it connects, see `worldmodel.serving.dialects.metadata`."""
        ...

    def infer(self, request: Request, session: Session) -> Chunk:
        """Returns what the robot is to do.

        Raises:
            RequestError: the request cannot be served.
        """
        ...


@runtime_checkable
class ActionPlanner(Protocol):
    """Plans to one picture."""

    @property
    def step_s(self) -> float:
        """Time of one planned action [s]."""
        ...

    def plan(
        self,
        image: UInt8[np.ndarray, "*views height width 3"],
        goal: UInt8[np.ndarray, "*views height width 3"],
        proprio: Float[np.ndarray, "7"],
        *,
        num_actions: int,
    ) -> Float[np.ndarray, "step 7"]:
        """Returns from one to `num_actions` changes of `proprio` towards the goal."""
        ...


class GoalPolicy:
    """Plans to the goal image that a request's prompt names."""

    def __init__(
        self,
        planner: ActionPlanner,
        goals: Goals,
        *,
        tool: Tool,
        limits: Limits,
        num_rows: int,
        action_space: ActionSpace,
        posture: Float[np.ndarray, "7"] | None,
        resize_to: int | None,
    ):
        """Builds the policy.

        Args:
            planner: finds actions.
            goals: by name, of the cameras that the planner sees.
            tool: tool centre point of the planner's world model.
            limits: of the rows.
            num_rows: rows planned at once; openpi's script executes eight, RoboArena's all.
            action_space: of RoboArena's rows; openpi's are joint velocities.
            posture: see `chunks.make_chunk`.
            resize_to: height and width to which RoboArena's client is to resize its images.

        Raises:
            ValueError: the action space is unknown, or there are too many rows or none.
        """
        if not 1 <= num_rows <= OPENPI_ROWS:
            raise ValueError(f"rows must be from 1 to {OPENPI_ROWS}, got {num_rows}")
        self.planner = planner
        self.goals = goals
        self.tool = tool
        self.limits = limits
        self.num_rows = num_rows
        self.action_space: ActionSpace = action_space
        self.posture = posture
        self.metadata = metadata(
            image_size=resize_to, action_space=action_space, cameras=goals.cameras
        )

    def infer(self, request: Request, session: Session) -> Chunk:
        """Returns what the robot is to do, see `Policy`."""
        pictures = [request.picture(camera) for camera in self.goals.cameras]
        sizes = [(picture.shape[0], picture.shape[1]) for picture in pictures]
        goal = self.goals.find(request.prompt, live_sizes=sizes)
        try:
            image = fit_views(pictures, self.goals.image_size, self.goals.crop)
        except ValueError as error:
            raise RequestError("bad_image", str(error)) from error
        action_space: ActionSpace = self.action_space
        if request.dialect == "openpi":
            action_space = "joint_velocity"
        elif action_space.startswith("cartesian") and request.flange is not None:
            _check_flange(request.joints, request.flange)
        if session.gripper is None:
            session.gripper = float(request.gripper > 0.5)
        position, rotation = self.tool.pose(request.joints)
        proprio = np.concatenate([position, matrix_to_euler(rotation), [request.gripper]])
        actions = self.planner.plan(
            image,
            goal.image,
            proprio.astype(np.float32),
            num_actions=math.ceil(self.num_rows / ROW_HZ / self.planner.step_s),
        )
        if not np.isfinite(actions).all():
            raise RequestError("not_finite", "the plan holds NaN or infinity")
        chunk = make_chunk(
            actions,
            step_s=self.planner.step_s,
            num_rows=self.num_rows,
            joints=request.joints,
            gripper=session.gripper,
            tool=self.tool,
            limits=self.limits,
            action_space=action_space,
            posture=self.posture,
        )
        session.gripper = chunk.gripper
        return chunk


def _check_flange(joints: np.ndarray, flange: np.ndarray) -> None:
    """Refuses a robot whose Cartesian frame is not link 8 of a Franka."""
    expected = joint_frames(joints)[-1]
    away = float(np.linalg.norm(expected[:3, 3] - flange[:3]))
    turned = float(angle_between(expected[:3, :3], euler_to_matrix(flange[3:])))
    if away > SAME_POSITION or turned > SAME_ROTATION:
        raise RequestError(
            "pose_mismatch",
            f"cartesian_position is {100 * away:.1f} cm and {turned:.2f} rad from where the joints "
            "put the flange of a Franka; use a joint action space",
        )
