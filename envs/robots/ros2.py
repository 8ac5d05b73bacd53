"""Untested: commands as a stream of ROS 2 `TwistStamped` messages, such as MoveIt Servo takes.

Only output: it moves an arm and sees nothing, so it is no `Robot`. What does not need ROS 2 is
tested with stand-ins; what does, `ros2_twist_output`, has never been run.

    with ros2_twist_output(topic="/servo_node/delta_twist_cmds", frame_id="panda_link0",
                           rate_hz=50) as output:
        output.send(command)

Servo must have `command_in_type: speed_units`, for these are m/s and rad/s. It stops an arm that it
gets no message for (0.1 s unless told otherwise), so a program that dies or stands still stops it.
"""

import importlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from worldmodel.envs.robots.gate import what_is_wrong
from worldmodel.envs.robots.interface import Command

MAX_VALID_FOR_S = 0.5
NO_ROS = (
    "there is no ROS 2 in this Python ({}); source /opt/ros/DISTRIBUTION/setup.bash first, and "
    "make the virtual environment with --system-site-packages"
)


def fill_twist(message: Any, twist: np.ndarray, *, frame_id: str, stamp: Any) -> Any:
    """Returns a `geometry_msgs/TwistStamped`, filled.

    Args:
        message: a new one.
        twist: (6,) velocity [m/s] and angular velocity [rad/s].
        frame_id: of the frame that both are in: the arm's base.
        stamp: a `builtin_interfaces/Time`.
    """
    message.header.frame_id = frame_id
    message.header.stamp = stamp
    values = [float(value) for value in twist]
    linear, angular = message.twist.linear, message.twist.angular
    linear.x, linear.y, linear.z, angular.x, angular.y, angular.z = values
    return message


class TwistOutput:
    """Publishes a command's twist in every tick while it lives, then zeros once, then nothing."""

    def __init__(
        self, publish: Callable[[np.ndarray], None], *, clock: Callable[[], float] = time.monotonic
    ):
        """Publishes nothing yet.

        Args:
            publish: sends one twist (6,).
            clock: monotonic [s].
        """
        self._publish, self._clock = publish, clock
        self._lock = threading.Lock()
        self._twist: np.ndarray | None = None  # None: nothing is to be published
        self._expires_at, self._last_seq = 0.0, -1

    def send(self, command: Command) -> None:
        """Lets the next ticks publish a "twist", or come to rest for a "hold".

        Raises:
            ValueError: the command is wrong, of another kind, or moves the gripper.
        """
        with self._lock:
            wrong = what_is_wrong(command, last_seq=self._last_seq, max_valid_for_s=MAX_VALID_FOR_S)
            if wrong is None and command.kind not in ("twist", "hold"):
                wrong = f'a twist output takes "twist" and "hold", got {command.kind!r}'
            if wrong is None and command.gripper is not None:
                wrong = "a twist output moves no gripper; send gripper=None"
            if wrong is not None:
                raise ValueError(f"command {command.seq} was not sent: {wrong}")
            self._last_seq = command.seq
            moves = command.kind == "twist"
            self._twist = np.array(command.values, float) if moves else np.zeros(6)
            self._expires_at = self._clock() + command.valid_for_s if moves else -np.inf

    def stop(self) -> None:
        """Comes to rest in the next tick; any thread may call it."""
        with self._lock:
            self._twist, self._expires_at = np.zeros(6), -np.inf

    def tick(self) -> None:
        """Publishes what is due; to be called well above 10 times a second."""
        with self._lock:
            twist = self._twist
            if twist is not None and self._clock() >= self._expires_at:
                twist, self._twist = np.zeros(6), None
            if twist is not None:
                self._publish(twist)


@contextmanager
def ros2_twist_output(*, topic: str, frame_id: str, rate_hz: float) -> Iterator[TwistOutput]:
    """Yields an output that publishes to a topic until the end of the block. Never run yet.

    Args:
        topic: of `geometry_msgs/TwistStamped`.
        frame_id: name of the arm's base frame.
        rate_hz: messages a second.

    Raises:
        ImportError: there is no ROS 2.
    """
    try:
        rclpy = importlib.import_module("rclpy")
        executors = importlib.import_module("rclpy.executors")
        messages = importlib.import_module("geometry_msgs.msg")
    except ImportError as error:
        raise ImportError(NO_ROS.format(error)) from error
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("worldmodel_twist", context=context)
    publisher = node.create_publisher(messages.TwistStamped, topic, 1)

    def publish(twist: np.ndarray) -> None:
        stamp = node.get_clock().now().to_msg()
        message = fill_twist(messages.TwistStamped(), twist, frame_id=frame_id, stamp=stamp)
        publisher.publish(message)

    output = TwistOutput(publish)
    node.create_timer(1 / rate_hz, output.tick)
    executor = executors.SingleThreadedExecutor(context=context)
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin, name="ros2-twist", daemon=True)
    thread.start()
    try:
        yield output
    finally:
        output.stop()
        time.sleep(2 / rate_hz)  # for the zeros to go out
        executor.shutdown()
        thread.join()
        node.destroy_node()
        rclpy.shutdown(context=context)
