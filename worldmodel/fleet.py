"""Many simulated arms stepped in parallel, in this process or in worker processes.

    scene = Scene(task="reach", variation="none", image_size=128, camera="exterior",
                  backend="auto", control_hz=4.0, max_steps=16)
    with Fleet(scene, num_arms=8, workers=2) as fleet:
        starts = fleet.reset(seeds)           # one per arm
        views = fleet.step(actions)           # (8, 7)
        for index, result in fleet.map(function, items):  # function(env, item), as they finish
            ...

What an arm does depends on its seed and actions alone, not on the number of arms or workers.
"""

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Protocol, Self

import gymnasium
import numpy as np

from worldmodel import envs
from worldmodel.envs.cameras import Backend

if TYPE_CHECKING:
    from worldmodel.envs.franka_env import Subgoal

# One thread per worker process: more would only make the workers wait for each other.
_ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "LP_NUM_THREADS": "0",  # llvmpipe, OpenGL without a GPU: draw in the calling thread
}


@dataclass(frozen=True)
class Scene:
    """Which environment every arm lives in; see `worldmodel.envs.make`."""

    task: str
    variation: str
    image_size: int
    camera: str
    backend: Backend
    control_hz: float
    max_steps: int | None

    def make(self) -> gymnasium.Env:
        """Builds one arm's environment."""
        return envs.make(
            self.task,
            image_size=self.image_size,
            camera=self.camera,
            backend=self.backend,
            control_hz=self.control_hz,
            render_mode="rgb_array",
            max_episode_steps=self.max_steps,
            variation=self.variation,
        )


@dataclass(frozen=True, eq=False)
class Body:
    """What a controller must know of an arm before it drives it.

    Attributes:
        control_hz: Steps per simulated second.
        action_low: Smallest action of a step (7,), physical units.
        action_high: Largest.
        renderer: Which renderer draws, "gl" or "ray".
    """

    control_hz: float
    action_low: np.ndarray
    action_high: np.ndarray
    renderer: str


@dataclass(frozen=True, eq=False)
class View:
    """One arm at one moment.

    Attributes:
        image: What its camera shows, uint8 RGB (size, size, 3).
        proprio: Measured arm state (7,).
        features: State of the simulator (n,), for analysis and privileged baselines.
        distance: To the goal [m].
        success: Whether the goal is held.
        ended: Whether the episode is over.
    """

    image: np.ndarray
    proprio: np.ndarray
    features: np.ndarray
    distance: float
    success: bool
    ended: bool


@dataclass(frozen=True, eq=False)
class Start:
    """How an episode begins.

    Attributes:
        view: The first view.
        subgoals: What to reach one after the other; the last one is the goal.
        goal_rejections: Placements drawn again because they were solved at the start or not
            solvable.
    """

    view: View
    subgoals: "tuple[Subgoal, ...]"
    goal_rejections: int


class Arms:
    """Some arms in this process."""

    def __init__(self, environments: Sequence[gymnasium.Env]) -> None:
        """Takes environments of `worldmodel.envs`, one an arm."""
        self.environments = tuple(environments)

    def body(self) -> Body:
        """Returns what is the same of every arm."""
        env = self.environments[0]
        space, inner = env.action_space, _inner(env)
        assert isinstance(space, gymnasium.spaces.Box)
        return Body(
            control_hz=inner.control_hz,
            action_low=space.low,
            action_high=space.high,
            renderer=inner.renderer_name,
        )

    def reset(self, seeds: Sequence[int]) -> list[Start]:
        """Begins an episode with each of the first len(seeds) arms."""
        return [reset(env, seed) for env, seed in zip(self.environments, seeds, strict=False)]

    def step(self, actions: Sequence[np.ndarray | None]) -> list[View | None]:
        """Moves each of the first len(actions) arms by one action (7,); None lets an arm wait."""
        return [
            None if action is None else step(env, action)
            for env, action in zip(self.environments, actions, strict=False)
        ]

    def run(self, function: Callable[[gymnasium.Env, Any], Any], item: Any) -> Any:
        """Returns `function(env, item)` for the first arm's environment."""
        return function(self.environments[0], item)

    def close(self) -> None:
        """Frees what the environments hold."""
        for env in self.environments:
            env.close()


def reset(env: gymnasium.Env, seed: int) -> Start:
    """Begins an episode."""
    inner = _inner(env)
    rejected_before = inner.goal_rejections
    observation, info = env.reset(seed=seed)
    return Start(
        view=_view(inner, observation, info, ended=False),
        subgoals=inner.subgoals,
        goal_rejections=inner.goal_rejections - rejected_before,
    )


def step(env: gymnasium.Env, action: np.ndarray) -> View:
    """Moves by one action (7,)."""
    observation, _, terminated, truncated, info = env.step(action)
    return _view(_inner(env), observation, info, ended=terminated or truncated)


def _inner(env: gymnasium.Env) -> Any:
    return env.unwrapped  # a FrankaEnv; gymnasium's type does not say so


def _view(inner: Any, observation: Any, info: dict[str, Any], *, ended: bool) -> View:
    return View(
        image=observation["image"],
        proprio=observation["proprio"],
        features=inner.features(),
        distance=float(info["distance"]),
        success=bool(info["success"]),
        ended=ended,
    )


class _Worker(Protocol):
    """Where some of the arms are. Every `ask` is followed by one `answer`."""

    num_arms: int

    def ask(self, command: str, *arguments: Any) -> None: ...
    def answer(self) -> Any: ...
    def close(self) -> None: ...


