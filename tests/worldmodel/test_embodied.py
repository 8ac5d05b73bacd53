"""Arms that speak in joints: new input layers on a predictor that is kept."""

import importlib.util
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from worldmodel import checkpoint
from worldmodel.adaln_predictor import AdaLNPredictor
from worldmodel.cli import main
from worldmodel.data import EpisodeStore
from worldmodel.data.source import open_source
from worldmodel.embodied import Embodied, learn_to_speak, read_joints
from worldmodel.encode import latent_job
from worldmodel.jepa import JEPA
from worldmodel.planners import CEM, MPC, ActionBounds, LatentEnergy
from worldmodel.state_errors import JointError
from worldmodel.training import Schedule
from worldmodel.validate import measure
from worldmodel.validation.held_out import read_held_out

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("train_on_spots", HERE / "test_train.py")
assert spec is not None and spec.loader is not None
spots = importlib.util.module_from_spec(spec)
spec.loader.exec_module(spots)
SIX_STEPS, metrics_of, run_train = spots.SIX_STEPS, spots.metrics_of, spots.run_train
TURN = np.array([[0.6, -0.8], [0.8, 0.6], [1.0, 1.0]])  # how three joints move as x and y do


@pytest.fixture(scope="module")
def jointed(spot_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The episodes of the moving spot, of an arm with three joints that say where it is."""
    path = tmp_path_factory.mktemp("jointed") / "store"
    store, jointed = EpisodeStore(spot_store), EpisodeStore(path, mode="a")
    for i in range(30):
        episode = store.read(i)
        joints = (episode.proprio[:, :2] @ TURN.T).astype(np.float32)
        jointed.write(i, replace(episode, joints=joints))
    return path


@pytest.fixture(scope="module")
def started(spot_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the first arm, which has learned where the spot goes."""
    run = tmp_path_factory.mktemp("started") / "run"
    learning = Schedule(name="cosine", peak=1e-2, steps=60, warmup_steps=5)
    run_train(spot_store, run, schedule=learning, validate_every=60)
    return run / "model"


def speaking(world, moves: Tensor, *, joint_head: bool = False) -> None:
    joints = {0: np.random.default_rng(0).normal(size=(50, moves.shape[-1])).astype(np.float32)}
    learn_to_speak(world, "arm", joints, moves, joint_head=joint_head, seed=0)


def test_new_layers_are_added_and_the_rest_is_kept(make_world, make_motion) -> None:
    world, before = make_world(merge=2, standardise=True), make_world(merge=2, standardise=True)
    moves = torch.randn(40, 4) * torch.tensor([0.5, 0.1, 0.2, 0.0])
    speaking(world, moves)
    kept = before.state_dict()
    added = {k: v for k, v in world.state_dict().items() if k not in kept}
    assert all(torch.equal(world.state_dict()[name], value) for name, value in kept.items())
    assert {name.split(".")[1:3] == ["embodiment_encoders", "arm"] for name in added} == {True}
    robot = world.predictor.embodiment_encoders["arm"]
    assert (robot.action_encoder.in_features, robot.state_encoder.in_features) == (4, 4)
    torch.testing.assert_close(robot.action_std[:3], moves.std(0)[:3])
    assert robot.action_std[3] == 0.01  # of a joint that rests

    proprio, actions = make_motion(2, 3)
    latents = torch.randn(2, 3, 4, 96)
    with torch.inference_mode():  # the first arm is spoken to as before
        assert torch.equal(
            world.predict(latents, proprio, actions), before.predict(latents, proprio, actions)
        )
    speaking(world, moves)  # it has them already
    with pytest.raises(ValueError, match="knows 'arm' with 3 joints, the recordings have 5"):
        speaking(world, torch.randn(40, 6))


def test_a_head_of_its_own_reads_the_joints_and_proposes_their_change(
    make_world, tmp_path: Path
) -> None:
    world = make_world(merge=2, standardise=True)
    speaking(world, torch.randn(40, 4))
    now, goal = torch.randn(2, 3, 4, 96)
    with pytest.raises(ValueError, match="no head that reads the joints of 'arm'.*state_weight"):
        Embodied(world, "arm").propose(now, torch.zeros(3, 4), goal)

    speaking(world, torch.randn(40, 4), joint_head=True)  # it has the layers, and gets a head
    arm = Embodied(world, "arm")
    assert arm.joint_head is not None
    states = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)  # as in `speaking`
    np.testing.assert_allclose(arm.joint_head.joints_mean, states.mean(0), rtol=1e-4, atol=1e-6)
    with torch.inference_mode():
        here, there = arm.joint_head(now), arm.joint_head(goal)
        proposed = arm.propose(now, torch.zeros(3, 4), goal)
    torch.testing.assert_close(here + proposed, there)
    assert ((here[:, -1] >= 0) & (here[:, -1] <= 1)).all()
    assert proposed[:, :3].abs().min() > 1e-4
    before = arm.joint_head
    speaking(world, torch.randn(40, 4), joint_head=True)
    assert world.joint_heads["arm"] is before  # one that was trained is kept

    checkpoint.save(world, tmp_path, provenance={})
    again = Embodied(checkpoint.load(tmp_path), "arm")
    with torch.inference_mode():
        assert torch.equal(again.propose(now, torch.zeros(3, 4), goal), proposed)
    with pytest.raises(ValueError, match=r"joint head 'arm' 4 of size 96"):
        speaking_small = make_world(standardise=True)
        JEPA(
            encoder=speaking_small.encoder,
            predictor=speaking_small.predictor,
            image_size=speaking_small.image_size,
            joint_heads={"arm": before},
        )


