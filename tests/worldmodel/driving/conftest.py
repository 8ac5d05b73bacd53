"""A kinematic arm whose pictures say where it is, and a world model that can read them."""

import importlib.util
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from worldmodel.drive import Driver, Outcome
from worldmodel.driving.calibration import ModelFrame
from worldmodel.driving.reference import TwistLaw
from worldmodel.driving.replanning import Replanner, Schedule
from worldmodel.driving.watch import Watch
from worldmodel.driving.workers import SimulatedWorker
from worldmodel.envs.robots.interface import CameraFrame
from worldmodel.envs.robots.limits import Envelope
from worldmodel.envs.robots.safety import SafeRobot
from worldmodel.images import fit_views
from worldmodel.planners import CEM, LatentEnergy
from worldmodel.planners.gate import SurpriseGate
from worldmodel.planners.interfaces import ActionBounds
from worldmodel.planners.mpc import MPC
from worldmodel.planners.subgoals import SwitchRule
from worldmodel.pose import integrate, matrix_to_euler
from worldmodel.views import camera_names

TICK_S, STEP_S, SPEED = 0.01, 0.25, 0.1
TOKENS, LATENT = 4, 8
SEEN = [0, 1, 2, 6]  # of proprio


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fake_robot = _load(Path(__file__).parents[2] / "envs" / "robots" / "fake_robot.py")


class LinearWorld:
    """Latents are `proprio @ matrix`; an image carries its proprio in its first 28 bytes.

    What it imagines starts at the picture: it does not look at the proprio that it is given. It
    sees position and gripper; of a hand that looks straight down, roll jumps between pi and -pi.
    Of several views it believes the mean.
    """

    control_hz = 4.0
    image_size = 4
    crop = "none"

    def __init__(self, *, num_views: int = 1) -> None:
        self.num_views = num_views
        matrix = torch.zeros(7, TOKENS * LATENT)
        for column in range(TOKENS * LATENT):
            matrix[SEEN[column % 4], column] = 1.0 + column / 10
        self.matrix = matrix

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        raw = frames.unflatten(1, (-1, 1)) if self.num_views == 1 else frames
        raw = raw.flatten(3)[..., :28].contiguous().numpy()
        proprio = torch.from_numpy(raw.view(np.float32).copy()).mean(2)
        return self.latents_of(proprio)

    def read(self, latents: torch.Tensor) -> torch.Tensor:
        """The proprio that latents (..., N, D) stand for."""
        proprio = torch.zeros(*latents.shape[:-2], 7)
        proprio[..., SEEN] = latents.flatten(-2)[..., :4] / self.matrix[SEEN, :4].diagonal()
        return proprio

    def predict(self, latents, proprio, actions):
        return self.latents_of(integrate(self.read(latents), actions))

    def latents_of(self, proprio: torch.Tensor) -> torch.Tensor:
        return (proprio @ self.matrix).unflatten(-1, (TOKENS, LATENT))

    def rollout(self, latents, proprio, actions):
        pose = self.read(latents[:, -1])[:, None].expand(-1, actions.shape[1], -1)
        imagined = []
        for action in actions[:, :, latents.shape[1] - 1 :].unbind(2):
            pose = integrate(pose, action)
            imagined.append(self.latents_of(pose))
        return torch.stack(imagined, dim=2)


def image_of(proprio: np.ndarray) -> np.ndarray:
    pixels = np.zeros(48, dtype=np.uint8)
    pixels[:28] = np.asarray(proprio, dtype=np.float32).view(np.uint8)
    return pixels.reshape(4, 4, 3)


class PoseRobot(fake_robot.FakeRobot):
    """Its camera shows where it is; pictures may arrive late."""

    def __init__(self, *, camera_delay_s: float = 0.0, **settings):
        self._under_way: deque[tuple[float, dict]] = deque()
        self._delay_s = camera_delay_s
        self._arrived: dict[str, CameraFrame] = {}
        self.shown: np.ndarray | None = None  # a proprio that pictures show instead, with noise
        super().__init__(**settings)
        self._arrived = dict(self._pictures)

    @property
    def proprio(self) -> np.ndarray:
        pose = self.pose
        return np.concatenate([pose[:3, 3], matrix_to_euler(pose[:3, :3]), [self.gripper]])

    def _expose(self, *, new: bool) -> None:
        before = {name: frame.captured_at for name, frame in self._pictures.items()}
        super()._expose(new=new)
        for name, frame in self._pictures.items():
            if before.get(name) != frame.captured_at and name not in self.repeating:
                image = image_of(self.proprio if self.shown is None else self.shown)
                if self.shown is not None:
                    image.flat[-1] = round(1000 * self._now) % 256
                self._pictures[name] = CameraFrame(image, frame.captured_at)
        self._under_way.append((self._now + self._delay_s, dict(self._pictures)))
        while self._under_way and self._under_way[0][0] <= self._now + 1e-9:
            self._arrived = self._under_way.popleft()[1]

    def observe(self, *, max_age_s: float):
        newest, self._pictures = self._pictures, self._arrived
        try:
            return super().observe(max_age_s=max_age_s)
        finally:
            self._pictures = newest


