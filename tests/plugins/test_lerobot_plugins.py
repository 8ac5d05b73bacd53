"""The LeRobot plugins: what can be tested without LeRobot, and a session with it if there is one.

Set WORLDMODEL_LEROBOT_PYTHON to a python (3.12 or newer) that has LeRobot 0.6 and both plugins.
"""

import ast
import asyncio
import contextlib
import importlib.util
import os
import subprocess
import sys
import threading
import tomllib
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from worldmodel.envs import franka
from worldmodel.envs.control import Arm
from worldmodel.envs.robots.interface import CameraInfo, Command
from worldmodel.envs.robots.limits import Envelope
from worldmodel.envs.robots.mujoco import MujocoRobot
from worldmodel.envs.robots.safety import SafeRobot
from worldmodel.envs.robots.server import RobotServer
from worldmodel.envs.robots.wire import pack, unpack
from worldmodel.serving.chunks import Chunk
from worldmodel.serving.dialects import RequestError, metadata, read_request, write_reply
from worldmodel.serving.server import PlannerServer

ROOT = Path(__file__).parents[2]
PLUGINS = ROOT / "plugins"
NAMES = ("lerobot_robot_worldmodel", "lerobot_policy_worldmodel")
PYTHON = "WORLDMODEL_LEROBOT_PYTHON"
TIMEOUT_S = 60.0  # only ever reached by a test that fails
TURN = 0.05  # rad/s of joint 1


def load(distribution: str, *modules: str) -> list[types.ModuleType]:
    """Modules of a plugin without its `__init__`, which needs LeRobot."""
    folder = PLUGINS / distribution / distribution
    package = types.ModuleType(distribution)
    package.__path__ = [str(folder)]
    sys.modules[distribution] = package
    try:
        return [importlib.import_module(f"{distribution}.{name}") for name in modules]
    finally:
        for name in [*sys.modules]:
            if name.partition(".")[0] == distribution:
                del sys.modules[name]


(robot_mapping,) = load(NAMES[0], "mapping")
policy_mapping, planner_client = load(NAMES[1], "mapping", "planner_client")


# What LeRobot finds plugins by (read in 0.6.1, utils/import_utils.py and policies/factory.py).


def classes_of(path: Path) -> dict[str, ast.ClassDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 12))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def registered_as(node: ast.ClassDef) -> str:
    (call,) = (
        decorator
        for decorator in node.decorator_list
        if isinstance(decorator, ast.Call)
        and isinstance(decorator.func, ast.Attribute)
        and decorator.func.attr == "register_subclass"
    )
    assert isinstance(call.args[0], ast.Constant)
    return str(call.args[0].value)


@pytest.mark.parametrize("name", NAMES)
def test_a_distribution_has_the_name_of_its_package(name: str) -> None:
    project = tomllib.loads((PLUGINS / name / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["name"] == name
    assert project["tool"]["setuptools"]["packages"] == [name]
    assert project["project"]["requires-python"] == ">=3.12"
    assert (PLUGINS / name / name / "__init__.py").is_file()
    licence = (PLUGINS / name / "LICENSE").read_text(encoding="utf-8")
    assert licence == (ROOT / "LICENSE").read_text(encoding="utf-8")
    for path in (PLUGINS / name / name).glob("*.py"):
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 12))


def test_the_robot_is_where_lerobot_looks_for_it() -> None:
    folder = PLUGINS / NAMES[0] / NAMES[0]
    config = classes_of(folder / "config_worldmodel_robot.py")["WorldmodelRobotConfig"]
    assert registered_as(config) == "worldmodel"
    assert "WorldmodelRobot" in classes_of(folder / "worldmodel_robot.py")
    assert '"WorldmodelRobot"' in (folder / "__init__.py").read_text(encoding="utf-8")