def test_plans_in_joints_are_imagined_step_by_step(make_world) -> None:
    world = make_world(merge=2, standardise=True)
    speaking(world, torch.randn(40, 4))
    arm = Embodied(world, "arm")
    latents, proprio = torch.randn(2, 2, 4, 96), torch.randn(2, 2, 4)
    proprio[..., -1] = 0.5  # a gripper, which no plan below opens or closes wholly
    plans = 0.05 * torch.randn(2, 3, 4, 4)  # one action between the two frames, then three
    plans[:, :, 0] = plans[:, :1, 0]
    with torch.inference_mode():
        imagined = arm.rollout(latents, proprio, plans)
        assert imagined.shape == (2, 3, 3, 4, 96)
        first = arm.predict(latents, proprio, plans[:, 1, :2])[:, -1]
        torch.testing.assert_close(imagined[:, 1, 0], first, rtol=1e-4, atol=1e-5)
        frames = torch.cat((latents, first[:, None]), dim=1)
        states = torch.cat((proprio, proprio[:, -1:] + plans[:, 1, 1:2]), dim=1)
        second = arm.predict(frames, states, plans[:, 1, :3])[:, -1]
        torch.testing.assert_close(imagined[:, 1, 1], second, rtol=1e-4, atol=1e-5)
        assert (imagined[:, 0, 0] - imagined[:, 1, 0]).abs().max() > 1e-4


def test_a_controller_plans_in_the_joints_of_the_arm_it_is_of(make_world) -> None:
    world = make_world(merge=2, standardise=True)
    moves = 0.2 * torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    speaking(world, moves)
    arm = Embodied(world, "arm")
    assert arm.action_limit == pytest.approx(moves.abs().quantile(0.99, dim=0).tolist())
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    cem = CEM(cost=LatentEnergy(), num_samples=16, num_elites=4, num_iterations=2)
    controller = MPC(
        arm,
        cem,
        plan_bounds=ActionBounds.symmetric(arm.action_limit),
        step_bounds=ActionBounds.symmetric([0.05] * 4),
        control_hz=arm.control_hz or 4.0,
        num_context=2,
    )
    controller.set_goal(frames[1])
    joints = np.array([[0.1, -0.2, 0.3, 0.5]], np.float32)
    for _ in range(2):
        (decision,) = controller.act(frames[:1], joints)
        assert decision.action.shape == (4,) and (np.abs(decision.action) <= 0.05 + 1e-6).all()
        assert decision.plan.actions.abs().max() > 0
        joints = joints + decision.action


def test_an_arm_that_a_model_was_never_told_of_is_refused(make_world) -> None:
    world = make_world(merge=2, standardise=True)
    with pytest.raises(ValueError, match="never told of the embodiment 'arm'; it knows none"):
        Embodied(world, "arm")
    speaking(world, torch.randn(40, 4))
    with pytest.raises(ValueError, match="never told of the embodiment 'leg'; it knows arm"):
        Embodied(world, "leg")