class _Here:
    """Arms in this process."""

    def __init__(self, scene: Scene, num_arms: int) -> None:
        self.num_arms = num_arms
        self._arms = Arms([scene.make() for _ in range(num_arms)])

    def ask(self, command: str, *arguments: Any) -> None:
        self._question = command, arguments

    def answer(self) -> Any:
        command, arguments = self._question
        return getattr(self._arms, command)(*arguments)

    def close(self) -> None:
        self._arms.close()


class _Elsewhere:
    """Arms in a process of their own."""

    def __init__(self, scene: Scene, num_arms: int) -> None:
        self.num_arms = num_arms
        # Spawned, not forked: an OpenGL context does not survive a fork.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, scene, num_arms), daemon=True)
        self._process.start()
        theirs.close()  # so that the end of the process is seen as the end of the pipe

    def ask(self, command: str, *arguments: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # `answer` tells how the process ended
            self.connection.send((command, arguments))

    def answer(self) -> Any:
        try:
            done, answer = self.connection.recv()
        except (EOFError, ConnectionResetError) as error:
            self._process.join()
            raise RuntimeError(
                f"a simulation process ended with exit code {self._process.exitcode}; run the same "
                "again to go on from the finished episodes, with fewer workers if memory ran out"
            ) from error
        if not done:
            raise answer
        return answer

    def close(self) -> None:
        # Nothing of theirs is worth waiting for: what counts has been answered.
        self.connection.close()
        self._process.terminate()
        self._process.join()


def _serve(connection: Connection, scene: Scene, num_arms: int) -> None:
    """Does what is asked through the pipe, until it is closed."""
    # Ctrl-C reaches every process of the terminal; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(_ONE_THREAD)  # torch, if a function needs it, is loaded after this
    arms = None
    while True:
        try:
            command, arguments = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            arms = arms or Arms([scene.make() for _ in range(num_arms)])
            answer = True, getattr(arms, command)(*arguments)
        except Exception as error:  # whatever it is, it belongs to the parent
            error.add_note(f"in a simulation process:\n{traceback.format_exc()}")
            answer = False, error
        try:
            connection.send(answer)
        except BrokenPipeError:
            return


class Fleet:
    """Arms in lockstep; each call is answered when all have done their part."""

    def __init__(self, scene: Scene, *, num_arms: int, workers: int) -> None:
        """Builds the arms.

        Args:
            scene: Where every arm lives.
            num_arms: How many.
            workers: Processes they are divided among, at most `num_arms`; with 1 they live in
                this process.

        Raises:
            ValueError: A number is out of range, or the scene cannot be made.
        """
        if not 1 <= workers <= num_arms:
            raise ValueError(f"expected 1 <= workers <= num_arms, got {workers} and {num_arms}")
        self.scene, self.num_arms = scene, num_arms
        self._workers: list[_Worker] = []
        try:
            for share in np.array_split(np.arange(num_arms), workers):
                kind = _Here if workers == 1 else _Elsewhere
                self._workers.append(kind(scene, len(share)))
            self.body: Body = self._everywhere([("body",)] * workers)[0]
            """What is the same of every arm."""
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes it."""
        self.close()

    def close(self) -> None:
        """Frees the environments and ends the processes."""
        for worker in self._workers:
            worker.close()
        self._workers.clear()

    def reset(self, seeds: Sequence[int]) -> list[Start]:
        """Begins an episode with each of the first len(seeds) arms.

        Raises:
            ValueError: There are more seeds than arms.
        """
        return self._lockstep("reset", seeds)

    def step(self, actions: Sequence[np.ndarray | None]) -> list[View | None]:
        """Moves each of the first len(actions) arms by one action (7,); None lets an arm wait.

        Raises:
            ValueError: There are more actions than arms, or an action cannot be done.
        """
        return self._lockstep("step", actions)

    def map(
        self, function: Callable[[gymnasium.Env, Any], Any], items: Iterable[Any]
    ) -> Iterator[tuple[int, Any]]:
        """Yields (index, function(env, item)) for every item, in the order in which they finish.

        Args:
            function: Gets an environment, which it resets, and an item. It crosses to other
                processes, so it is defined at the top of a module.
            items: What to do; each worker takes the next one when it is free.
        """
        waiting = iter(enumerate(items))
        busy: list[tuple[_Worker, int]] = []

        def employ(worker: _Worker) -> None:
            for index, item in waiting:
                worker.ask("run", function, item)
                busy.append((worker, index))
                break

        for worker in self._workers:
            employ(worker)
        while busy:
            worker, index = ready = _first_ready(busy)
            busy.remove(ready)
            answer = worker.answer()
            employ(worker)
            yield index, answer

    def _lockstep(self, command: str, parts: Sequence[Any]) -> list[Any]:
        if len(parts) > self.num_arms:
            raise ValueError(f"{command} got {len(parts)} parts for {self.num_arms} arms")
        questions, first = [], 0
        for worker in self._workers:
            questions.append((command, list(parts[first : first + worker.num_arms])))
            first += worker.num_arms
        return [answer for answers in self._everywhere(questions) for answer in answers]

    def _everywhere(self, questions: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Asks every worker its question, then waits for all answers."""
        for worker, question in zip(self._workers, questions, strict=True):
            worker.ask(*question)
        return [worker.answer() for worker in self._workers]


def _first_ready(busy: Sequence[tuple[_Worker, int]]) -> tuple[_Worker, int]:
    """Returns the worker whose answer is there first, and the index it works on."""
    worker, index = busy[0]
    if isinstance(worker, _Here):
        return worker, index
    connections = {one.connection: (one, i) for one, i in busy if isinstance(one, _Elsewhere)}
    ready = wait(list(connections))[0]
    assert isinstance(ready, Connection)
    return connections[ready]
