import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.data.rotations import (
    EULER_FORMS,
    FORMS,
    SIZES,
    angle_between,
    mean_rotation,
    slerp,
    to_matrix,
    to_quat_xyzw,
    to_rotvec,
)
from worldmodel.pose import euler_to_matrix

RELAXED = settings(deadline=None, max_examples=60)

angle = st.floats(-np.pi, np.pi)
# Also the angles at which formulas divide by nearly nothing.
length = st.floats(0, np.pi) | st.sampled_from([0, 1e-12, 1e-9, 1e-7, 1e-4, np.pi - 1e-9, np.pi])


def exponential(rotvec: np.ndarray) -> np.ndarray:
    """The rotation by its definition: the power series of the matrix exponential."""
    x, y, z = rotvec / 2**8
    small = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    result, term = np.eye(3), np.eye(3)
    for k in range(1, 12):
        term = term @ small / k
        result = result + term
    return np.linalg.matrix_power(result, 2**8)


def about(axis: str, turn: float) -> np.ndarray:
    return exponential(turn * np.eye(3)["xyz".index(axis.lower())])


@st.composite
def rotvecs(draw) -> np.ndarray:
    direction = np.array([draw(st.floats(-1, 1)) for _ in range(3)])
    norm = np.linalg.norm(direction)
    direction = direction / norm if norm > 1e-3 else np.array([0.0, 0.0, 1.0])
    return direction * draw(length)


@RELAXED
@given(angles=st.tuples(angle, angle, angle), form=st.sampled_from(EULER_FORMS))
def test_euler_angles_turn_about_their_axes_one_after_the_other(angles, form):
    order = form.removeprefix("euler_")
    turns = [about(axis, turn) for axis, turn in zip(order, angles, strict=True)]
    # About fixed axes, a later turn multiplies on the left; about turning ones, on the right.
    expected = turns[2] @ turns[1] @ turns[0] if order.islower() else turns[0] @ turns[1] @ turns[2]
    np.testing.assert_allclose(to_matrix(np.array(angles), form), expected, atol=1e-9)


def test_there_are_all_orders_of_euler_angles():
    assert len(EULER_FORMS) == len(set(EULER_FORMS)) == 24
    assert {"euler_xyz", "euler_XYZ", "euler_zyx", "euler_ZYZ"} <= set(EULER_FORMS)


@RELAXED
@given(angles=st.tuples(angle, angle, angle))
def test_our_own_euler_angles_are_extrinsic_xyz(angles):
    expected = euler_to_matrix(np.array(angles))
    np.testing.assert_allclose(to_matrix(np.array(angles), "euler_xyz"), expected, atol=1e-12)


@RELAXED
@given(rotvec=rotvecs())
def test_a_rotation_vector_is_the_matrix_exponential(rotvec):
    np.testing.assert_allclose(to_matrix(rotvec, "rotvec"), exponential(rotvec), atol=1e-9)


@RELAXED
@given(rotvec=rotvecs())
def test_a_quaternion_turns_vectors_by_the_product_q_v_q(rotvec):
    norm = np.linalg.norm(rotvec)
    axis = rotvec / norm if norm > 0 else np.array([1.0, 0.0, 0.0])
    quat = np.append(np.sin(norm / 2) * axis, np.cos(norm / 2))

    def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        v, w = a[:3], a[3]
        return np.append(w * b[:3] + b[3] * v + np.cross(v, b[:3]), w * b[3] - v @ b[:3])

    inverse = quat * [-1, -1, -1, 1]
    columns = [product(product(quat, np.append(e, 0)), inverse)[:3] for e in np.eye(3)]
    expected = np.stack(columns, axis=-1)
    for sign in (1, -1, 3.7):  # q and -q are one rotation, and nobody's are of length 1 exactly
        np.testing.assert_allclose(to_matrix(sign * quat, "quat_xyzw"), expected, atol=1e-12)
        wxyz = sign * quat[[3, 0, 1, 2]]
        np.testing.assert_allclose(to_matrix(wxyz, "quat_wxyz"), expected, atol=1e-12)


@RELAXED
@given(rotvec=rotvecs())
def test_matrices_become_quaternions_and_vectors_and_back(rotvec):
    matrix = exponential(rotvec)
    quat, vector = to_quat_xyzw(matrix), to_rotvec(matrix)
    assert abs(np.linalg.norm(quat) - 1) < 1e-12 and quat[3] >= 0
    np.testing.assert_allclose(to_matrix(quat, "quat_xyzw"), matrix, atol=1e-8)
    np.testing.assert_allclose(exponential(vector), matrix, atol=1e-8)
    assert np.linalg.norm(vector) <= np.pi + 1e-9


@RELAXED
@given(rotvec=rotvecs())
def test_six_numbers_are_columns_or_rows_of_the_matrix(rotvec):
    matrix = exponential(rotvec)
    columns = np.concatenate([matrix[:, 0], matrix[:, 1]])
    np.testing.assert_allclose(to_matrix(columns, "rot6d"), matrix, atol=1e-9)
    np.testing.assert_allclose(to_matrix(matrix[:2].ravel(), "rot6d_rows"), matrix, atol=1e-9)
    np.testing.assert_allclose(to_matrix(matrix.ravel(), "matrix"), matrix, atol=1e-12)


