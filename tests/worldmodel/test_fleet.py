import os
import signal
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from worldmodel.fleet import Fleet, Scene, View, reset

SCENE = Scene(
    task="reach",
    variation="none",
    image_size=16,
    camera="exterior",
    backend="ray",
    control_hz=4.0,
    max_steps=2,
)
SEEDS = [2**31 + i for i in range(3)]
ACTIONS = np.linspace(-0.05, 0.05, 21).reshape(3, 7)


def double(env, item):
    return env.unwrapped.control_hz * item


def fail_at_two(env, item):
    if item == 2:
        raise ValueError("two is refused")
    return item


def die(env, item):
    os.kill(os.getpid(), signal.SIGKILL)


def play(*, num_arms: int, workers: int, seeds=SEEDS) -> list[View]:
    """Returns the view of every seed's arm after one action of its own."""
    views = []
    with Fleet(SCENE, num_arms=num_arms, workers=workers) as fleet:
        for first in range(0, len(seeds), num_arms):
            chosen = slice(first, first + num_arms)
            starts = fleet.reset(seeds[chosen])
            assert all(start.subgoals[-1].image.shape == (16, 16, 3) for start in starts)
            views += fleet.step(list(ACTIONS[chosen]))
    return views


def same(a: View, b: View) -> bool:
    names = ("image", "proprio", "features")
    return a.distance == b.distance and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in names
    )


@pytest.fixture(scope="module")
def alone() -> list[View]:
    return play(num_arms=1, workers=1)


@pytest.mark.parametrize(("num_arms", "workers"), [(3, 1), (2, 1), (3, 2)])
def test_an_arm_does_what_it_does_alone(alone: list[View], num_arms: int, workers: int) -> None:
    views = play(num_arms=num_arms, workers=workers)
    assert [same(a, b) for a, b in zip(alone, views, strict=True)] == [True] * 3
    assert not same(alone[0], alone[1])


def test_an_episode_ends_after_the_scenes_steps() -> None:
    with Fleet(SCENE, num_arms=1, workers=1) as fleet:
        (start,) = fleet.reset([7])
        ends = [fleet.step([np.zeros(7)])[0].ended for _ in range(2)]
    assert not start.view.ended
    assert ends == [False, True]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_arm_that_is_told_nothing_waits(workers: int) -> None:
    with Fleet(SCENE, num_arms=2, workers=workers) as fleet:
        first, second = fleet.reset(SEEDS[:2])
        assert fleet.step([None, ACTIONS[1]])[0] is None
        (moved,) = fleet.step([ACTIONS[0]])
    assert moved is not None and not moved.ended  # it had not made a step before
    assert not np.array_equal(moved.proprio, first.view.proprio)


def test_rejected_placements_are_those_of_one_episode() -> None:
    env = SCENE.make()
    inner: Any = env.unwrapped
    once = reset(env, 7).goal_rejections
    inner.goal_rejections += 5  # as if other episodes had been between
    assert reset(env, 7).goal_rejections == once
    env.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_is_done_once(workers: int) -> None:
    with Fleet(SCENE, num_arms=2, workers=workers) as fleet:
        done = dict(fleet.map(double, range(5)))
        assert done == {i: 4.0 * i for i in range(5)}
        assert list(fleet.map(double, [])) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_reaches_the_caller(workers: int) -> None:
    with Fleet(SCENE, num_arms=2, workers=workers) as fleet:
        with pytest.raises(ValueError, match="two is refused"):
            list(fleet.map(fail_at_two, range(5)))


def test_a_killed_process_is_reported() -> None:
    with Fleet(SCENE, num_arms=2, workers=2) as fleet:
        with pytest.raises(RuntimeError, match="a simulation process ended with exit code -9"):
            list(fleet.map(die, range(2)))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_scene_that_cannot_be_made_is_refused_at_once(workers: int) -> None:
    with pytest.raises(ValueError, match="did you mean 'reach'"):
        Fleet(replace(SCENE, task="reahc"), num_arms=2, workers=workers)


@pytest.mark.parametrize(("num_arms", "workers"), [(1, 0), (1, 2), (0, 0)])
def test_more_workers_than_arms_are_refused(num_arms: int, workers: int) -> None:
    with pytest.raises(ValueError, match="expected 1 <= workers <= num_arms"):
        Fleet(SCENE, num_arms=num_arms, workers=workers)


def test_more_seeds_than_arms_are_refused() -> None:
    with Fleet(SCENE, num_arms=1, workers=1) as fleet:
        with pytest.raises(ValueError, match="reset got 2 parts for 1 arms"):
            fleet.reset([1, 2])
