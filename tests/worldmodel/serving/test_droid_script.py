"""A DROID robot's own script against our server, with the simulated arm for a robot.

Three processes as in a DROID lab: the arm's (here a thread of the test), the script's in its own
interpreter, where `tests/stubs/droid` stands in for DROID's package, and the planner's (a thread).

Set WORLDMODEL_OPENPI_PYTHON to a python that has `openpi-client`, and WORLDMODEL_OPENPI_MAIN to
openpi's examples/droid/main.py, whose python also needs pandas<2, moviepy<2, tqdm and tyro.
"""

import contextlib
import csv
import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve

from worldmodel.envs import franka
from worldmodel.envs.control import Arm
from worldmodel.envs.robots.interface import CameraInfo, Command
from worldmodel.envs.robots.mujoco import MujocoRobot
from worldmodel.envs.robots.wire import pack, unpack
from worldmodel.serving.chunks import Chunk
from worldmodel.serving.dialects import metadata

TESTS = Path(__file__).parents[2]
STUBS = TESTS / "stubs"
PYTHON, MAIN = "WORLDMODEL_OPENPI_PYTHON", "WORLDMODEL_OPENPI_MAIN"
STEPS = 12  # of which the server is asked before the first and the ninth
TURN = 0.05  # of joint 1, in DROID's units

_spec = importlib.util.spec_from_file_location(
    "droid_env", TESTS / "envs" / "robots" / "droid_env.py"
)
assert _spec is not None and _spec.loader is not None
droid_env = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(droid_env)

# What openpi's DROID example does with the robot and with its client.
LOOP = """
import sys, warnings
import numpy as np
from droid.robot_env import RobotEnv
from openpi_client import image_tools
from openpi_client.websocket_client_policy import WebsocketClientPolicy

port, camera, steps = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
env = RobotEnv(action_space="joint_velocity", gripper_action_space="position")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it opens a connection outside of a with block
    client = WebsocketClientPolicy("127.0.0.1", port)
done = 8
for _ in range(steps):
    seen = env.get_observation()
    if done == 8:
        done, picture = 0, seen["image"][camera + "_left"][..., :3][..., ::-1]
        state = seen["robot_state"]
        rows = client.infer({
            "observation/exterior_image_1_left": image_tools.resize_with_pad(picture, 224, 224),
            "observation/wrist_image_left": image_tools.resize_with_pad(picture, 224, 224),
            "observation/joint_position": np.array(state["joint_positions"]),
            "observation/gripper_position": np.array([state["gripper_position"]]),
            "prompt": "red cube",
        })["actions"]
        assert rows.shape == (10, 8)
    row = np.append(rows[done][:-1], float(rows[done][-1] > 0.5))
    env.step(np.clip(row, -1, 1))
    done += 1
env.close()
"""


class Turning:
    """A policy that turns joint 1 and closes the gripper."""

    def __init__(self):
        self.metadata = metadata(image_size=None, action_space="joint_velocity")
        self.requests = []

    def infer(self, request, session):
        self.requests.append(request)
        rows = np.zeros((8, 8))
        rows[:, 0], rows[:, -1] = TURN, 0.9
        return Chunk(rows=rows, gripper=0.9, notes=())


def simulated_arm() -> MujocoRobot:
    size = CameraInfo(height=224, width=224, fps=15.0)  # what the script resizes to
    cameras = {"exterior": size, "wrist": size}
    return MujocoRobot(Arm(franka.build_model()), cameras=cameras, realtime=False)


@contextlib.contextmanager
def arm_process():
    """What stands behind `tests/stubs/droid`: its address, and the environments that it made."""
    made = []

    def make(action_space, gripper_action_space):
        robot = simulated_arm()
        env = droid_env.SimulatedDroidEnv(
            robot, action_space=action_space, gripper_action_space=gripper_action_space
        )
        robot.advance(0.2)  # the cameras have delivered
        env.first = robot.observe(max_age_s=1.0)
        made.append(env)

    def answer(name, *words):
        if name == "make":
            return make(*words)
        value = getattr(made[-1], name)(*words)
        return value if name == "get_observation" else None

    def converse(connection):
        with contextlib.suppress(ConnectionClosed):  # the script ends without a farewell
            for message in connection:
                try:
                    reply = {"value": answer(*unpack(message))}
                except (AssertionError, NotImplementedError) as error:
                    reply = {"error": repr(error)}
                connection.send(pack(reply))

    with serve(converse, "127.0.0.1", 0, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}", made
        finally:
            server.shutdown()
            thread.join()
            for env in made:
                env.robot.close()


