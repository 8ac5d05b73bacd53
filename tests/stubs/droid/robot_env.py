"""DROID's `RobotEnv`, remote like the real one: the arm is in the process at DROID_STUB_URL.

It runs in the script's own interpreter, which has openpi-client and cannot have this project (they
want different versions of numpy).
"""

import os
import warnings

from openpi_client import msgpack_numpy
from websockets.sync.client import connect


class RobotEnv:
    def __init__(
        self,
        action_space="cartesian_velocity",
        gripper_action_space=None,
        camera_kwargs={},  # noqa: B006  (DROID's signature)
        do_reset=True,
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is opened outside of a with block, and kept
            self._link = connect(os.environ["DROID_STUB_URL"], compression=None, max_size=None)
        self._call("make", action_space, gripper_action_space)
        if do_reset:
            self.reset()

    def get_observation(self):
        return self._call("get_observation")

    def step(self, action):
        assert hasattr(action, "tolist")  # as DROID's own link asks for it
        return self._call("step", action)

    def reset(self, randomize=False):
        self._call("reset")

    def close(self):
        self._call("close")
        self._link.close()

    def _call(self, name, *words):
        self._link.send(msgpack_numpy.packb([name, *words]))
        answer = msgpack_numpy.unpackb(self._link.recv())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["value"]