def test_six_numbers_need_not_be_orthogonal():
    """A network's output: the second column is turned until it is."""
    matrix = to_matrix(np.array([2.0, 0, 0, 5.0, 0.5, 0]), "rot6d")
    np.testing.assert_allclose(matrix, np.eye(3), atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_forms_take_any_leading_shape_and_every_number_type(form):
    rng = np.random.default_rng(0)
    matrix = to_matrix(rng.normal(size=(4, 5, 3)), "rotvec")
    values = {
        "matrix": matrix.reshape(4, 5, 9),
        "quat_xyzw": to_quat_xyzw(matrix),
        "quat_wxyz": to_quat_xyzw(matrix)[..., [3, 0, 1, 2]],
    }.get(form, rng.normal(size=(4, 5, SIZES[form])))
    together = to_matrix(values.astype(np.float32), form)
    assert together.shape == (4, 5, 3, 3) and together.dtype == np.float64
    one = to_matrix(values[2, 3].astype(np.float32), form)
    np.testing.assert_allclose(together[2, 3], one, atol=1e-12)
    assert to_matrix(np.zeros((0, SIZES[form])), form).shape == (0, 3, 3)


@pytest.mark.parametrize(
    ("values", "form", "message"),
    [
        (np.zeros(3), "euler_xzz", "unknown form of rotation 'euler_xzz'; known: euler_xyz"),
        (np.zeros((2, 4)), "euler_xyz", r"a rotation as euler_xyz has 3 numbers, got \(4,\)"),
        (np.zeros((2, 4)), "quat_xyzw", "a quaternion is all zeros"),
        (np.array([1.0, 0, 0, -2.0, 0, 0]), "rot6d", "zero or parallel"),
        (np.zeros(9), "matrix", "1 of 1 matrices are not of rotations"),
        (np.diag([1.0, 1.0, -1.0]).ravel(), "matrix", "right-handed"),
        (2 * np.eye(3).ravel(), "matrix", "columns of length 1"),
    ],
)
def test_what_is_no_rotation_is_refused(values, form, message):
    with pytest.raises(ValueError, match=message):
        to_matrix(values, form)


@pytest.mark.parametrize("form", ["euler_xyz", "rotvec", "quat_xyzw", "rot6d", "matrix"])
def test_what_is_not_a_number_stays_so(form):
    """A check must be able to say at which step."""
    values = np.full((2, SIZES[form]), np.nan)
    assert np.isnan(to_matrix(values, form)).any(axis=(1, 2)).all()


@RELAXED
@given(a=rotvecs(), b=rotvecs())
def test_the_angle_between_rotations_is_that_of_the_trace(a, b):
    a, b = exponential(a), exponential(b)
    cosine = (np.trace(a.T @ b) - 1) / 2
    assert abs(np.cos(angle_between(a, b)) - cosine) < 1e-8
    assert 0 <= angle_between(a, b) <= np.pi + 1e-9
    assert angle_between(a, a) < 1e-7


@RELAXED
@given(a=rotvecs(), turn=rotvecs(), fraction=st.floats(0, 1))
def test_slerp_turns_at_constant_speed_about_one_axis(a, turn, fraction):
    turn = turn * 0.99  # at half a turn there are two shortest ways
    start = exponential(a)
    end = start @ exponential(turn)
    between = slerp(start, end, np.array(fraction))
    np.testing.assert_allclose(between, start @ exponential(turn * fraction), atol=1e-6)


@RELAXED
@given(a=rotvecs(), b=rotvecs())
def test_slerp_begins_and_ends_at_its_ends_and_is_halfway_at_half(a, b):
    a, b = exponential(a), exponential(b)
    np.testing.assert_allclose(slerp(a, b, np.array(0.0)), a, atol=1e-12)
    np.testing.assert_allclose(slerp(a, b, np.array(1.0)), b, atol=1e-7)
    middle = slerp(a, b, np.array(0.5))
    half = angle_between(a, b) / 2
    assert abs(angle_between(a, middle) - half) < 1e-6
    assert abs(angle_between(middle, b) - half) < 1e-6


def test_slerp_of_many_at_once_is_that_of_each():
    rng = np.random.default_rng(1)
    a, b = (to_matrix(rng.normal(size=(6, 3)), "rotvec") for _ in range(2))
    fraction = rng.uniform(size=6)
    each = [slerp(a[k], b[k], fraction[k]) for k in range(6)]
    np.testing.assert_allclose(slerp(a, b, fraction), each, atol=1e-12)


def test_the_mean_of_rotations_about_one_axis_is_that_of_the_angles():
    turns = np.array([0.1, 0.3, 0.2, 0.6])
    matrices = np.stack([about("y", turn) for turn in turns])
    mean = mean_rotation(matrices)
    expected = np.arctan2(np.sin(turns).sum(), np.cos(turns).sum())
    np.testing.assert_allclose(mean, about("y", expected), atol=1e-12)
    assert abs(np.linalg.det(mean) - 1) < 1e-12
