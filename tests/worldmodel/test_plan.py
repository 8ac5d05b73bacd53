import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from worldmodel.evaluate import PlannerSettings
from worldmodel.plan import plan, read_goal
from worldmodel.planners import CEM, LatentEnergy, SwitchRule

SETTINGS = PlannerSettings(
    search=CEM(cost=LatentEnergy(), num_samples=4, num_elites=2, num_iterations=1),
    axes=("x", "y", "z"),
    limits=None,
    warm_start=True,
    replan_every=1,
    num_context=1,
    deadline_ms=None,
    switch=SwitchRule(tolerance=1e9),
    precision="float32",
)


@pytest.mark.parametrize("own_goal", [False, True])
def test_every_step_says_which_sub_goal_it_is_for(
    tmp_path: Path, make_world, capsys, own_goal: bool
) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "goal.png")
    plan(
        world=make_world(),
        settings=SETTINGS,
        run=tmp_path,
        task="lift",
        variation="none",
        goal=tmp_path / "goal.png" if own_goal else None,
        steps=2,
        seed=0,
        camera="exterior",
        backend="ray",
        device="cpu",
    )
    out = capsys.readouterr().out
    assert re.findall(r"^step +(\d+)  energy \d", out, re.MULTILINE) == ["0", "1"]
    told = re.findall(r"stage (\d) of 4: (\w+)$", out, re.MULTILINE)
    written = json.loads((tmp_path / "episode.json").read_text())
    assert (written["success"] is None) == own_goal
    if own_goal:
        assert (told, written["stages"]) == ([], ["goal"] * 3)
    else:
        assert told == [("1", "above"), ("2", "around")]
        assert written["stages"] == ["above", "around", "around"]
    assert (tmp_path / "episode.mp4").stat().st_size > 0
    assert (tmp_path / "filmstrip.png").stat().st_size > 0


def test_a_goal_image_is_read_in_rgb(tmp_path: Path, make_world) -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "goal.png")
    goal = read_goal(tmp_path / "goal.png", world=make_world())
    assert goal.dtype == np.uint8
    assert np.array_equal(goal, image)


def test_a_goal_image_of_another_size_is_cut_as_the_model_says(tmp_path: Path, make_world) -> None:
    Image.new("RGB", (40, 32)).save(tmp_path / "goal.png")
    with pytest.raises(ValueError, match="is 40x32 pixels, the model takes 32x32; resize it"):
        read_goal(tmp_path / "goal.png", world=make_world())
    world = make_world()
    world.crop = "square"
    assert read_goal(tmp_path / "goal.png", world=world).shape == (32, 32, 3)
