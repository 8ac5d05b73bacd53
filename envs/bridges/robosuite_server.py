"""Runs one robosuite environment for another process. Needs robosuite and numpy, nothing of ours.

    python -I robosuite_server.py Lift

robosuite needs an older mujoco and numpy than this project, so it lives in an environment of its
own. The client, `worldmodel.envs.bridges.robosuite`, starts this file with that environment's
Python and speaks `messages.py` over standard input and output.

Requests are ``{"op": ...}``: reset (seed), step (array action, 7 numbers of robosuite), render
(camera, size), save, restore (array state), close. Every answer has what was measured; one with a
field ``error`` says what went wrong.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# robosuite is installed where this runs.

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np

CONTROL_HZ = 20
SETTLE_STEPS = 5  # objects start above the table
NEARER = np.array([-0.03, -0.05])  # [m] the middle of the can's bin is at the end of the reach
DROP = 0.09  # [m] of the can's middle above the bin when it is let go of
LIFT = 0.15  # [m] above the table; robosuite asks for 4 cm
CAMERAS = {"exterior": "agentview", "front": "frontview", "wrist": "robot0_eye_in_hand"}
OBJECTS = {"Lift": ("cube_main",), "PickPlaceCan": ("Can_main",)}
FINGER_OPEN = 0.04  # [m] a Panda finger from the middle, open


class Server:
    """A robosuite task with a Panda under its own operational-space controller."""

    def __init__(self, task: str):
        """Builds the environment; takes seconds."""
        import mujoco
        import robosuite
        from robosuite.controllers import load_composite_controller_config

        self._mujoco, self.version = mujoco, robosuite.__version__
        self._env = robosuite.make(
            task,
            robots="Panda",
            controller_configs=load_composite_controller_config(controller="BASIC", robot="Panda"),
            has_renderer=False,
            has_offscreen_renderer=True,
            use_camera_obs=False,
            control_freq=CONTROL_HZ,
            ignore_done=True,
            hard_reset=False,
            seed=0,  # what is drawn once, such as where the arm begins; episodes have their own
        )
        self._task = task
        self._started = 0.0

    def answer(self, fields: dict, arrays: dict) -> tuple[dict, dict]:
        """Carries out one request; returns the fields and arrays of the answer."""
        op, extra = fields["op"], {}
        if op == "reset":
            fresh = np.random.default_rng(fields["seed"])
            self._env.rng.bit_generator.state = fresh.bit_generator.state  # every sampler has it
            self._env.reset()
            self._draw_cheaply()
            for _ in range(SETTLE_STEPS):
                self._env.step(np.zeros(7))
            self._started = self._data.time
        elif op == "step":
            self._env.step(arrays["action"])
        elif op == "render":
            extra["image"] = self._render(fields["camera"], fields["size"])
        elif op == "save":
            extra["state"] = self._save()
        elif op == "restore":
            self._restore(arrays["state"])
        elif op != "describe":
            raise ValueError(f"unknown request {op!r}")
        answer = {
            "success": bool(self._env._check_success()),
            "time": float(self._data.time - self._started),
            "version": self.version,
            "mujoco": self._mujoco.__version__,
        }
        return answer, {**self._measured(), **extra}

    @property
    def _model(self):
        return self._env.sim.model._model

    @property
    def _data(self):
        return self._env.sim.data._data

    @property
    def _gripper(self):
        return self._env.robots[0].gripper["right"]

    def _measured(self) -> dict:
        robot = self._env.robots[0]
        to_base, origin = np.asarray(robot.base_ori).T, np.asarray(robot.base_pos)
        site = robot.eef_site_id["right"]
        fingers = self._data.qpos[robot._ref_gripper_joint_pos_indexes["right"]]
        objects = [self._data.body(name).xpos for name in OBJECTS[self._task]]
        return {
            "position": to_base @ (self._data.site_xpos[site] - origin),
            "rotation": to_base @ self._data.site_xmat[site].reshape(3, 3),
            "gripper": np.array([1 - (fingers[0] - fingers[1]) / (2 * FINGER_OPEN)]),
            "fingers": self._fingers(),
            "objects": (np.stack(objects) - origin) @ to_base.T,
            "goal": to_base @ (self._goal() - origin),
        }

    def _goal(self) -> np.ndarray:
        """Returns where the object should be: over the table, or in its bin."""
        if self._task == "Lift":
            x, y, _ = self._data.body("cube_main").xpos
            return np.array([x, y, self._env.model.mujoco_arena.table_offset[2] + LIFT])
        middle = np.asarray(self._env.target_bin_placements[self._env.object_id])
        return np.array([*(middle[:2] + NEARER), middle[2] + DROP])

    def _draw_cheaply(self) -> None:
        self._model.vis.quality.shadowsize = 0
        self._model.light_castshadow[:] = 0

    def _render(self, camera: str, size: int) -> np.ndarray:
        image = self._env.sim.render(camera_name=CAMERAS[camera], width=size, height=size)
        return np.ascontiguousarray(image[::-1])  # robosuite's pictures stand on their heads

    def _save(self) -> np.ndarray:
        what = self._mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.zeros(self._mujoco.mj_stateSize(self._model, what))
        self._mujoco.mj_getState(self._model, self._data, state, what)
        return np.concatenate([self._fingers(), state])

    def _fingers(self) -> np.ndarray:
        """Returns the command of both fingers, 1 open to -1 closed for the first."""
        return np.broadcast_to(self._gripper.current_action, 2).astype(float)

    def _restore(self, state: np.ndarray) -> None:
        fingers, rest = np.split(state, [2])
        self._gripper.current_action = fingers.copy()
        what = self._mujoco.mjtState.mjSTATE_INTEGRATION
        self._mujoco.mj_setState(self._model, self._data, rest.copy(), what)
        self._mujoco.mj_forward(self._model, self._data)


def load_messages():
    """Returns the module beside this file, without the package around it."""
    path = Path(__file__).with_name("messages.py")
    spec = importlib.util.spec_from_file_location("messages", path)
    assert spec is not None and spec.loader is not None  # the file is there
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Answers requests until the pipe closes."""
    messages = load_messages()
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not reach the pipe
    server = Server(sys.argv[1])
    while True:
        try:
            fields, arrays = messages.read_message(sys.stdin.buffer)
        except EOFError:
            return
        if fields["op"] == "close":
            return
        try:
            answer, measured = server.answer(fields, arrays)
        except Exception as error:  # told to the client, which raises it
            answer, measured = {"error": f"{type(error).__name__}: {error}"}, {}
        messages.write_message(out, answer, measured)


if __name__ == "__main__":
    main()