def test_joints_are_those_of_the_cached_rows(jointed: Path, tmp_path: Path) -> None:
    encoder, image_size = checkpoint.load_encoder(spots.save_an_encoder(tmp_path / "encoder"))
    cache = latent_job(
        encoder=encoder,
        image_size=image_size,
        source=open_source(jointed),
        cache=tmp_path / "cache",
        camera="exterior",
        merge=2,
        device="cpu",
        model_hz=2.0,  # half of the recordings' rate
    ).build()
    assert cache is not None
    joints = read_joints(open_source(jointed), cache, [3, 7])
    assert joints[7].shape == (7, 4)
    np.testing.assert_allclose(joints[7][:, :3], cache.proprio(7)[:, :2] @ TURN.T, rtol=1e-5)
    np.testing.assert_array_equal(joints[7][:, 3], cache.proprio(7)[:, 6])


@pytest.mark.parametrize("lora_rank", [None, 4])
def test_an_arm_of_another_action_size_learns_faster_from_a_model_that_exists(
    started: Path, jointed: Path, tmp_path: Path, lora_rank: int | None
) -> None:
    quick = Schedule(name="cosine", peak=1e-2, steps=30, warmup_steps=3)
    told = {"embodiment": "arm", "state_weight": 0.0, "validate_every": 30, "measure_every": 30}
    run_train(jointed, tmp_path / "scratch", schedule=quick, **told)
    tuned = run_train(
        jointed,
        tmp_path / "tuned",
        schedule=quick,
        finetune=str(started),
        lora_rank=lora_rank,
        **told,
    )
    fresh, line = metrics_of(tmp_path / "scratch")[-1], metrics_of(tmp_path / "tuned")[-1]
    assert line["identity_ratio"] < 0.95 * fresh["identity_ratio"]
    assert line["robot_free_shuffled_action_ratio"] < fresh["robot_free_shuffled_action_ratio"]
    assert line["robot_free_argmin_error_deg"] < fresh["robot_free_argmin_error_deg"]
    assert "robot_free_argmin_error_cm" not in line and tuned.state_error is None

    world, first = checkpoint.load(tuned.checkpoint), checkpoint.load(started)
    assert world.predictor.embodiments == {"arm": (4, 4)}
    for name in ("action_encoder", "state_encoder"):  # those of the first arm are left alone
        layer, before = getattr(world.predictor, name), getattr(first.predictor, name)
        assert torch.equal(layer.weight, before.weight), name
    assert checkpoint.read_config(tuned.checkpoint)["provenance"]["embodiment"] == "arm"


@pytest.fixture(scope="module")
def taught(started: Path, jointed: Path, tmp_path_factory: pytest.TempPathFactory):
    """The result of teaching the arm's joints to the model that exists."""
    return run_train(
        jointed,
        tmp_path_factory.mktemp("taught") / "run",
        schedule=Schedule(name="cosine", peak=1e-2, steps=60, warmup_steps=3),
        embodiment="arm",
        validate_every=60,
        finetune=str(started),
    )


def test_the_head_learns_the_joints_and_the_first_arm_keeps_its_own(
    taught, started: Path, jointed: Path
) -> None:
    store = EpisodeStore(jointed)
    joints = np.concatenate([store.read(i).joints for i in store.ids()])
    spread = np.rad2deg(np.abs(joints - joints.mean(0)).mean())
    error, lines = taught.state_error, metrics_of(taught.checkpoint.parent)
    assert isinstance(error, JointError)
    assert error.joints_deg < 0.5 * spread and error.joints_deg <= error.worst_joint_deg
    assert lines[-1]["state_joints_deg"] == error.joints_deg
    assert checkpoint.read_config(taught.checkpoint)["provenance"]["state_error"] == asdict(error)

    world, first = checkpoint.load(taught.checkpoint), checkpoint.load(started)
    assert first.state_head is not None and world.state_head is not None
    kept, before = world.state_head.state_dict(), first.state_head.state_dict()
    assert all(torch.equal(kept[name], before[name]) for name in before)