def test_the_policy_is_where_lerobot_looks_for_it() -> None:
    folder = PLUGINS / NAMES[1] / NAMES[1]
    config = classes_of(folder / "configuration_worldmodel.py")["WorldmodelConfig"]
    kind = registered_as(config)
    assert kind == "worldmodel"
    assert "WorldmodelPolicy" in classes_of(folder / "modeling_worldmodel.py")
    processors = ast.parse((folder / "processor_worldmodel.py").read_text(encoding="utf-8"))
    functions = {node.name for node in processors.body if isinstance(node, ast.FunctionDef)}
    assert f"make_{kind}_pre_post_processors" in functions


# The robot's names.


def simulated(*, realtime: bool = False) -> MujocoRobot:
    camera = CameraInfo(height=48, width=64, fps=15.0)
    scene = Arm(franka.build_model())
    return MujocoRobot(scene, cameras={"exterior": camera}, realtime=realtime, backend="ray")


def test_all_names_outlive_lerobots_filter() -> None:
    names = {*robot_mapping.state_names()}
    for control in ("joint_velocity", "twist"):
        names |= {*robot_mapping.action_names(control)}
    assert all(name.endswith((".pos", ".vel")) for name in names)
    with pytest.raises(ValueError, match="joint_velocity or twist, got 'pose'"):
        robot_mapping.action_names("pose")


def test_a_state_begins_as_the_policy_wants_it() -> None:
    robot = simulated()
    robot.connect(timeout_s=1.0)
    robot.advance(0.2)
    seen = robot.observe(max_age_s=1.0)
    state = robot_mapping.state_of(seen)
    assert tuple(state) == robot_mapping.state_names()
    values = np.array([*state.values()])
    np.testing.assert_array_equal(values[:7], seen.joint_positions)
    assert values[7] == seen.gripper
    np.testing.assert_array_equal(values[8:11], seen.tcp_pos_base)
    assert robot_mapping.action_names("joint_velocity") == policy_mapping.ACTION_NAMES


@pytest.mark.parametrize("control, size", [("joint_velocity", 7), ("twist", 6)])
def test_an_action_is_a_command_and_back(control: str, size: int) -> None:
    names = robot_mapping.action_names(control)
    action = dict(zip(names, np.linspace(-0.3, 0.4, size + 1), strict=True))
    command = robot_mapping.command_of(
        action, control=control, seq=3, obs_seq=5, valid_for_s=0.2
    )  # fmt: skip
    assert (command.seq, command.obs_seq, command.valid_for_s) == (3, 5, 0.2)
    assert command.kind == control
    assert robot_mapping.action_of(command, control=control, gripper=0.9) == pytest.approx(action)
    still = robot_mapping.action_of(None, control=control, gripper=0.9)
    assert [*still.values()] == [0.0] * size + [0.9]


def test_positions_are_refused_with_advice() -> None:
    action = dict.fromkeys(robot_mapping.state_names(), 0.0)
    with pytest.raises(ValueError, match="--return_to_initial_position=false"):
        robot_mapping.command_of(
            action, control="joint_velocity", seq=0, obs_seq=0, valid_for_s=0.2
        )


# The policy's messages.


@given(
    pixels=arrays(np.uint8, st.tuples(st.integers(1, 8), st.integers(1, 8), st.just(3))),
    state=arrays(np.float32, st.integers(8, 14), elements=st.floats(0, 1, width=32)),
)
def test_a_request_is_what_the_server_reads(pixels, state) -> None:
    image = pixels.astype(np.float32).transpose(2, 0, 1) / 255  # what LeRobot makes of a picture
    request = read_request(unpack(pack(policy_mapping.request_of(state, image, "red cube"))))
    np.testing.assert_array_equal(request.image, pixels)
    np.testing.assert_array_equal(request.joints, state[:7])
    assert request.gripper == state[7]
    assert (request.dialect, request.prompt) == ("roboarena", "red cube")


