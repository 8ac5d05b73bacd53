import numpy as np
import pytest

from worldmodel.data.moments import Moments


def _parts(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    # A large mean, hardly any variance: sums of squares would have no digit left in float32.
    offset = rng.uniform(-50, 50, (3, 4))
    return [
        (offset + rng.normal(0, 1e-2, (n, 3, 4))).astype(np.float32) for n in (1, 300, 7, 0, 129)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_parts_merge_to_what_numpy_finds_in_the_whole(seed):
    parts = _parts(seed)
    whole = np.concatenate(parts).astype(np.float64)
    merged = sum((Moments.of(part) for part in parts), Moments())
    assert merged.weight == len(whole)
    np.testing.assert_allclose(merged.mean, whole.mean(0), rtol=1e-12)
    np.testing.assert_allclose(merged.std, whole.std(0), rtol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_taking_a_part_off_leaves_the_moments_of_the_rest(seed):
    parts = [Moments.of(part) for part in _parts(seed)]
    rest = parts[1] + parts[4]
    left = sum(parts, Moments()) - (parts[0] + parts[2] + parts[3])
    assert left.weight == rest.weight
    np.testing.assert_allclose(left.mean, rest.mean, rtol=1e-13)
    np.testing.assert_allclose(left.std, rest.std, rtol=1e-9)


def test_nothing_and_all_of_it_can_be_taken_off():
    moments = Moments.of(_parts(0)[1])
    assert moments - Moments() is moments
    assert (moments - moments).weight == 0
