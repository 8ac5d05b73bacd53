"""Goals that come as a sequence of images: what they are, and when an arm goes on to the next.

V-JEPA 2-AC (Assran et al. 2025, arXiv 2506.09985, section 4) picks and places through three images
shown for 4, 10 and 4 steps. Here such limits are the fallback: an arm goes on as soon as the
energy says that it is there.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8

from worldmodel.planners.action_space import GRIPPER
from worldmodel.planners.checks import require_count
from worldmodel.pose import POSITION, ROTATION

SwitchReason = Literal["energy", "gain", "still", "limit"]


@dataclass(frozen=True, eq=False)
class GoalImage:
    """One image to reach.

    Attributes:
        image: (height, width, 3) RGB, or (V, height, width, 3) for a model of V views.
        max_steps: control steps after which an arm goes on to the next image; None waits for the
            energy. The last image of a sequence stays whatever this says.
    """

    image: UInt8[np.ndarray, "*views height width 3"]
    max_steps: int | None = None

    def __post_init__(self) -> None:
        """Refuses what is no uint8 RGB image, and a limit below one step."""
        check_image("goal image", self.image, views=len(self.image) if self.image.ndim == 4 else 1)
        if self.max_steps is not None:
            require_count("max_steps of a goal image", self.max_steps, low=1)


@dataclass(frozen=True)
class SwitchRule:
    """When an arm is at its sub-goal; it is when any of these holds, and None is never.

    The planner decides with `min_gain` and `still_m`: at a sub-goal, nothing that it can imagine
    is worth moving for. Neither asks how low the energy is, which differs from image to image;
    both wait while the plan wants to move the gripper, which fills too few pixels for its energy
    to be trusted.

    Attributes:
        tolerance: "energy": the energy between the picture and the sub-goal is at most this.
        min_gain: "gain": the plan lowers the cost of staying put by at most this fraction, both
            as imagined (see `Plan.gain`). Compared with what the camera shows, a model that errs
            by much would find no plan worth its while anywhere.
        still_m: "still": the plan moves at most this far [m], all its steps added up, and turns at
            most `still_rad`.
        still_rad: largest turn of a plan that counts as still [rad].
        still_gripper: a planned gripper change above this means not there yet [fraction].
    """

    tolerance: float | None = None
    min_gain: float | None = None
    still_m: float | None = None
    still_rad: float = 0.1
    still_gripper: float = 0.25

    def __post_init__(self) -> None:
        """Refuses thresholds below zero (`min_gain` may be) and those that are no number."""
        for name in ("tolerance", "still_m", "still_rad", "still_gripper"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name} of the switch rule must be at least 0, got {value}")
        if self.min_gain is not None and not self.min_gain < 1:
            raise ValueError(f"min_gain of the switch rule must be below 1, got {self.min_gain}")

    def on_seeing(self, *, energy: float, steps: int, max_steps: int | None) -> SwitchReason | None:
        """Returns why to go on before any planning, or None.

        Args:
            energy: between the picture and the sub-goal.
            steps: control steps executed towards the sub-goal so far.
            max_steps: its limit.
        """
        if self.tolerance is not None and energy <= self.tolerance:
            return "energy"
        if max_steps is not None and steps >= max_steps:
            return "limit"
        return None

    def on_planning(
        self, *, gain: float, actions: Float[np.ndarray, "horizon action"]
    ) -> SwitchReason | None:
        """Returns why to go on given a new plan to the sub-goal, or None.

        Args:
            gain: of the plan over staying put, a fraction.
            actions: the plan, with the gripper as it would be executed.
        """
        path = np.abs(actions).sum(axis=0)  # (A,)
        if path[GRIPPER] > self.still_gripper:
            return None
        if self.min_gain is not None and gain <= self.min_gain:
            return "gain"
        if (
            self.still_m is not None
            and np.linalg.norm(path[POSITION]) <= self.still_m
            and np.linalg.norm(path[ROTATION]) <= self.still_rad
        ):
            return "still"
        return None


def check_image(
    name: str,
    image: np.ndarray,
    *,
    batch: bool = False,
    views: int = 1,
    size: tuple[int, ...] | None = None,
) -> None:
    """Raises unless `image` is uint8 RGB (height, width, 3), of `size` (height, width) if given.

    Args:
        name: what to call it in the message.
        image: what to check.
        batch: whether the array holds a batch of images (B, height, width, 3).
        views: of a model of several views, how many: an image is (V, height, width, 3) then.
        size: the expected size.

    Raises:
        TypeError: it is not uint8.
        ValueError: its shape is another.
    """
    if image.dtype != np.uint8:
        raise TypeError(f"{name} must be uint8 RGB in [0, 255], got {image.dtype}")
    leading = image.shape[batch:-3]
    if image.ndim < 3 + batch or image.shape[-1] != 3 or leading != ((views,) if views > 1 else ()):
        shape = f"({'B, ' * batch}{f'{views}, ' * (views > 1)}height, width, 3)"
        raise ValueError(f"{name} must have shape {shape}, got {image.shape}")
    if size is not None and image.shape[-3:-1] != size:
        raise ValueError(
            f"{name} is {image.shape[-3]}x{image.shape[-2]} pixels, but the goal images are "
            f"{size[0]}x{size[1]}"
        )
