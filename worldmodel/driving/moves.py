"""Moves that need no plan: straight to a pose, and random small ones for a calibration."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from worldmodel.driving.reference import Pose, Reference, TwistLaw, way_between
from worldmodel.driving.stillness import Stillness
from worldmodel.envs.robots.interface import (
    MOVABLE,
    Command,
    Robot,
    RobotError,
    RobotObservation,
    StaleObservationError,
)
from worldmodel.envs.robots.limits import Envelope

REACHED_M = 0.01
PROGRESS_M = 1e-3  # nearer by less is no progress
SLACK_S = 5.0  # without progress; a simulated arm may be slower than its clock


@dataclass(frozen=True)
class Mover:
    """Moves an armed robot in straight lines, by the commands of a drive.

    Attributes:
        robot: connected and armed.
        envelope: that the robot keeps within.
        law: its velocities.
        command_hz: commands a second.
        valid_for_s: life of a command.
        max_age_s: oldest observation that is acted on.
        sleep: waits; on a simulated clock, moves it on.
        stopped: returns why an operator stopped the arm, None when none did.
    """

    robot: Robot
    envelope: Envelope
    law: TwistLaw
    command_hz: float
    valid_for_s: float
    max_age_s: float
    sleep: Callable[[float], None]
    stopped: Callable[[], str | None]

    def look(self) -> RobotObservation:
        """Returns what is seen and measured now.

        Raises:
            RobotError: nothing fresh comes, or the arm was stopped.
        """
        until = self.robot.now() + SLACK_S
        while True:
            reason = self.stopped()
            if reason is not None:
                raise RobotError(f"stopped: {reason}")
            try:
                return self.robot.observe(max_age_s=self.max_age_s)
            except StaleObservationError as error:
                if self.robot.now() >= until:
                    raise RobotError(str(error)) from error
            self.sleep(1 / self.command_hz)

    def move_by(self, offset: Float[np.ndarray, "3"]) -> RobotObservation:
        """Moves the tool by an offset [m], base frame, and returns what is seen at rest there.

        Raises:
            RobotError: the place is outside of the workspace; the arm was stopped, refused the
                commands, or did not arrive.
        """
        observation = self.look()
        start = Pose.of(observation.proprio)
        target = Pose(start.position + offset, start.rotation, start.gripper)
        box = self.envelope
        inside = (target.position > box.workspace_low) & (target.position < box.workspace_high)
        if not inside.all():
            raise RobotError(
                f"{np.round(target.position, 3)} m is outside of the workspace, "
                f"{box.workspace_low} to {box.workspace_high} m"
            )
        seconds = max(float(np.linalg.norm(offset)) / self.law.speed, 1 / self.command_hz)
        reference = Reference(
            start, way_between([start, target]), begins_at=self.robot.now(), step_s=seconds
        )
        until, nearest = reference.ends_at + SLACK_S, float(np.linalg.norm(offset))
        refused = "it is too far, or at a limit"
        seq, stillness = observation.applied_seq + 1, Stillness()
        while self.robot.now() < until:
            observation = self.look()
            if observation.state not in MOVABLE:
                errors = ", ".join(observation.errors) or refused
                raise RobotError(f"the arm is {observation.state} and not moving: {errors}")
            away = float(np.linalg.norm(observation.tcp_pos_base - target.position))
            if away < nearest - PROGRESS_M:
                until, nearest = max(until, self.robot.now() + SLACK_S), away
            still = stillness.sees(observation)
            if away < REACHED_M and still and self.robot.now() > reference.ends_at:
                return self._fresh(since=observation.state_at)
            ack = self.robot.command(
                Command(
                    seq=seq,
                    obs_seq=observation.seq,
                    valid_for_s=self.valid_for_s,
                    kind="twist",
                    values=self._twist(reference, observation, near=away < REACHED_M / 2),
                )
            )
            seq, refused = seq + 1, ack.reason or refused
            self.sleep(1 / self.command_hz)
        raise RobotError(f"the arm did not come to {np.round(target.position, 3)} m: {refused}")

    def _twist(
        self, reference: Reference, observation: RobotObservation, *, near: bool
    ) -> np.ndarray:
        if near and self.robot.now() > reference.ends_at:
            return np.zeros(6)
        return self.law.twist(reference, Pose.of(observation.proprio), observation.state_at)

    def _fresh(self, *, since: float) -> RobotObservation:
        """Returns an observation whose pictures were all taken later."""
        until = self.robot.now() + SLACK_S
        while self.robot.now() < until:
            observation = self.look()
            if all(frame.captured_at > since for frame in observation.frames.values()):
                return observation
            self.sleep(1 / self.command_hz)
        raise RobotError("no camera delivers a new picture")


def random_places(
    number: int, size_m: float, *, rng: np.random.Generator
) -> Float[np.ndarray, "number 3"]:
    """Returns places around the origin [m], each at least half of `size_m` and at most that away.

    One after the other lies in opposite halves, so that the moves between them are long.
    """
    directions = rng.normal(size=(number, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    for k in range(1, number):
        if directions[k] @ directions[k - 1] > 0:
            directions[k] *= -1
    return directions * rng.uniform(size_m / 2, size_m, (number, 1))
