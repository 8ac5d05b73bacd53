"""A model of several cameras, from recordings over training to plans."""

import contextlib
import io
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from worldmodel import checkpoint, cli
from worldmodel.clips import View, read_clips
from worldmodel.closed_loop import PlannerSettings, make_controller
from worldmodel.data.episode import Episode, EpisodeMetadata
from worldmodel.data.latent_views import LatentViews
from worldmodel.data.latents import LatentCache
from worldmodel.data.source import open_source
from worldmodel.data.store import EpisodeStore
from worldmodel.embodied import Embodied, learn_to_speak
from worldmodel.encode import latent_job
from worldmodel.encoder_probes import probe_errors
from worldmodel.fleet import Body
from worldmodel.images import fit_frames
from worldmodel.joined_views import JoinedViews, check_cameras, joined
from worldmodel.landscape import (
    draw_landscape,
    energy_landscape,
    fit_pair,
    read_pair,
    recorded_pair,
    simulated_pair,
)
from worldmodel.plan import plan, read_goals
from worldmodel.planners import CEM, MPC, GoalImage, LatentEnergy
from worldmodel.planners.camera_rotation import TurnedWorld
from worldmodel.predictor import ActionConditionedPredictor
from worldmodel.train import TrainResult, train
from worldmodel.training import Schedule
from worldmodel.validation.held_out import read_held_out
from worldmodel.views import camera_names, side_by_side

SIZE = 32
BOTH = ("front", "side")
SETTINGS = PlannerSettings(
    search=CEM(cost=LatentEnergy(), num_samples=8, num_elites=2, num_iterations=2),
    axes=("x", "y", "z"),
    limits=None,
    warm_start=True,
    replan_every=1,
    num_context=1,
    deadline_ms=None,
    precision="float32",
)


def bar(at: float) -> np.ndarray:
    """A bright band across a picture, at this height."""
    rows = np.arange(SIZE) / SIZE
    band = np.exp(-((rows - at) ** 2) / (2 * 0.15**2))
    return (np.broadcast_to(band[:, None, None], (SIZE, SIZE, 3)) * 200 + 20).astype(np.uint8)


def recording(seed: int, *, steps: int = 12) -> Episode:
    """The front camera shows x and nothing else, the one at the side y and nothing else."""
    rng = np.random.default_rng(seed)
    proprio = np.tile(np.array([0.5, 0.5, 0.3, np.pi, 0, 0, 0.5], np.float32), (steps + 1, 1))
    turns = np.arange(steps + 1)[:, None] * rng.uniform(0.3, 0.5, 2) + rng.uniform(0, 6, 2)
    proprio[:, :2] = 0.5 + 0.35 * np.sin(turns)
    return Episode(
        frames={
            "front": np.stack([bar(x) for x in proprio[:, 0]]),
            "side": np.stack([bar(y) for y in proprio[:, 1]]),
        },
        proprio=proprio,
        timestamps=np.arange(steps + 1) * 0.25,
        metadata=EpisodeMetadata(
            source="synthetic",
            task="reach",
            behaviour="random",
            seed=seed,
            control_hz=4.0,
            renderer="",
            mujoco_version="",
            cameras=BOTH,
        ),
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("two_cameras") / "store"
    writer = EpisodeStore(path, mode="a")
    for seed in range(30):
        writer.write(seed, recording(seed))
    return path


@pytest.fixture(scope="module")
def caches(store: Path, tmp_path_factory, make_encoder) -> dict[str, LatentCache]:
    folder = tmp_path_factory.mktemp("cache")
    jobs = {camera: job_of(store, folder, make_encoder(), camera) for camera in BOTH}
    return {camera: built(job) for camera, job in jobs.items()}


def job_of(store: Path, cache: Path, encoder, camera: str):
    return latent_job(
        encoder=encoder,
        image_size=SIZE,
        source=open_source(store),
        cache=cache,
        camera=camera,
        merge=2,
        device="cpu",
    )


def built(job) -> LatentCache:
    cache = job.build()
    assert cache is not None
    return cache


def trained(store: Path, run: Path, encoder, cameras: tuple[str, ...]) -> TrainResult:
    run.mkdir(exist_ok=True)
    jobs = [job_of(store, run.parent / "cache", encoder, camera) for camera in cameras]
    caches = [built(job) for job in jobs]
    return train(
        build_predictor=partial(ActionConditionedPredictor, embed_dim=48, depth=2, num_heads=2),
        job=jobs[0],
        latents=LatentViews(caches) if len(caches) > 1 else caches[0],
        encoder_provenance={},
        run=run,
        window=3,
        strides=[1],
        rollout_steps=2,
        schedule=Schedule(name="cosine", peak=1e-2, steps=60, warmup_steps=5),
        batch_size=32,
        weight_decay=0.0,
        validation_fraction=0.2,
        seed=0,
        device="cpu",
        log_every=60,
        validate_every=60,
        measure_every=60,
        measured_windows=32,
        measured_searches=4,
        save_every=60,
        distance="l2",
    )


@pytest.fixture(scope="module")
def runs(store: Path, tmp_path_factory, make_encoder) -> dict[str, TrainResult]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        "+".join(cameras): trained(store, folder / "_".join(cameras), make_encoder(), cameras)
        for cameras in (("front",), BOTH)
    }