@dataclass
class Rig:
    """A drive of the fake arm to `target`, on a clock that `sleep` moves."""

    latency_s: float = 0.1
    camera_delay_s: float = 0.0
    compensate: bool = True
    dry_run: bool = False
    armed: bool = True
    move: tuple[float, float, float] = (0.10, 0.06, -0.05)
    seed: int = 0
    envelope: dict = field(default_factory=dict)
    frame: ModelFrame = field(default_factory=ModelFrame.same)
    recorder: object = None
    settle_plans: int = 3
    camera: str = "exterior"
    gated: bool = False
    optional: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.fake = PoseRobot(camera_delay_s=self.camera_delay_s, optional=self.optional)
        settings = {"camera_max_age_s": 1.0, "plan_max_age_s": 1.0} | self.envelope
        box = Envelope(workspace_low=(0.2, -0.4, 0.02), workspace_high=(0.8, 0.4, 0.8), **settings)
        self.safe = SafeRobot(self.fake, box, clock=self.fake.clock)
        self.safe.connect(timeout_s=1.0)
        if self.armed and not self.dry_run:
            self.safe.arm(operator="tester")
        self.target = self.fake.position + self.move
        self.goal = self.fake.proprio
        self.goal[:3] = self.target
        self.stop_reason: str | None = None
        self.plans: list = []
        self.during = lambda: None
        self.positions: list[np.ndarray] = []
        self.robot = self.safe
        self.make()

    def make(self) -> None:
        num_views = len(camera_names(self.camera))
        world = LinearWorld(num_views=num_views)
        limits = [0.2, 0.2, 0.2, 0.0, 0.0, 0.0, 1.0]
        search = CEM(
            cost=LatentEnergy(distance="l2"),
            num_samples=48,
            num_elites=8,
            num_iterations=4,
            initial_std=0.5,
            min_std=0.001,
            hold=True,
        )
        step = torch.tensor([SPEED * STEP_S] * 3 + [0.1] * 3 + [1.0])
        self.controller = MPC(
            world,
            search,
            plan_bounds=ActionBounds.symmetric(limits),
            step_bounds=ActionBounds(low=-step, high=step),
            control_hz=4.0,
            warm_start=True,
            gripper_snap=0.25,
            switch=SwitchRule(still_m=0.01),
            seed=self.seed,
        )
        self.law = TwistLaw(lead_s=STEP_S, speed=SPEED, turn_speed=0.4)
        self.replanner = Replanner(
            self.controller,
            camera=self.camera,
            image_size=4,
            crop="none",
            frame=self.frame,
            precision="float32",
            seed=self.seed,
            watch=Watch(self.gate(world)) if self.gated else None,
        )
        goal = image_of(self.frame.to_model(self.goal))
        self.replanner.begin(fit_views([goal] * num_views, 4, "none"), sha256="0" * 64)
        self.schedule = Schedule(
            self.law, step_s=STEP_S, first_latency_s=STEP_S, compensate=self.compensate
        )
        self.worker = SimulatedWorker(
            self.replanner.plan, latency_s=self.latency_s, clock=self.fake.now
        )

    @staticmethod
    def gate(world: LinearWorld) -> SurpriseGate:
        """One that is surprised by a picture that is half a centimetre off."""

        def score(before, predicted, after):
            return 100 * (world.read(predicted) - world.read(after)).abs().amax(dim=-1)  # [cm]

        return SurpriseGate(world, score, calm_below=0.3, slow_above=0.5, hold_above=5.0)

    def sleep(self, seconds: float) -> None:
        for _ in range(round(seconds / TICK_S)):
            self.during()
            self.safe.tick()
            self.fake.advance(TICK_S)
            self.positions.append(self.fake.position.copy())

    @property
    def driver(self) -> Driver:
        return Driver(
            self.robot,
            self.replanner,
            self.worker,
            self.schedule,
            law=self.law,
            step_s=STEP_S,
            command_hz=20.0,
            max_age_s=1.0,
            plan_max_age_s=1.0,
            settle_plans=self.settle_plans,
            dry_run=self.dry_run,
            sleep=self.sleep,
            stopped=lambda: self.stop_reason,
            recorder=self.recorder,  # type: ignore[arg-type]
            on_plan=lambda planned, pose: self.plans.append((self.fake.now(), planned)),
        )

    def run(self, *, seconds: float = 15.0) -> Outcome:
        self.outcome = self.driver.run(seconds=seconds)
        return self.outcome

    @staticmethod
    def image_of(proprio: np.ndarray) -> np.ndarray:
        return image_of(proprio)

    @property
    def distance(self) -> float:
        return float(np.linalg.norm(self.fake.position - self.target))


@pytest.fixture(scope="session")
def make_rig() -> type[Rig]:
    return Rig


@pytest.fixture(scope="session")
def rig_parts():
    """What tests of single parts need of this file."""
    from types import SimpleNamespace

    return SimpleNamespace(LinearWorld=LinearWorld, PoseRobot=PoseRobot, image_of=image_of)
