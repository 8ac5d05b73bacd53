from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from worldmodel.plan import read_goal


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