# Names and pictures.


def test_a_setting_names_one_camera_or_several() -> None:
    assert camera_names("wrist") == ("wrist",)
    assert camera_names("front+wrist") == ("front", "wrist")


@pytest.mark.parametrize("camera", ["", "front+", "front+front"])
def test_no_name_or_a_name_twice_is_refused(camera: str) -> None:
    with pytest.raises(ValueError, match="several different ones joined by +"):
        camera_names(camera)


def test_views_are_shown_side_by_side() -> None:
    views = np.stack([np.full((4, 5, 3), value, np.uint8) for value in (1, 2)])
    assert side_by_side(views)[0, :, 0].tolist() == [1] * 5 + [2] * 5
    assert side_by_side(views[0]) is not None and side_by_side(views[0]).shape == (4, 5, 3)


# The model.


@pytest.mark.parametrize("standardise", [False, True])
def test_joined_tokens_are_those_of_the_views(make_world, make_motion, standardise: bool) -> None:
    world = make_world(num_views=2, merge=2, standardise=standardise)
    seen = joined(world)
    assert isinstance(seen, JoinedViews)
    frames = torch.randint(0, 256, (3, 2, 2, SIZE, SIZE, 3), dtype=torch.uint8)
    proprio, actions = make_motion(3, 4)
    with torch.inference_mode():
        apart, together = world.encode(frames), seen.encode(frames)
        assert torch.equal(together, torch.cat([apart[:, :, 0], apart[:, :, 1]], dim=2))
        predicted = world.predict(apart, proprio[:, :2], actions[:, :2])
        assert torch.equal(
            seen.predict(together, proprio[:, :2], actions[:, :2]),
            torch.cat([predicted[:, :, 0], predicted[:, :, 1]], dim=2),
        )
        plans = actions[:, None].repeat(1, 5, 1, 1)
        imagined = world.rollout(apart, proprio[:, :2], plans)  # (B, S, H, V, N, D)
        joint = seen.rollout(together, proprio[:, :2], plans)
        assert torch.equal(joint, torch.cat([imagined[..., 0, :, :], imagined[..., 1, :, :]], -2))


