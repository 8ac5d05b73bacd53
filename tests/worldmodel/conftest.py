"""Small models, and a small world of pictures, for the tests of the models and their training."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from worldmodel import checkpoint, hub
from worldmodel.data import Episode, EpisodeMetadata, EpisodeStore
from worldmodel.encoder import VideoEncoder
from worldmodel.jepa import JEPA
from worldmodel.pose import integrate
from worldmodel.predictor import ActionConditionedPredictor, RotationInput
from worldmodel.rope import RopeStyle

SIZE = 32  # pixels
ACTION_LIMIT = [0.075, 0.075, 0.075, 0.15, 0.15, 0.15, 1.0]


def _randomise(module: torch.nn.Module, seed: int) -> None:
    """Gives every weight a random value, large enough that no part of a model is nearly idle."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = 0.15 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise + 1 if "norm" in name and name.endswith("weight") else noise)


def _make_encoder(
    *, seed: int = 0, depth: int = 2, rope: RopeStyle = "interleaved"
) -> VideoEncoder:
    encoder = VideoEncoder(patch_size=8, embed_dim=24, depth=depth, num_heads=2, rope=rope)
    _randomise(encoder, seed)
    return encoder.eval()


def _make_predictor(
    *,
    seed: int = 1,
    latent_dim: int = 24,
    grid_size: tuple[int, int] = (4, 4),
    use_extrinsics: bool = False,
    residual: bool = True,
    rotation_input: RotationInput = "matrix",
    num_frequencies: int = 2,
    use_proprio: bool = True,
    num_views: int = 1,
) -> ActionConditionedPredictor:
    predictor = ActionConditionedPredictor(
        latent_dim=latent_dim,
        grid_size=grid_size,
        embed_dim=32,
        depth=2,
        num_heads=2,
        use_extrinsics=use_extrinsics,
        residual=residual,
        rotation_input=rotation_input,
        num_frequencies=num_frequencies,
        use_proprio=use_proprio,
        num_views=num_views,
    )
    _randomise(predictor, seed)
    return predictor.eval()


