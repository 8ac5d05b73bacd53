import math

import numpy as np
import pytest
import torch
from torch import Tensor

from worldmodel.encoder import VideoEncoder
from worldmodel.jepa import encode_frames
from worldmodel.losses import state_loss
from worldmodel.pose import euler_to_matrix
from worldmodel.state_head import (
    MIN_POSE_STD,
    POSE_COLUMNS,
    StateHead,
    pose_vector,
    proprio_of,
    rotation_of,
)

SIZE, SQUARE = 32, 6  # pixels: of a picture, of the square in it


def a_head() -> StateHead:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return StateHead(latent_dim=12, num_tokens=4, token_dim=8, hidden_dim=32)


def poses(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.tensor([0.1, 0.1, 0.1, 0.3, 0.3, 0.3, 0.5])
    return (torch.rand(n, 7, generator=generator) * 2 - 1) * spread + 0.5


def latents(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 4, 12, generator=torch.Generator().manual_seed(seed))


def drawn(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures (n, 32, 32, 3) of a bright square, and states: its place, and how closed it is.

    A line of the table's colour cuts the square in two; closed, it has the square's colour.
    """
    rng = np.random.default_rng(seed)
    frames = rng.integers(30, 60, (n, SIZE, SIZE, 3))
    proprio = np.tile([0.0, 0.0, 0.3, math.pi, 0.0, 0.0, 0.0], (n, 1))
    corners = rng.integers(0, SIZE - SQUARE + 1, (n, 2))
    closed = rng.random(n)
    for frame, (row, column), grip in zip(frames, corners, closed, strict=True):
        frame[row : row + SQUARE, column : column + SQUARE] = 220
        frame[row : row + SQUARE, column + 2 : column + 4] = 45 + 175 * grip
    proprio[:, :2] = corners / SIZE
    proprio[:, 6] = closed
    return torch.from_numpy(frames.astype(np.uint8)), torch.from_numpy(proprio).float()


def test_place_and_gripper_are_learnt_from_pictures() -> None:
    """On new pictures, after 200 steps of 32."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = VideoEncoder(
            patch_size=8, tubelet_size=1, embed_dim=32, depth=1, num_heads=2, stem="conv"
        )
        head = StateHead(latent_dim=128, num_tokens=4, hidden_dim=128)
    frames, proprio = drawn(4096, seed=0)
    head.set_scales(proprio)
    steps, batch = 200, 32
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    rng = np.random.default_rng(0)
    for _ in range(steps):
        chosen = torch.from_numpy(rng.integers(len(frames), size=batch))
        loss = state_loss(head, encode_frames(encoder, frames[chosen], 2), proprio[chosen])
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        schedule.step()

    unseen, true = drawn(512, seed=1)
    with torch.inference_mode():
        error = (head(encode_frames(encoder, unseen, 2)) - true).abs().mean(0)
    assert float(error[:2].max()) < 1 / SIZE  # a pixel; guessing the middle errs by 6.7
    assert float(error[6]) < 0.07  # guessing the middle errs by 0.25


def test_the_head_reads_one_frame_and_the_place_of_a_token_matters() -> None:
    head, z = a_head(), latents(3)
    with torch.no_grad():
        read = head(z)
        assert read.shape == (3, 7) and read.dtype == torch.float32
        torch.testing.assert_close(head(z[1:2]), read[1:2])
        assert not torch.allclose(head(z.flip(1)), read, atol=1e-3)


def test_readings_come_in_the_units_of_the_scales() -> None:
    head, proprio = a_head(), poses(256)
    proprio[:, 6] = 0.5
    head.set_scales(proprio)
    scaled = head.normalise(proprio)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(10), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.std(0)[:9], torch.ones(9))
    assert float(head.pose_std[9]) == pytest.approx(MIN_POSE_STD)  # it never moved
    with torch.no_grad():
        given = head.normalised(latents(5))
        torch.testing.assert_close(
            head(latents(5)), proprio_of(given * head.pose_std + head.pose_mean)
        )
        head.pose_mean[0] += 10
        assert (head(latents(5))[:, 0] > 9).all()