def run(words, *, url, folder, answers=""):
    python = os.environ.get(PYTHON)
    if not python:
        pytest.skip(f"{PYTHON} names no python that has openpi-client")
    return subprocess.run(
        [python, *map(str, words)],
        input=answers,
        env={**os.environ, "DROID_STUB_URL": url, "PYTHONPATH": str(STUBS)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


def check(made, policy) -> None:
    """The picture went through unharmed, and the arm did what the planner said."""
    (env,) = made
    assert len(policy.requests) == 2
    first = policy.requests[0]
    np.testing.assert_array_equal(first.image, env.first.frames["exterior"].image)
    np.testing.assert_allclose(first.joints, env.first.joint_positions, atol=1e-4)
    assert (first.dialect, first.prompt) == ("openpi", "red cube")
    turned = env.robot.observe(max_age_s=1.0).joint_positions - env.first.joint_positions
    assert turned[0] == pytest.approx(STEPS * TURN * 0.2, rel=0.1)
    assert np.abs(turned[1:]).max() < 0.01
    assert len(env.actions) == STEPS and all(action[-1] == 1 for action in env.actions)


@pytest.mark.slow
def test_a_loop_like_the_scripts_moves_the_arm(run_server, tmp_path) -> None:
    policy = Turning()
    with arm_process() as (url, made), run_server(policy) as running:
        words = ["-c", LOOP, running.port, droid_env.SERIALS["exterior"], STEPS]
        done = run(words, url=url, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        check(made, policy)
        assert made[0].closed


def run_main(port, *, url, folder, goal, steps):
    main = os.environ.get(MAIN)
    if not main:
        pytest.skip(f"{MAIN} names no copy of openpi's examples/droid/main.py")
    words = [
        Path(main).resolve(),
        "--external_camera=left",
        f"--left_camera_id={droid_env.SERIALS['exterior']}",
        f"--wrist_camera_id={droid_env.SERIALS['wrist']}",
        "--remote_host=127.0.0.1",
        f"--remote_port={port}",
        f"--max_timesteps={steps}",
    ]
    return run(words, url=url, folder=folder, answers=f"{goal}\ny\nn\n")


@pytest.mark.slow
def test_the_unmodified_script_moves_the_arm(run_server, tmp_path) -> None:
    policy = Turning()
    with arm_process() as (url, made), run_server(policy) as running:
        done = run_main(running.port, url=url, folder=tmp_path, goal="red cube", steps=STEPS)
        assert done.returncode == 0, done.stderr
        check(made, policy)
    assert "Results saved to" in done.stdout
    (table,) = (tmp_path / "results").glob("*.csv")
    (row,) = csv.DictReader(table.read_text().splitlines())
    assert row["duration"] == str(STEPS - 1)
    (video,) = tmp_path.glob("*.mp4")
    assert video.stat().st_size > 1000


def save_goal(path: Path) -> np.ndarray:
    """Drives a second, like arm somewhere, saves what it then sees; returns where the tool is."""
    robot = simulated_arm()
    robot.connect(timeout_s=1.0)
    robot.arm(operator="test")
    for seq in range(8):
        twist = np.array([0.03, -0.04, -0.025, 0.0, 0.0, 0.0])
        assert robot.command(Command(seq, 0, 0.3, "twist", twist)).accepted
        robot.advance(0.25)
    robot.advance(1.0)
    seen = robot.observe(max_age_s=1.0)
    Image.fromarray(seen.frames["exterior"].image).save(path)
    robot.close()
    return seen.tcp_pos_base


@pytest.mark.slow
def test_the_unmodified_script_reaches_a_goal_of_the_shipped_model(tmp_path) -> None:
    if not os.environ.get(MAIN):
        pytest.skip(f"{MAIN} names no copy of openpi's examples/droid/main.py")
    (tmp_path / "goals").mkdir()
    goal = save_goal(tmp_path / "goals" / "there.png")
    words = ["workspace=[[0.2,-0.4,0.02],[0.75,0.4,0.6]]", f"goals={tmp_path / 'goals'}"]
    server = subprocess.Popen(
        [sys.executable, "-m", "worldmodel.cli", "serve", *words, "crop=square", "port=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        port = server.stdout.readline().strip().rpartition(":")[2]
        with arm_process() as (url, made):
            done = run_main(port, url=url, folder=tmp_path, goal="there", steps=48)
            assert done.returncode == 0, done.stderr
            (env,) = made
            last = env.robot.observe(max_age_s=1.0).tcp_pos_base
    finally:
        server.kill()
        server.wait()
        server.stdout.close()  # type: ignore[union-attr]
    assert np.linalg.norm(env.first.tcp_pos_base - goal) > 0.10
    assert np.linalg.norm(last - goal) < 0.02
