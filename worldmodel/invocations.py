"""Runs many calls of the `worldmodel` program, each once, in order of need, here or through Ray.

Each call has a folder of its own: `out/` is what the verb writes, `log.txt` what it printed,
`settings.json` what was asked for, and `done.json` is there once it has succeeded. A call that is
done is never made again, and one that was stopped goes on where it was, because every verb does.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from worldmodel.extras import require
from worldmodel.names import unknown
from worldmodel.runs import write_json

Status = Literal["done", "failed", "stopped", "needs", "busy"]
EXECUTORS = ("local", "ray")
PLACES = {"collect": "out", "convert": "out", "encode": "cache"}  # verbs not named here: run
POLL_SECONDS = 0.1
STOP_SECONDS = 20.0  # a verb that was asked to stop gets so long before it is killed


@dataclass(frozen=True)
class Invocation:
    """One call of a verb.

    Attributes:
        name: What it is called in messages.
        verb: The verb.
        overrides: Its settings, in Hydra's form, without the one that says where it writes.
        folder: Folder of this call alone.
        identity: Hash of all that decides its result; a folder holds results of one identity only.
        needs: Folders of the calls that must be done before.
    """

    name: str
    verb: str
    overrides: tuple[str, ...]
    folder: Path
    identity: str
    needs: tuple[Path, ...] = ()

    @property
    def out(self) -> Path:
        """Folder the verb writes to."""
        return self.folder / "out"

    @property
    def words(self) -> list[str]:
        """What follows `worldmodel` on the command line."""
        return [self.verb, *self.overrides, f"{PLACES.get(self.verb, 'run')}={self.out}"]

    @property
    def done(self) -> bool:
        """Whether it has succeeded, with these very settings.

        Raises:
            ValueError: The folder belongs to a call with other settings or other weights.
        """
        for name in ("settings.json", "done.json"):
            file = self.folder / name
            if file.exists() and json.loads(file.read_text())["identity"] != self.identity:
                raise ValueError(
                    f"{self.folder} holds results of other settings or weights (see {file}), and "
                    f"{self.name} now is {' '.join(self.words)}; name another run=..., or remove "
                    "that folder"
                )
        return (self.folder / "done.json").exists()


@dataclass(frozen=True)
class Outcome:
    """What became of every call, in the order they were given.

    Attributes:
        statuses: "done"; "failed", with an error; "stopped", by the time limit; "needs", a call
            that must come first is not done; "busy", another process is at it.
    """

    statuses: dict[Path, Status]

    @property
    def failed(self) -> list[Path]:
        """Folders of the calls that ended with an error."""
        return [folder for folder, status in self.statuses.items() if status == "failed"]

    @property
    def complete(self) -> bool:
        """Whether all are done."""
        return all(status == "done" for status in self.statuses.values())

    @property
    def exit_status(self) -> int:
        """0 all done, 1 something failed, 3 nothing failed and the same command goes on."""
        return 1 if self.failed else 0 if self.complete else 3


@dataclass(frozen=True)
class Executor:
    """Where calls are run.

    Attributes:
        kind: "local" or "ray".
        workers: Calls at once ("local").
        minutes: Time for all of them together; then the running ones are stopped. None is no limit.
        cpus: Cores that Ray sets aside for a call.
        gpus: GPUs likewise; may be a fraction.
        address: Ray cluster; None is the one of RAY_ADDRESS, or else this machine alone. All its
            machines must see the same files at the same paths.
        show: Whether a call's progress is shown, and not only logged ("local", one worker).
    """

    kind: str = "local"
    workers: int = 1
    minutes: float | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    address: str | None = None
    show: bool = False

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.kind not in EXECUTORS:
            raise ValueError(unknown("executor", self.kind, EXECUTORS))
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")
        if self.minutes is not None and self.minutes <= 0:
            raise ValueError(f"minutes must be above 0, or null for no limit, got {self.minutes}")

    def run(
        self, invocations: Iterable[Invocation], *, say: Callable[[str], None] = print
    ) -> Outcome:
        """Runs all that are not done; one that fails stops only those that need it.

        Args:
            invocations: The calls; each after those it needs. Those with one folder are one call.
            say: Takes a line about each call that ends.

        Raises:
            ValueError: A call stands before one it needs, or its folder holds other results.
        """
        unique: dict[Path, Invocation] = {}
        for call in invocations:
            missing = [str(folder) for folder in call.needs if folder not in unique]
            if missing:
                raise ValueError(
                    f"{call.name} needs {', '.join(missing)}, which must stand before it"
                )
            unique.setdefault(call.folder, call)
        statuses: dict[Path, Status] = {f: "done" for f, call in unique.items() if call.done}
        todo = [call for folder, call in unique.items() if folder not in statuses]
        deadline = None if self.minutes is None else time.time() + 60 * self.minutes
        if statuses:
            say(f"{len(statuses)} of {len(unique)} were done already")
        if todo:
            run = _run_local if self.kind == "local" else _run_ray
            run(todo, statuses, executor=self, deadline=deadline, total=len(unique), say=say)
        return Outcome({folder: statuses[folder] for folder in unique})


@dataclass
class _Process:
    """A call that runs."""

    invocation: Invocation
    popen: subprocess.Popen[bytes]
    lock: IO[str]
    log: IO[bytes]
    started: float = field(default_factory=time.time)


def _run_local(
    todo: Sequence[Invocation],
    statuses: dict[Path, Status],
    *,
    executor: Executor,
    deadline: float | None,
    total: int,
    say: Callable[[str], None],
) -> None:
    waiting, running = list(todo), list[_Process]()
    try:
        while waiting or running:
            if deadline is not None and time.time() >= deadline:
                break
            for process in [p for p in running if p.popen.poll() is not None]:
                running.remove(process)
                statuses[process.invocation.folder] = _finish(process, stopped=False)
                _report(process.invocation, statuses, total=total, say=say)
            for call in list(waiting):
                states = [statuses.get(folder) for folder in call.needs]
                if any(state not in ("done", None) for state in states):
                    waiting.remove(call)
                    statuses[call.folder] = "needs"
                elif all(state == "done" for state in states) and len(running) < executor.workers:
                    waiting.remove(call)
                    process = _start(call, show=executor.show)
                    if process is None:
                        statuses[call.folder] = "busy"
                    else:
                        running.append(process)
            time.sleep(POLL_SECONDS)
    finally:
        for process in running:
            _interrupt(process)
        for process in running:
            statuses[process.invocation.folder] = _finish(process, stopped=True)
            _report(process.invocation, statuses, total=total, say=say)
    for call in waiting:
        statuses[call.folder] = "stopped"


def _run_ray(
    todo: Sequence[Invocation],
    statuses: dict[Path, Status],
    *,
    executor: Executor,
    deadline: float | None,
    total: int,
    say: Callable[[str], None],
) -> None:
    ray = require("ray", extra="ray")
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(address=executor.address, log_to_driver=False)
    try:
        task = ray.remote(num_cpus=executor.cpus, num_gpus=executor.gpus, max_retries=0)(_run_one)
        tasks: dict[Path, object] = {}
        for call in todo:
            before = [tasks[folder] for folder in call.needs if folder in tasks]
            tasks[call.folder] = task.remote(call, os.getcwd(), deadline, *before)
        calls = {ref: call for ref, call in zip(tasks.values(), todo, strict=True)}
        pending = list(tasks.values())
        try:
            while pending:
                ready, pending = ray.wait(pending)
                call = calls[ready[0]]
                statuses[call.folder] = ray.get(ready[0])
                _report(call, statuses, total=total, say=say)
        finally:  # of Ctrl-C: every task stops its verb before it ends
            for ref in pending:
                ray.cancel(ref)
            if pending:
                ray.wait(pending, num_returns=len(pending), timeout=2 * STOP_SECONDS)
    finally:
        if started_here:
            ray.shutdown()


def _run_one(
    invocation: Invocation, folder: str, deadline: float | None, *before: Status
) -> Status:
    """Runs one call on whichever machine Ray chose, from the folder the program was started in."""
    os.chdir(folder)
    if any(status != "done" for status in before):
        return "needs"
    statuses: dict[Path, Status] = dict.fromkeys(invocation.needs, "done")
    _run_local(
        [invocation],
        statuses,
        executor=Executor(),
        deadline=deadline,
        total=1,
        say=lambda _: None,
    )
    return statuses[invocation.folder]


def _start(invocation: Invocation, *, show: bool) -> _Process | None:
    """Starts a call, unless another process, on this machine or another, is at it."""
    invocation.folder.mkdir(parents=True, exist_ok=True)
    # The child inherits the lock, so it is held as long as either lives.
    lock = (invocation.folder / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    settings = {"identity": invocation.identity, "command": ["worldmodel", *invocation.words]}
    write_json(invocation.folder / "settings.json", settings)
    log = (invocation.folder / "log.txt").open("ab")
    popen = subprocess.Popen(
        [sys.executable, "-m", "worldmodel.cli", *invocation.words],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=None if show else log,
        pass_fds=(lock.fileno(),),
        start_new_session=True,  # so that its own workers can be stopped with it
    )
    return _Process(invocation, popen, lock, log)


def _interrupt(process: _Process) -> None:
    """Stops a call and its workers as Ctrl-C does; what does not listen is killed."""
    group = process.popen.pid
    for sign, seconds in ((signal.SIGINT, STOP_SECONDS), (signal.SIGKILL, None)):
        try:
            os.killpg(group, sign)
            process.popen.wait(seconds)
            return
        except ProcessLookupError:
            process.popen.wait()
            return
        except subprocess.TimeoutExpired:
            continue


def _finish(process: _Process, *, stopped: bool) -> Status:
    """Closes the books on a call that has ended."""
    invocation, code = process.invocation, process.popen.returncode
    process.log.close()
    process.lock.close()
    if code != 0:
        return "stopped" if stopped else "failed"
    seconds = round(time.time() - process.started, 1)
    write_json(
        invocation.folder / "done.json", {"identity": invocation.identity, "seconds": seconds}
    )
    return "done"


def _report(
    invocation: Invocation,
    statuses: dict[Path, Status],
    *,
    total: int,
    say: Callable[[str], None],
) -> None:
    status = statuses[invocation.folder]
    ended = sum(value == "done" for value in statuses.values())
    said = {"done": last_line, "failed": _failure}.get(status, lambda _: status)(invocation)
    say(f"[{ended}/{total}] {invocation.name}: {said}")


def _failure(invocation: Invocation) -> str:
    return f"failed: {last_line(invocation)} (look at {invocation.folder / 'log.txt'})"


def last_line(invocation: Invocation) -> str:
    """Returns the last line a call printed, by the program's custom the number that matters."""
    lines = (invocation.folder / "log.txt").read_text(errors="replace").splitlines()
    return lines[-1].strip() if lines else ""