def test_a_pose_vector_gives_its_proprio_back() -> None:
    proprio = poses(64)
    torch.testing.assert_close(
        proprio_of(pose_vector(proprio)), proprio.clamp(max=1), atol=1e-5, rtol=0
    )


def test_a_pose_that_looks_down_has_no_jump() -> None:
    down = torch.tensor([[0.5, 0.0, 0.3, math.pi, 0.0, 0.2, 1.0]])
    same = down.clone()
    same[:, 3] = -math.pi
    torch.testing.assert_close(pose_vector(down), pose_vector(same), atol=1e-6, rtol=0)
    assert pose_vector(down).shape == (1, 10)


def test_the_gripper_read_lies_between_open_and_closed() -> None:
    pose = pose_vector(poses(3))
    pose[:, 9] = torch.tensor([-0.2, 0.4, 1.3])
    assert proprio_of(pose)[:, 6].tolist() == pytest.approx([0, 0.4, 1])


@pytest.mark.parametrize("size", [1e-9, 1e-4, 1.0, 100.0])
def test_whatever_the_columns_the_rotation_is_one(size: float) -> None:
    columns = torch.randn(1000, 3, 2, generator=torch.Generator().manual_seed(0))
    columns[:500, :, 1] = columns[:500, :, 0] + 0.01 * columns[:500, :, 1]  # nearly on one line
    rotation = rotation_of(size * columns)
    torch.testing.assert_close(
        rotation.mT @ rotation, torch.eye(3).expand(1000, 3, 3), atol=1e-3, rtol=0
    )
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(1000), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "columns",
    [
        [[0, 0], [0, 0], [0, 0]],
        [[0, 0], [0, 2], [0, 0]],  # no first
        [[0, 1], [0, 0], [0, 0]],  # no first, and a second along what stands for it
        [[0, 0], [1, 0], [0, 0]],  # no second
        [[1, -3], [1, -3], [1, -3]],  # both on one line
    ],
)
def test_columns_without_a_direction_of_their_own_still_make_a_rotation(
    columns: list[list[float]],
) -> None:
    rotation = rotation_of(torch.tensor(columns).float())
    torch.testing.assert_close(rotation.mT @ rotation, torch.eye(3))
    assert float(torch.linalg.det(rotation)) == pytest.approx(1)


def test_columns_that_are_a_little_off_give_nearly_the_same_rotation() -> None:
    pose = pose_vector(poses(32))
    noise = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    noisy = pose.clone()
    noisy[:, POSE_COLUMNS] = 1.3 * (noisy[:, POSE_COLUMNS] + 0.01 * noise)  # length says nothing
    read, true = (euler_to_matrix(proprio_of(p)[:, 3:6]) for p in (noisy, pose))
    torch.testing.assert_close(read, true, atol=0.06, rtol=0)


def test_under_autocast_the_state_is_float32_and_nearly_the_same() -> None:
    head = a_head()
    head.set_scales(poses(64))
    with torch.no_grad():
        exact = head(latents(8))
        with torch.autocast("cpu", torch.bfloat16):
            lower = head(latents(8))
    assert lower.dtype == torch.float32
    torch.testing.assert_close(pose_vector(lower), pose_vector(exact), atol=0.01, rtol=0)
    assert not torch.equal(lower, exact)


@pytest.mark.parametrize("shape", [(2, 3, 12), (2, 4, 11), (4, 12)])
def test_latents_of_another_shape_are_refused(without_shape_checks, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"latents must have shape \(batch, 4, 12\), got \("):
        a_head()(torch.zeros(shape))


def test_a_head_without_hidden_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="num_hidden must be 1 or more, got 0"):
        StateHead(latent_dim=12, num_tokens=4, num_hidden=0)
