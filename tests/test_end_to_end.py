"""The whole way, by the program alone: record, look, pretrain, train, encode, evaluate, plan."""

import json
from pathlib import Path

import pytest

from worldmodel import checkpoint
from worldmodel.cli import main
from worldmodel.data import EpisodeStore

STEPS = "{name: cosine, peak: 1.0e-3, steps: 3, warmup_steps: 1}"


def test_an_arm_is_recorded_and_a_model_of_it_trained_and_made_to_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def worldmodel(*words: str) -> list[str]:
        status = main(list(words))
        out = capsys.readouterr()
        assert status == 0, out.err
        return out.out.strip().splitlines()

    recording = ["collect", "out=reach", "episodes=8", "steps=5", "image_size=32", "seed=3"]
    lines = worldmodel(*recording, "backends=[ray]", "workers=1")
    assert lines[0] == "writing to reach"
    assert lines[-1].startswith("8 episodes recorded, 0 were there already")
    lines = worldmodel(*recording, "backends=[ray]", "workers=1")  # again: nothing is left to do
    assert lines[-1].startswith("0 episodes recorded, 8 were there already")
    assert len(EpisodeStore("reach")) == 8

    lines = worldmodel("inspect", "reach", "run=look", "--check")
    assert lines[-1].startswith("8 episodes, 0 errors")
    assert Path("look/contact_sheet.png").read_bytes().startswith(b"\x89PNG")

    lines = worldmodel(
        "pretrain",
        "data=reach",
        "run=pretrain",
        "encoder.patch_size=4",
        "encoder.embed_dim=24",
        "encoder.depth=2",
        "encoder.num_heads=2",
        "objective.levels=[0,1]",
        "objective.predictor_dim=24",
        "objective.predictor_depth=1",
        "objective.predictor_heads=2",
        f"schedule={STEPS}",
        "batch_size=4",
        "validation_fraction=0.3",
        "device=cpu",
    )
    assert lines[0] == "writing to pretrain"
    assert "a linear probe places the hand within" in lines[-1]
    (hint,) = (line for line in lines if "next: worldmodel train" in line)
    encoder = hint.split()[-1]
    assert encoder == "encoder_checkpoint=pretrain/encoder"

    cached = worldmodel("encode", "data=reach", encoder, "cache=latents", "device=cpu")
    assert cached[-1].startswith("latents of 8 episodes in latents/")

    lines = worldmodel(
        "train",
        "data=reach",
        encoder,
        "cache=latents",
        "run=train",
        "predictor.embed_dim=24",
        "predictor.depth=1",
        "predictor.num_heads=2",
        "strides=[1,2]",
        f"schedule={STEPS}",
        "batch_size=4",
        "validation_fraction=0.3",
        "device=cpu",
        "dtype=float16",
    )
    assert lines[-1].startswith("held-out l2 ")
    assert len(list(Path("latents").iterdir())) == 1  # what `encode` cached was not encoded again
    world = checkpoint.load("train/model")
    assert (world.image_size, world.control_hz, world.merge) == (32, 4.0, 2)

    acting = ["checkpoint=train/model", "backend=ray", "steps=2", "planner.search.num_samples=16"]
    few = ["planner.search.num_samples_first=16", "planner.search.num_proposals=4"]
    measuring = ["episodes=2", "videos=1", "workers=1", "oracle_episodes=1", "run=evaluate"]
    lines = worldmodel("evaluate", *acting, *few, *measuring, "--json")
    numbers = json.loads("\n".join(lines))
    episodes = {row["policy"]: row["episodes"] for row in numbers["rows"]}
    assert episodes == {"planner": 2, "expert": 2, "oracle": 1, "random": 2, "do_nothing": 2}
    assert numbers["settings"]["checkpoint"] == "train/model"
    assert Path("evaluate/report.html").is_file()

    lines = worldmodel("plan", *acting, "planner=vjepa2_cem", "run=plan")
    assert lines[-1].endswith("cm from the goal")
    assert Path("plan/episode.mp4").stat().st_size > 0
