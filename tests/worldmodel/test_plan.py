from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from worldmodel.plan import read_goal


def test_a_goal_image_is_read_in_rgb(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "goal.png")
    goal = read_goal(tmp_path / "goal.png", size=32)
    assert goal.dtype == np.uint8
    assert np.array_equal(goal, image)


def test_a_goal_image_of_another_size_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (40, 32)).save(tmp_path / "goal.png")
    with pytest.raises(ValueError, match="is 40x32 pixels, the model takes 32x32; resize it"):
        read_goal(tmp_path / "goal.png", size=32)
