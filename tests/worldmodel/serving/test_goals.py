from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from worldmodel.serving.dialects import RequestError
from worldmodel.serving.goals import Goals


def write(path: Path, *, size: tuple[int, int] = (32, 32), seed: int = 0) -> np.ndarray:
    picture = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(picture).save(path)
    return picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "goals"
    folder.mkdir()
    write(folder / "red cube.png")
    write(folder / "mug.png", seed=1)
    return folder


def test_a_prompt_finds_its_picture_in_rgb(folder: Path) -> None:
    goals = Goals(folder, image_size=32, crop="none")
    assert goals.names == ("mug", "red cube")
    goal = goals.find("mug", live_sizes=[(32, 32)])
    assert goal.name == "mug"
    assert np.array_equal(goal.image, write(folder / "mug.png", seed=1))
    assert goals.find("mug", live_sizes=[(32, 32)]) is goal


def test_a_goal_is_fitted_as_the_live_picture_is(folder: Path) -> None:
    write(folder / "wide.png", size=(36, 64))
    for path in ("mug.png", "red cube.png"):
        (folder / path).unlink()
    goals = Goals(folder, image_size=32, crop="square")
    goal = goals.find("wide", live_sizes=[(36, 64)])
    assert goal.image.shape == (32, 32, 3) and goal.taken_sizes == ((36, 64),)
    with pytest.raises(RequestError, match="goal_mismatch: .*64x36 .*sends 32x32") as caught:
        goals.find("wide", live_sizes=[(32, 32)])
    assert caught.value.code == "goal_mismatch"


def test_a_goal_added_later_is_found(folder: Path) -> None:
    goals = Goals(folder, image_size=32, crop="none")
    with pytest.raises(RequestError, match="unknown_goal"):
        goals.find("plate", live_sizes=[(32, 32)])
    picture = write(folder / "plate.png", seed=2)
    assert np.array_equal(goals.find("plate", live_sizes=[(32, 32)]).image, picture)


def test_an_unknown_goal_names_the_nearest(folder: Path) -> None:
    goals = Goals(folder, image_size=32, crop="none")
    expected = "unknown_goal: 'red cub'; did you mean 'red cube'. available: mug, red cube"
    with pytest.raises(RequestError, match=expected):
        goals.find("red cub", live_sizes=[(32, 32)])


@pytest.mark.parametrize(
    "prompt",
    ["../secret", "..", ".", "/etc/passwd", "red cube.png", "sub/mug", "mug\0", "x" * 5000, "~"],
)
def test_a_prompt_never_leads_out_of_the_folder(folder: Path, prompt: str) -> None:
    write(folder.parent / "secret.png")
    (folder / "sub").mkdir()
    write(folder / "sub" / "mug.png")
    goals = Goals(folder, image_size=32, crop="none")
    with pytest.raises(RequestError, match="unknown_goal") as caught:
        goals.find(prompt, live_sizes=[(32, 32)])
    assert len(str(caught.value)) < 300


def test_a_folder_without_goals_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder of goals"):
        Goals(tmp_path / "none", image_size=32, crop="none")
    with pytest.raises(FileNotFoundError, match="no goal in"):
        Goals(tmp_path, image_size=32, crop="none")


def test_an_unfit_picture_is_refused_at_the_start_and_later(folder: Path) -> None:
    goals = Goals(folder, image_size=32, crop="none")
    write(folder / "large.png", size=(64, 64))
    with pytest.raises(RequestError, match="bad_goal: .*large.png: frames are 64 x 64"):
        goals.find("large", live_sizes=[(64, 64)])
    with pytest.raises(ValueError, match="large.png: frames are 64 x 64 pixels"):
        Goals(folder, image_size=32, crop="none")
    (folder / "large.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="large.png is not an image"):
        Goals(folder, image_size=32, crop="none")
    (folder / "large.png").unlink()
    write(folder / "-rf.png")
    with pytest.raises(ValueError, match="'-rf.png' names no goal"):
        Goals(folder, image_size=32, crop="none")


# Of several cameras.

BOTH = ("exterior", "wrist")


@pytest.fixture
def two(tmp_path: Path) -> Path:
    folder = tmp_path / "two"
    folder.mkdir()
    write(folder / "red cube.exterior.png", size=(36, 64))
    write(folder / "red cube.wrist.png", size=(48, 48), seed=1)
    return folder


def test_a_goal_of_two_cameras_is_one_picture_of_each(two: Path) -> None:
    goals = Goals(two, image_size=32, crop="square", cameras=BOTH)
    assert goals.names == ("red cube",)
    sizes = [(36, 64), (48, 48)]
    goal = goals.find("red cube", live_sizes=sizes)
    assert goal.image.shape == (2, 32, 32, 3) and goal.taken_sizes == tuple(sizes)
    turned = Goals(two, image_size=32, crop="square", cameras=BOTH[::-1])
    swapped = turned.find("red cube", live_sizes=sizes[::-1])
    assert np.array_equal(swapped.image, goal.image[::-1])
    assert not np.array_equal(goal.image[0], goal.image[1])


def test_the_camera_of_another_size_is_named(two: Path) -> None:
    goals = Goals(two, image_size=32, crop="square", cameras=BOTH)
    expected = "goal_mismatch: the goal 'red cube' is 48x48 pixels and the wrist camera sends 64x36"
    with pytest.raises(RequestError, match=expected):
        goals.find("red cube", live_sizes=[(36, 64), (36, 64)])


def test_a_goal_without_the_picture_of_one_camera_is_refused(two: Path) -> None:
    goals = Goals(two, image_size=32, crop="square", cameras=BOTH)
    write(two / "mug.wrist.png")
    with pytest.raises(RequestError, match=r"bad_goal: .*mug\.exterior\.png is missing; a goal is"):
        goals.find("mug", live_sizes=[(32, 32), (32, 32)])
    with pytest.raises(ValueError, match=r"mug\.exterior\.png is missing"):
        Goals(two, image_size=32, crop="square", cameras=BOTH)
    write(two / "mug.exterior.png")  # a moment later
    assert goals.find("mug", live_sizes=[(32, 32), (32, 32)]).name == "mug"


def test_a_picture_of_no_camera_is_refused_with_the_names_it_may_have(two: Path) -> None:
    write(two / "mug.png")
    expected = (
        r"mug\.png is of no camera that .*; call it <prompt>\.exterior\.png or <prompt>\.wrist"
    )
    with pytest.raises(ValueError, match=expected):
        Goals(two, image_size=32, crop="square", cameras=BOTH)
    (two / "mug.png").rename(two / "-rf.wrist.png")
    with pytest.raises(ValueError, match="'-rf.wrist.png' names no goal"):
        Goals(two, image_size=32, crop="square", cameras=BOTH)
    for path in two.iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"put <prompt>\.exterior\.png and <prompt>\.wrist"):
        Goals(two, image_size=32, crop="square", cameras=BOTH)