def test_each_view_has_scales_of_its_own(make_world) -> None:
    world = make_world(num_views=2, merge=2, standardise=True)
    frames = torch.randint(0, 256, (1, 1, 1, SIZE, SIZE, 3), dtype=torch.uint8)
    first, second = world.encode(frames.repeat(1, 1, 2, 1, 1, 1))[0, 0]
    mean, std = world.latent_mean.chunk(2), world.latent_std.chunk(2)
    raw = [one * s + m for one, m, s in zip((first, second), mean, std, strict=True)]
    torch.testing.assert_close(*raw, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(first, second)


def test_a_model_of_one_camera_stays_as_it_is(make_world) -> None:
    world = make_world()
    assert joined(world) is world
    check_cameras(world, "front")


def test_the_wrong_number_of_cameras_is_refused(make_world) -> None:
    with pytest.raises(ValueError, match=r"camera=front names 1, but .* sees 2 at once; name them"):
        check_cameras(make_world(num_views=2), "front")
    with pytest.raises(ValueError, match=r"camera=a\+b names 2, but .* sees 1 at once; name one"):
        check_cameras(make_world(), "a+b")
    frames = torch.zeros(1, 1, SIZE, SIZE, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"shape \(batch, frames, 2, 32, 32, 3\)"):
        make_world(num_views=2).encode(frames)


# The latents.


def test_rows_have_the_tokens_of_all_cameras(caches: dict[str, LatentCache]) -> None:
    both = LatentViews([caches[camera] for camera in BOTH])
    assert both.cameras == BOTH and both.ids.tolist() == caches["front"].ids.tolist()
    episodes, frames = np.array([4, 9]), np.array([[0, 1], [3, 5]])
    parts = [caches[camera].gather(episodes, frames) for camera in BOTH]
    assert not np.array_equal(*parts)
    assert np.array_equal(both.gather(episodes, frames), np.concatenate(parts, axis=2))
    assert both.timestamps(4).tolist() == caches["front"].timestamps(4).tolist()
    moments, single = both.moments([1, 2, 3]), caches["side"].moments([1, 2, 3])
    assert moments.mean.shape[0] == 2 * single.mean.shape[0]
    assert np.array_equal(moments.mean[single.mean.shape[0] :], single.mean)
    assert np.array_equal(moments.std[single.std.shape[0] :], single.std)


def test_an_episode_that_one_camera_lacks_is_left_out(
    caches: dict[str, LatentCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    front, side = caches["front"], caches["side"]
    monkeypatch.setattr(side, "ids", side.ids[3:])
    both = LatentViews([front, side])
    assert both.ids.tolist() == front.ids[3:].tolist()
    assert both.quarantined == front.ids[:3].tolist()
    monkeypatch.setattr(side, "ids", side.ids[:0])
    with pytest.raises(ValueError, match="no episode has latents of all of front, side"):
        LatentViews([front, side])


def test_other_rows_and_other_rates_are_refused(
    caches: dict[str, LatentCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    front, side = caches["front"], caches["side"]
    with monkeypatch.context() as patch:
        patch.setattr(side, "timestamps", lambda i: front.timestamps(i)[:-1])
        with pytest.raises(ValueError, match="the rows of episode 0 are not the same"):
            LatentViews([front, side])
    monkeypatch.setattr(side, "hz", 5.0)
    with pytest.raises(ValueError, match="side are at 5 Hz, those of front at 4 Hz"):
        LatentViews([front, side])


# Training.


def test_an_encoder_is_shown_the_pictures_of_all_cameras(store: Path) -> None:
    view = View(open_source(store), "front+side")
    clips = read_clips(view, [3, 5])
    assert clips.ids == [3, 3, 5, 5] and clips.num_episodes == 2
    for number, camera in enumerate(BOTH):
        shown = EpisodeStore(store).read(5).frames[camera][:]
        assert np.array_equal(clips.frames[2 + number], shown)
    assert read_clips(view, [3, 5, 7], frames_in_memory=20).num_episodes == 1


def test_a_probe_knows_what_only_one_camera_sees(store: Path, make_encoder) -> None:
    errors = [
        probe_errors(
            make_encoder(),
            View(open_source(store), camera),
            list(range(24)),
            list(range(24, 30)),
            merge=2,
            device=torch.device("cpu"),
        ).position_cm
        for camera in ("front", "front+side")
    ]
    assert errors[1] < 0.2 * errors[0]


def test_cameras_of_two_sizes_are_brought_to_one(tmp_path: Path) -> None:
    writer = EpisodeStore(tmp_path / "store", mode="a")
    one = recording(0)
    frames = {**one.frames, "side": np.zeros((13, 16, 16, 3), np.uint8)}
    writer.write(0, replace(one, frames=frames))
    view = View(open_source(tmp_path / "store"), "front+side")
    with pytest.raises(ValueError, match="camera side of episode 0 shows 16 pixels, others 32"):
        read_clips(view, [0])
    clips = read_clips(replace(view, image_size=SIZE, crop="square"), [0])
    assert [one.shape[1] for one in clips.frames] == [SIZE, SIZE]


def test_what_only_one_camera_sees_is_read_with_both(runs: dict[str, TrainResult]) -> None:
    one, two = runs["front"].state_error, runs["front+side"].state_error
    assert one is not None and two is not None
    assert two.y_cm < 0.2 * one.y_cm  # the front camera cannot tell
    assert max(one.x_cm, two.x_cm) < 2


def test_the_joints_of_an_arm_are_read_from_all_cameras(runs: dict[str, TrainResult]) -> None:
    world = checkpoint.load(runs["front+side"].checkpoint)
    joints = {0: np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)}
    learn_to_speak(world, "arm", joints, torch.randn(20, 4), joint_head=True, seed=0)
    arm = Embodied(joined(world), "arm")
    pictures = np.stack([[bar(0.4), bar(0.6)], [bar(0.4), bar(0.3)]])  # the side alone differs
    with torch.inference_mode():
        here, there = arm.encode(torch.from_numpy(pictures)[None])[0].split(1)
        assert arm.propose(here, torch.zeros(1, 4), there)[0, :3].abs().max() > 1e-4
        assert not arm.propose(here, torch.zeros(1, 4), here).any()


def test_it_proposes_the_move_to_a_goal_that_each_camera_shows_half_of(
    runs: dict[str, TrainResult],
) -> None:
    world = joined(checkpoint.load(runs["front+side"].checkpoint))
    here, there = ((0.4, 0.6), (0.55, 0.45))
    frames = np.stack([np.stack([bar(x), bar(y)]) for x, y in (here, there)])
    latents = world.encode(torch.from_numpy(frames)[None])[0]
    action = world.propose(latents[:1], torch.zeros(1, 7), latents[1:])[0]
    assert action[:2].tolist() == pytest.approx([0.15, -0.15], abs=0.04)


def test_a_trained_model_says_what_it_sees(runs: dict[str, TrainResult]) -> None:
    folder = runs["front+side"].checkpoint
    world = checkpoint.load(folder)
    assert world.predictor.num_views == 2
    assert world.latent_mean.shape == (2 * 4, 96)
    stored = checkpoint.read_config(folder)["provenance"]
    assert stored["camera"] == "front+side"
    assert "robot_free_argmin_error_cm" in stored and "robot_free_ranking_top1" in stored


def test_held_out_windows_show_all_cameras(store: Path, runs: dict[str, TrainResult]) -> None:
    world = checkpoint.load(runs["front+side"].checkpoint)
    settings = {"hz": 4.0, "frames": 3, "windows": 8, "episodes": 4, "seed": 0, "progress": False}
    source = open_source(store)
    held_out = read_held_out(joined(world), source, camera="front+side", **settings)
    assert held_out.latents.shape == (8, 3, 8, 96)
    turned = read_held_out(joined(world), source, camera="side+front", **settings)
    assert not torch.allclose(held_out.latents, turned.latents)
    with pytest.raises(KeyError, match="unknown camera 'sid'; did you mean 'side'"):
        read_held_out(joined(world), source, camera="front+sid", **settings)


def test_cameras_of_two_sizes_cannot_be_measured(tmp_path: Path, make_world) -> None:
    writer = EpisodeStore(tmp_path / "store", mode="a")
    one = recording(0)
    frames = {**one.frames, "side": np.zeros((13, 16, 16, 3), np.uint8)}
    writer.write(0, replace(one, frames=frames))
    with pytest.raises(ValueError, match=r"differ in size \(front 32x32, side 16x16\)"):
        read_held_out(
            joined(make_world(num_views=2)),
            open_source(tmp_path / "store"),
            camera="front+side",
            hz=4.0,
            frames=2,
            windows=2,
            episodes=1,
            seed=0,
            progress=False,
        )


def test_going_on_from_a_model_of_another_number_of_cameras_is_refused(
    store: Path, runs: dict[str, TrainResult], tmp_path: Path, make_encoder
) -> None:
    words = [
        "train",
        f"data={store}",
        "camera=front",
        "merge=2",
        f"encoder_checkpoint={runs['front+side'].checkpoint}",
        f"cache={tmp_path / 'cache'}",
        "window=3",
        "strides=[1]",
        f"run={tmp_path / 'run'}",
    ]
    for setting in ("finetune", "compare_with"):
        said = failing([*words, f"{setting}={runs['front+side'].checkpoint}"])
        assert "camera" in said and "2" in said and "1" in said, said


def failing(words: list[str]) -> str:
    """What a call that is refused says."""
    out = io.StringIO()
    with contextlib.redirect_stderr(out), contextlib.redirect_stdout(io.StringIO()):
        status = cli.main(words)
    assert status != 0
    return out.getvalue()


def test_a_landscape_is_drawn_of_all_cameras(
    store: Path, runs: dict[str, TrainResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model knows from either camera half of the move that was made."""
    pair = recorded_pair(open_source(store), 3, (5, 6), camera="front+side")
    episode = EpisodeStore(store).read(3)
    assert np.array_equal(pair.frames[1, 1], episode.frames["side"][6])
    assert pair.name.endswith("front+side, rows 5 and 6")
    world = joined(checkpoint.load(runs["front+side"].checkpoint))
    whole = energy_landscape(world, pair.frames, pair.proprio, points=3)
    still = pair.frames.copy()
    still[1, 1] = still[0, 1]  # the camera at the side sees no move
    other = energy_landscape(world, still, pair.proprio, points=3)
    assert not np.allclose(whole.energies, other.energies)
    monkeypatch.chdir(tmp_path)
    folder = runs["front+side"].checkpoint
    words = ["landscape", f"checkpoint={folder}", f"data={store}", "points=3", "run=out"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert cli.main([*words, "camera=front+side", "episode=3", "rows=[5,6]"]) == 0
    drawn = draw_landscape(whole).axes[0].images[0].get_array()
    assert drawn is not None and drawn.shape == (SIZE, 2 * SIZE, 3)
    assert "names 1, but this model sees 2 at once" in failing([*words, "camera=front"])
    assert "unknown camera 'sid'; did you mean 'side'" in failing([*words, "camera=front+sid"])


def test_a_pair_of_two_cameras_is_read_fitted_and_simulated(tmp_path: Path, make_world) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (1, 2, 2, 40, 50, 3), np.uint8)
    states = np.zeros((1, 2, 7), np.float32)
    np.savez(tmp_path / "pair.npz", observations=frames, states=states)
    pair = read_pair(tmp_path / "pair.npz")
    fitted = fit_pair(pair, make_world(num_views=2))
    assert pair.frames.shape == (2, 2, 40, 50, 3) and fitted.frames.shape == (2, 2, SIZE, SIZE, 3)
    assert np.array_equal(fitted.frames[:, 1], fit_frames(frames[0, :, 1], SIZE, "square"))
    shown = simulated_pair(image_size=16, camera="exterior+wrist", backend="ray")
    assert shown.frames.shape == (2, 2, 16, 16, 3)


# Planning.


def controller(world) -> MPC:
    limit = np.array([0.075] * 3 + [0.15] * 3 + [1.0], np.float32)
    body = Body(control_hz=4.0, action_low=-limit, action_high=limit, renderer="ray")
    return make_controller(world, SETTINGS, body, device=torch.device("cpu"))


def test_a_controller_looks_through_all_cameras(make_world) -> None:
    world = make_world(num_views=2, merge=2)
    rng = np.random.default_rng(0)
    now, there = rng.integers(0, 256, (2, 2, SIZE, SIZE, 3), np.uint8)
    mpc = controller(world)
    mpc.set_goals([[GoalImage(there)]])
    state = np.array([[0.5, 0, 0.3, 3.1, 0, 0, 0.5]], np.float32)
    (decision,) = mpc.act(now[None], state)
    with torch.inference_mode():
        pair = joined(world).encode(torch.from_numpy(np.stack([now, there])[None]))[0]
    assert decision.energy_now == pytest.approx(float((pair[0] - pair[1]).abs().mean()), rel=1e-5)
    blind = now.copy()
    blind[1] = there[1]  # the second view alone changes the energy
    (after,) = mpc.act(blind[None], state)
    assert after.energy_now < decision.energy_now


@pytest.mark.usefixtures("without_shape_checks")
def test_images_of_another_number_of_cameras_are_refused(make_world) -> None:
    mpc = controller(make_world(num_views=2, merge=2))
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    with pytest.raises(ValueError, match=r"goal image must have shape \(2, height, width, 3\)"):
        mpc.set_goals([[GoalImage(image)]])
    mpc.set_goals([[GoalImage(np.stack([image] * 2))]])
    with pytest.raises(ValueError, match=r"images must have shape \(B, 2, height, width, 3\)"):
        mpc.act(np.zeros((1, 3, SIZE, SIZE, 3), np.uint8), np.zeros((1, 7), np.float32))
    with pytest.raises(ValueError, match="goal image is 16x16 pixels"):
        small = GoalImage(np.zeros((2, 16, 16, 3), np.uint8))
        mpc.set_goals([[GoalImage(np.stack([image] * 2)), small]])


def test_a_camera_that_stands_elsewhere_keeps_its_views(make_world) -> None:
    world = joined(make_world(num_views=2, merge=2))
    assert TurnedWorld(world, np.eye(2)).num_views == 2


def test_a_plan_is_made_and_drawn_with_two_cameras(tmp_path: Path, make_world) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (SIZE, SIZE)).save(tmp_path / f"{name}.png")
    world = make_world(num_views=2, merge=2)
    files = Path(f"{tmp_path / 'a.png'}+{tmp_path / 'b.png'}")
    assert read_goals(files, world=world).shape == (2, SIZE, SIZE, 3)
    with pytest.raises(ValueError, match=r"sees 2 cameras at once, and goal=.* names 1 image"):
        read_goals(tmp_path / "a.png", world=world)
    for goal in (None, files):
        plan(
            world=world,
            settings=SETTINGS,
            run=tmp_path,
            task="reach",
            variation="none",
            goal=goal,
            steps=2,
            seed=0,
            camera="exterior+wrist",
            backend="ray",
            device="cpu",
        )
        with Image.open(tmp_path / "filmstrip.png") as strip:
            assert strip.width > strip.height


def test_the_cameras_of_the_training_in_another_order_are_refused(
    runs: dict[str, TrainResult], tmp_path: Path
) -> None:
    said = failing(
        [
            "evaluate",
            f"checkpoint={runs['front+side'].checkpoint}",
            "camera=side+front",
            f"run={tmp_path / 'run'}",
        ]
    )
    assert "was trained with camera=front+side, in this order" in said


def test_a_verb_for_one_camera_says_so(runs: dict[str, TrainResult], tmp_path: Path) -> None:
    said = failing(
        [
            "surprise",
            "test=physics",
            f"checkpoint={runs['front+side'].checkpoint}",
            f"run={tmp_path / 'run'}",
        ]
    )
    assert "sees 2 cameras at once, and this verb shows one" in said
