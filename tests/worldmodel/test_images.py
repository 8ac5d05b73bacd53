import numpy as np
import pytest
import torch
import torch.nn.functional as F

from worldmodel.images import crop_box, fit_frames, fit_views


@pytest.mark.parametrize(
    "height, width, box",
    [
        (720, 1280, (0, 154, 720, 972)),
        (180, 320, (0, 38, 180, 243)),
        (480, 640, (0, 0, 480, 640)),
        (256, 256, (0, 0, 256, 256)),
        (640, 320, (106, 0, 427, 320)),
    ],
)
def test_squash_keeps_what_the_published_transform_keeps(height, width, box):
    assert crop_box(height, width, "squash") == box


def test_square_keeps_the_middle_undistorted():
    assert crop_box(720, 1280, "square") == (0, 280, 720, 720)
    frames = np.zeros((1, 90, 160, 3), np.uint8)
    frames[0, :, 35 + 45 :] = 255  # the right half of the middle square is white
    small = fit_frames(frames, 30, "square")[0]
    assert (small[:, :15] == 0).all() and (small[:, 15:] == 255).all()


def test_squash_presses_wide_into_square():
    frames = np.zeros((1, 100, 135, 3), np.uint8)
    frames[0, 40:60, 54:81] = 255
    small = fit_frames(frames, 20, "squash")[0, :, :, 0] > 128
    rows, columns = np.flatnonzero(small.any(1)), np.flatnonzero(small.any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (8, 11, 8, 11)


def test_frames_of_the_right_size_are_untouched():
    frames = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    for crop in ("square", "squash", "eval", "none"):
        assert fit_frames(frames, 16, crop) is frames


def test_thin_lines_survive_shrinking():
    """Area averaging keeps the mean; picking single pixels would lose every second line."""
    frames = np.zeros((1, 64, 64, 3), np.uint8)
    frames[0, ::4] = 200
    assert fit_frames(frames, 16, "square").mean() == pytest.approx(50, abs=1)


def test_what_cannot_be_fitted_is_an_error():
    frames = np.zeros((1, 8, 12, 3), np.uint8)
    with pytest.raises(ValueError, match="frames are 8 x 12 pixels but the encoder takes 8 x 8"):
        fit_frames(frames, 8, "none")
    with pytest.raises(
        ValueError, match="crop must be one of square, squash, eval, none, got 'middle'"
    ):
        fit_frames(frames, 8, "middle")


@pytest.mark.parametrize("height, width", [(720, 1280), (180, 320), (640, 320)])
def test_squash_interpolates_as_published(height, width):
    """Bilinear, half-pixel centres, no averaging: what torch does, to rounding."""
    frames = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
    top, left, rows, columns = crop_box(height, width, "squash")
    kept = torch.from_numpy(frames[:, top : top + rows, left : left + columns]).movedim(-1, 1)
    expected = F.interpolate(kept.float(), (256, 256), mode="bilinear", align_corners=False)
    ours = torch.from_numpy(fit_frames(frames, 256, "squash")).movedim(-1, 1).float()
    assert (ours - expected).abs().max() <= 1.0


@pytest.mark.parametrize("size, short", [(256, 292), (384, 438)])
def test_eval_enlarges_and_cuts(size, short):
    frames = np.random.default_rng(0).integers(0, 256, (1, 480, 640, 3), np.uint8)
    pixels = torch.from_numpy(frames).movedim(-1, 1).float()
    resized = F.interpolate(
        pixels, (short, int(640 * short / 480)), mode="bilinear", align_corners=False
    )
    left = round((resized.shape[-1] - size) / 2)
    top = (short - size) // 2
    expected = resized[:, :, top : top + size, left : left + size]
    ours = torch.from_numpy(fit_frames(frames, size, "eval")).movedim(-1, 1).float()
    assert ours.shape == expected.shape and (ours - expected).abs().max() <= 1.0


def test_a_moment_of_cameras_of_two_sizes_is_one_array():
    rng = np.random.default_rng(0)
    wide, small = (rng.integers(0, 256, (*size, 3), np.uint8) for size in ((90, 160), (30, 30)))
    both = fit_views([wide, small], 30, "square")
    assert np.array_equal(both[0], fit_frames(wide[None], 30, "square")[0])
    assert np.array_equal(both[1], small)
    assert fit_views([small], 30, "square").shape == (30, 30, 3)
    with pytest.raises(ValueError, match="frames are 90 x 160 pixels"):
        fit_views([small, wide], 30, "none")