@pytest.mark.parametrize("style", ["map", "array"])
def test_actions_are_in_si_units_whatever_the_replys_style(style) -> None:
    speeds = np.linspace(-0.4, 0.4, 7)  # rad/s
    rows = np.tile(np.append(speeds / 15 / 0.2, 1.0), (4, 1))
    frame = write_reply(
        Chunk(rows=rows, gripper=1.0, notes=()),
        dialect="roboarena",
        timing={"infer_ms": 1.0},
        style=style,
    )
    actions = policy_mapping.actions_of(unpack(frame))
    assert actions.shape == (4, 8)
    np.testing.assert_allclose(actions[0], np.append(speeds, 1.0), rtol=1e-6)


def test_says_what_is_wrong_with_an_observation_or_a_server() -> None:
    image, state = np.zeros((3, 4, 4), np.float32), np.zeros(8, np.float32)
    with pytest.raises(ValueError, match="must begin with seven joints and the gripper"):
        policy_mapping.request_of(state[:6], image, "red cube")
    with pytest.raises(ValueError, match="expected an image"):
        policy_mapping.request_of(state, image[:2], "red cube")
    with pytest.raises(ValueError, match="name a goal"):
        policy_mapping.request_of(state, image, "")
    with pytest.raises(ValueError, match="expected rows of eight numbers"):
        policy_mapping.actions_of({"actions": np.zeros((4, 7))})
    policy_mapping.check_metadata(metadata(image_size=128, action_space="joint_velocity"))
    with pytest.raises(ValueError, match="must be joint_velocity, got 'cartesian_velocity'"):
        policy_mapping.check_metadata(metadata(image_size=128, action_space="cartesian_velocity"))
    both = metadata(image_size=128, action_space="joint_velocity", cameras=("exterior", "wrist"))
    with pytest.raises(ValueError, match="the server's model sees the wrist camera"):
        policy_mapping.check_metadata(both)


# Against our servers.


class Turning:
    """A policy that turns joint 1."""

    def __init__(self, action_space="joint_velocity"):
        self.metadata = metadata(image_size=None, action_space=action_space)
        self.requests, self.fails_with = [], None

    def infer(self, request, session):
        self.requests.append(request)
        if self.fails_with is not None:
            raise self.fails_with
        rows = np.zeros((4, 8))
        rows[:, 0] = TURN / 15 / 0.2
        return Chunk(rows=rows, gripper=0.0, notes=())


@contextlib.contextmanager
def serving(run):
    """The port of a server, while it runs in a thread; `run` is its coroutine function."""
    found, listening = {}, threading.Event()

    async def serve():
        found["stop"], found["loop"] = asyncio.Event(), asyncio.get_running_loop()

        def ready(port):
            found["port"] = port
            listening.set()

        await run(host="127.0.0.1", port=0, tls=None, stop=found["stop"], ready=ready)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="server")
    thread.start()
    assert listening.wait(TIMEOUT_S)
    try:
        yield found["port"]
    finally:
        found["loop"].call_soon_threadsafe(found["stop"].set)
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()


def planner_server(policy):
    server = PlannerServer(policy, token=None, reply_style="map", max_connections=4)
    return serving(server.run)


def a_request():
    return policy_mapping.request_of(np.zeros(8), np.zeros((3, 4, 4), np.float32), "red cube")


def test_the_client_asks_and_opens_a_new_connection_after_a_refusal() -> None:
    policy = Turning()
    with planner_server(policy) as port:
        client = planner_client.PlannerClient(
            f"ws://127.0.0.1:{port}", token_file=None, timeout_s=TIMEOUT_S
        )
        actions = policy_mapping.actions_of(client.ask(a_request()))
        np.testing.assert_allclose(actions[:, 0], TURN, rtol=1e-6)
        policy.fails_with = RequestError("unknown_goal", "'red cube'; available: mug")
        with pytest.raises(ConnectionError, match="refused: unknown_goal: 'red cube'"):
            client.ask(a_request())
        policy.fails_with = None
        assert policy_mapping.actions_of(client.ask(a_request())).shape == (4, 8)
        client.close()
    with pytest.raises(ConnectionError, match=f"planner server at ws://127.0.0.1:{port}"):
        client.ask(a_request())