def _make_world(
    *,
    merge: int = 1,
    standardise: bool = False,
    use_extrinsics: bool = False,
    num_views: int = 1,
    seed: int = 0,
) -> JEPA:
    """A world model of 32-pixel images in 16 tokens (4 with merge=2), at 4 Hz."""
    world = JEPA(
        encoder=_make_encoder(seed=seed),
        predictor=_make_predictor(
            seed=seed + 1,
            latent_dim=24 * merge**2,
            grid_size=(4 // merge, 4 // merge),
            use_extrinsics=use_extrinsics,
            residual=standardise,
            num_views=num_views,
        ),
        image_size=SIZE,
        merge=merge,
        standardise=standardise,
        control_hz=4.0,
        action_limit=ACTION_LIMIT,
    )
    if standardise:
        generator = torch.Generator().manual_seed(seed + 2)
        world.latent_mean.copy_(torch.randn(world.latent_mean.shape, generator=generator))
        world.latent_std.copy_(torch.rand(world.latent_std.shape, generator=generator) + 0.5)
    return world.eval()


def _make_motion(batch: int, steps: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Returns proprio (B, steps, 7) of a hand that looks down, and actions (B, steps, 7)."""
    rng = np.random.default_rng(seed)
    limit = np.array(ACTION_LIMIT)
    actions = rng.uniform(-limit, limit, (batch, steps, 7))
    proprio = [rng.uniform(-0.1, 0.1, (batch, 7)) + [0.5, 0, 0.3, np.pi - 0.2, 0, 0.5, 0.5]]
    for t in range(steps - 1):
        proprio.append(integrate(proprio[-1], actions[:, t]))
    return torch.tensor(np.stack(proprio, axis=1)).float(), torch.tensor(actions).float()


def _picture(x: float, y: float) -> np.ndarray:
    """A soft spot at (x, y) of the unit square, uint8 (32, 32, 3)."""
    row, column = np.mgrid[:SIZE, :SIZE] / SIZE
    spot = np.exp(-((row - x) ** 2 + (column - y) ** 2) / (2 * 0.25**2))[..., None]
    return (np.array([40, 50, 60]) + spot * np.array([200, 120, -30])).astype(np.uint8)


def _spot_episode(seed: int, *, steps: int = 12) -> Episode:
    """An episode in which the camera shows a spot where proprio has x and y."""
    rng = np.random.default_rng(seed)
    proprio = [np.array([*rng.uniform(0.3, 0.7, 2), 0.3, np.pi, 0, 0, 0.5])]
    for _ in range(steps):
        after = integrate(proprio[-1], np.array([*rng.uniform(-0.15, 0.15, 2), 0, 0, 0, 0, 0]))
        after[:2] = after[:2].clip(0.2, 0.8)
        proprio.append(after)
    measured = np.stack(proprio).astype(np.float32)
    return Episode(
        frames={"exterior": np.stack([_picture(x, y) for x, y in measured[:, :2]])},
        proprio=measured,
        timestamps=np.arange(steps + 1) * 0.25,
        metadata=EpisodeMetadata(
            source="synthetic",
            task="reach",
            behaviour="random",
            seed=seed,
            control_hz=4.0,
            renderer="",
            mujoco_version="",
            cameras=("exterior",),
        ),
    )


@pytest.fixture(scope="session")
def make_encoder() -> Callable[..., VideoEncoder]:
    return _make_encoder


@pytest.fixture(scope="session")
def make_predictor() -> Callable[..., ActionConditionedPredictor]:
    return _make_predictor


@pytest.fixture(scope="session")
def make_world() -> Callable[..., JEPA]:
    return _make_world


@pytest.fixture(scope="session")
def make_motion() -> Callable[..., tuple[Tensor, Tensor]]:
    return _make_motion


@pytest.fixture(scope="session")
def spot_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An episode store of 30 episodes of the moving spot."""
    path = tmp_path_factory.mktemp("spots") / "store"
    store = EpisodeStore(path, mode="a")
    for i in range(30):
        store.write(i, _spot_episode(i))
    return path


# A run of a test module's own, in another process, that ends by kill -9 when step 6 begins.
_KILLED_RUN = """
import os, signal, sys
from importlib import import_module
from pathlib import Path
import torch
from worldmodel.training import Schedule

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
here, module, function, data, run = sys.argv[1:]
sys.path.insert(0, here)
module = import_module(module)

class Killed(Schedule):
    def __call__(self, step):
        if step == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(step)

schedule = Killed(**vars(module.SIX_STEPS))
getattr(module, function)(Path(data), Path(run), schedule=schedule)
"""


@pytest.fixture(scope="session")
def killed_at_step_six() -> Callable[[str, str, Path, Path], None]:
    def kill(module: str, function: str, data: Path, run: Path) -> None:
        here = Path(__file__).parent
        words = [sys.executable, "-c", _KILLED_RUN, here, module, function, data, run]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr

    return kill


@pytest.fixture(scope="session")
def world_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a world model that knows nothing, for 32-pixel images at 4 Hz."""
    path = tmp_path_factory.mktemp("checkpoints") / "model"
    checkpoint.save(_make_world(merge=2, standardise=True), path, provenance={"trained_by": "none"})
    return path


@pytest.fixture(scope="session")
def golden_world(shared: Path) -> JEPA:
    """The reference model with random weights, in Meta's layout."""
    folder = shared / "golden"
    return hub.load(folder / "vjepa2_ac_tiny.pt", config=folder / "vjepa2_ac_tiny.json")


@pytest.fixture(scope="session")
def golden(shared: Path) -> dict[str, Tensor]:
    """Inputs of the reference model, and the outputs of the reference implementation."""
    with np.load(shared / "golden" / "vjepa2_ac_tiny_io.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
