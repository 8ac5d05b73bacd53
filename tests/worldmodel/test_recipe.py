from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from worldmodel.cli import compose
from worldmodel.invocations import Executor
from worldmodel.pipeline import plan_stages, read_stages
from worldmodel.recipe import measured, run_recipe

RECORD = {"episodes": 1, "steps": 2, "image_size": 32, "backends": ["ray"], "workers": 1}
STAGES = {
    "recordings": {"verb": "collect", "settings": RECORD},
    "look": {"verb": "inspect", "settings": {"data": "{recordings}"}},
}
MIB = 2**20


def test_stages_are_made_one_after_another_and_resumed(tmp_path: Path) -> None:
    said: list[str] = []
    only = {"stages": STAGES, "run": tmp_path, "executor": Executor(), "say": said.append}
    with pytest.raises(ValueError, match="stage look needs recordings, which is not done yet"):
        run_recipe(**only, stage="look")
    with pytest.raises(ValueError, match="unknown stage 'lok'; did you mean 'look'"):
        run_recipe(**only, stage="lok")
    assert run_recipe(**only, stage="recordings").complete
    assert not (tmp_path / "look").exists()
    outcome = run_recipe(**only)
    assert outcome.complete
    assert said[-1] == "look         done     1 episodes; next: the same command with --check"
    assert "1 of 2 were done already" in said
    assert measured(outcome) == ""


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_a_recipe_of_the_project_is_accepted_by_every_verb(name: str, tmp_path: Path) -> None:
    config = compose("recipe", [f"+experiment=recipe_{name}"])
    stages = read_stages(OmegaConf.to_container(config.stages))
    calls = plan_stages(stages, tmp_path, by_content=False)
    assert [stage.verb for stage in stages][:4] == ["collect", "pretrain", "encode", "train"]
    collect = compose("collect", calls[0].words[1:])
    assert collect.episodes * collect.steps >= 200_000
    assert sum(collect.tasks.values()) == pytest.approx(1)
    assert sum(collect.behaviours.values()) == pytest.approx(1)
    assert (config.minutes is not None and config.minutes < 10) == (name == "gpu")


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_what_a_recipe_makes_can_be_shipped(name: str, tmp_path: Path) -> None:
    config = compose("recipe", [f"+experiment=recipe_{name}"])
    calls = plan_stages(
        read_stages(OmegaConf.to_container(config.stages)), tmp_path, by_content=False
    )
    words = {call.name: call.words[1:] for call in calls}
    with torch.device("meta"):
        encoder = instantiate(compose("pretrain", words["encoder"]).encoder)
        train = compose("train", words["predictor"])
        side = 128 // encoder.patch_size // train.merge
        predictor = instantiate(train.predictor)(
            latent_dim=encoder.embed_dim * train.merge**2, grid_size=(side, side)
        )
    assert train.dtype == "float16"
    size = 2 * sum(p.numel() for module in (encoder, predictor) for p in module.parameters())
    assert size <= 15 * MIB  # a megabyte is left for scales and heads