def test_the_client_refuses_a_server_with_another_action_space() -> None:
    with planner_server(Turning(action_space="cartesian_velocity")) as port:
        client = planner_client.PlannerClient(
            f"ws://127.0.0.1:{port}", token_file=None, timeout_s=TIMEOUT_S
        )
        with pytest.raises(ValueError, match="action_space=joint_velocity"):
            client.ask(a_request())


# With LeRobot itself.


@pytest.fixture
def lerobot(tmp_path):
    python = os.environ.get(PYTHON)
    if not python:
        pytest.skip(f"{PYTHON} names no python that has LeRobot and the plugins")

    def call(program: str, *words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [python, str(Path(__file__).with_name("lerobot_session.py")), program, *words],
            env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=900,
        )

    return call


@pytest.mark.slow
def test_lerobot_records_replays_and_rolls_out(lerobot, tmp_path) -> None:
    sim = simulated(realtime=True)
    envelope = Envelope(
        workspace_low=(0.1, -0.5, 0.02),
        workspace_high=(0.8, 0.5, 0.9),
        camera_max_age_s=2.0,  # the machine may be slow
        state_max_age_s=2.0,
        plan_max_age_s=5.0,
    )
    safe = SafeRobot(sim, envelope, tick_hz=50, clock=sim.now)
    server = RobotServer(safe, token=None, recorder=None)
    policy = Turning()
    with serving(server.run) as port, planner_server(policy) as planner_port:
        robot = [
            "--robot.type=worldmodel",
            f"--robot.url=ws://127.0.0.1:{port}",
            "--robot.operator=test",
            "--robot.cameras={exterior: {height: 48, width: 64, fps: 15}}",
            "--robot.max_age_s=5.0",
            "--robot.valid_for_s=0.3",
        ]
        dataset = ["--dataset.repo_id=me/turns", f"--dataset.root={tmp_path / 'turns'}"]

        def check(program: str, *words: str) -> None:
            """Joint 1 turns, and nothing else; how far depends on how busy the machine is."""
            before, accepted = (
                sim.observe(max_age_s=10.0).joint_positions,
                safe.counters["accepted"],
            )
            done = lerobot(program, *robot, *words)
            said = f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}\n{safe.counters}"
            assert done.returncode == 0, said
            way = sim.observe(max_age_s=10.0).joint_positions - before
            assert 0.002 < way[0] < 4 * TURN + 0.05, said
            assert np.abs(way[1:]).max() < 0.01
            assert safe.counters["accepted"] > accepted + 2, said

        check(
            "record",
            *dataset,
            "--teleop.type=constant",
            f"--teleop.speed={TURN}",
            "--dataset.fps=10",
            "--dataset.num_episodes=1",
            "--dataset.episode_time_s=4",
            "--dataset.reset_time_s=0",
            "--dataset.single_task=red cube",
            "--dataset.video=false",
            "--dataset.push_to_hub=false",
            "--dataset.no_stamp=true",
            "--play_sounds=false",
        )
        check("replay", *dataset, "--dataset.episode=0", "--play_sounds=false")
        check(
            "rollout",
            "--policy.type=worldmodel",
            f"--policy.url=ws://127.0.0.1:{planner_port}",
            "--task=red cube",
            "--fps=15",
            "--duration=4",
            "--return_to_initial_position=false",
            "--play_sounds=false",
        )
    assert {request.prompt for request in policy.requests} == {"red cube"}
    assert policy.requests[0].image.shape == (48, 64, 3)
    assert not any(name.startswith("fault") for name in safe.counters)


def test_a_hold_is_no_action() -> None:
    held = Command(1, 0, 0.2, "joint_velocity", np.zeros(7), None)
    action = robot_mapping.action_of(held, control="joint_velocity", gripper=0.4)
    assert [*action.values()] == [0.0] * 7 + [0.4]
