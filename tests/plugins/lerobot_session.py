"""LeRobot's own programs (record, replay, rollout), with a teleoperator that always says the same.

    python lerobot_session.py record --teleop.type=constant --teleop.speed=0.05 ...

It runs in LeRobot's interpreter, which needs the two plugins.
"""

import importlib
import os
import sys
from dataclasses import dataclass

from lerobot.teleoperators import Teleoperator, TeleoperatorConfig

NAMES = (*(f"joint_{i}.vel" for i in range(1, 8)), "gripper.pos")


@TeleoperatorConfig.register_subclass("constant")
@dataclass(kw_only=True)
class ConstantConfig(TeleoperatorConfig):
    speed: float = 0.0  # of joint 1


class Constant(Teleoperator):
    config_class = ConstantConfig
    name = "constant"
    action_features = dict.fromkeys(NAMES, float)
    feedback_features: dict = {}
    is_connected = is_calibrated = True

    def __init__(self, config):
        super().__init__(config)
        self.config = config

    def connect(self, calibrate=True):
        pass

    def calibrate(self):
        pass

    def configure(self):
        pass

    def get_action(self):
        return dict.fromkeys(NAMES, 0.0) | {"joint_1.vel": self.config.speed}

    def send_feedback(self, feedback):
        pass

    def disconnect(self):
        pass


if __name__ == "__main__":
    print("session", os.getpid(), flush=True)
    program = sys.argv.pop(1)
    importlib.import_module(f"lerobot.scripts.lerobot_{program}").main()