def test_wrong_actions_are_worse_than_the_right_joints(taught) -> None:
    assert taught.validation_loss < 0.8 * taught.shuffled_loss


FEW = ["windows=40", "horizon=2", "candidates=4", "searches=16", "samples=32", "iterations=3"]
FEW += ["plan_steps=1", "episodes=12"]


def test_validate_measures_an_arm_in_its_joints(
    taught, jointed: Path, tmp_path: Path, capsys
) -> None:
    words = ["validate", f"checkpoint={taught.checkpoint}", f"data={jointed}", *FEW]
    assert main([*words, "embodiment=arm", f"run={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert out.strip().splitlines()[-1].endswith("degrees a joint off")
    numbers = json.loads((tmp_path / "validation.json").read_text())
    argmin = numbers["joint_argmin"]
    assert numbers["identity_ratio"] < 0.9 and numbers["shuffled_action_ratio"] < 0.9
    assert numbers["action_ranking"]["top1"] > 0.4  # chance: a quarter
    assert numbers["argmin_error_deg"] < argmin["still_error_deg"]
    assert len(argmin["mean_absolute_deg"]) == 3 and len(argmin["limits"]) == 4
    told = ", ".join(f"{off:.1f}" for off in argmin["mean_absolute_deg"])
    assert f"| {told} " in out
    pictures = {"latent_errors", "action_ranking", "joint_argmin"}
    assert {file.stem for file in tmp_path.glob("*.png")} == pictures
    assert not list(tmp_path.glob("camera_rotation*"))

    def refused(*more: str) -> str:
        assert main([*words, f"run={tmp_path / 'again'}", *more]) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "never told of the embodiment 'leg'; it knows arm" in refused("embodiment=leg")
    assert "fresh episodes are of the simulated arm" in refused("embodiment=arm", "data=null")
    assert "limits must be 4 numbers" in refused("embodiment=arm", "limits=[1,1,1,1,1,1,1]")


def test_measures_in_joints_worsen_when_joints_are_taken_for_others(taught, jointed: Path) -> None:
    class Mistaken(Embodied):
        def rollout(self, latents, proprio, actions):
            return super().rollout(latents, proprio, actions[..., [1, 2, 0, 3]])

    world = checkpoint.load(taught.checkpoint)
    arm, wrong = Embodied(world, "arm"), Mistaken(world, "arm")
    held_out = read_held_out(
        arm,
        open_source(jointed),
        camera="exterior",
        hz=4.0,
        frames=2,
        windows=60,
        episodes=12,
        seed=0,
        space=arm.action_space,
        progress=False,
    )
    few = {"horizon": 1, "candidates": 8, "searches": 24, "samples": 32, "iterations": 4}
    good, bad = (
        measure(one, held_out, **few, plan_steps=1, seed=0, progress=False) for one in (arm, wrong)
    )
    assert bad.to_json()["identity_ratio"] > good.to_json()["identity_ratio"] + 0.1
    assert bad.ranking.top1 < good.ranking.top1 - 0.1
    assert bad.argmin.error_deg > 1.1 * good.argmin.error_deg


def test_what_an_embodiment_cannot_have_is_refused(
    started: Path, spot_store: Path, jointed: Path, make_world, tmp_path: Path
) -> None:
    def run(store: Path, **changes) -> None:
        run_train(store, tmp_path / "run", schedule=SIX_STEPS, embodiment="arm", **changes)

    with pytest.raises(ValueError, match="has no joints, .*leave embodiment out"):
        run(spot_store, state_weight=0.0)
    with pytest.raises(ValueError, match="was never told of the embodiment 'arm'"):
        run(jointed, state_weight=0.0, compare_with=str(started))
    world = make_world(merge=2, standardise=True)
    world.predictor = AdaLNPredictor(
        latent_dim=96, grid_size=(2, 2), embed_dim=32, depth=1, num_heads=2
    )
    with pytest.raises(ValueError, match="AdaLNPredictor speaks in end-effector poses only"):
        speaking(world, torch.randn(40, 4))
    with pytest.raises(ValueError, match="speaks in end-effector poses; leave"):
        world.predict(
            torch.randn(1, 2, 4, 96), torch.randn(1, 2, 4), torch.randn(1, 2, 4), embodiment="arm"
        )
