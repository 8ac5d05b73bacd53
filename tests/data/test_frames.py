import pickle

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.data.frames import (
    FRAMES_AT_ONCE,
    ChosenFrames,
    EncodedFrames,
    FrameReadError,
    Frames,
    LazyFrames,
    decode_image,
)

RELAXED = settings(deadline=None, max_examples=60)

N = 7
IMAGES = np.random.default_rng(0).integers(0, 256, (N, 6, 8, 3), np.uint8)


class FromArray(LazyFrames):
    """Frames that remember what was asked of them."""

    def __init__(self, images: np.ndarray) -> None:
        super().__init__(images.shape)
        self.images, self.asked = images, []

    def fetch(self, indices: np.ndarray) -> np.ndarray:
        self.asked.append(indices.tolist())
        return self.images[indices]


def encoded(images: np.ndarray, suffix: str = ".png") -> list[bytes]:
    return [cv2.imencode(suffix, image[..., ::-1])[1].tobytes() for image in images]


index = (
    st.integers(-N, N - 1)
    | st.slices(N)
    | st.lists(st.integers(-N, N - 1), max_size=12).map(lambda k: np.array(k, np.int64))
    | st.lists(st.booleans(), min_size=N, max_size=N).map(np.array)
    | st.integers(-N, N - 1).map(np.int32)
)


@RELAXED
@given(index=index)
def test_an_index_means_what_it_means_to_an_array(index):
    kinds = (
        FromArray(IMAGES),
        EncodedFrames(encoded(IMAGES), name="camera"),
        ChosenFrames(FromArray(np.repeat(IMAGES, 2, axis=0)), np.arange(N) * 2 + 1),
    )
    for frames in kinds:
        assert isinstance(frames, Frames) and len(frames) == N and frames.shape == IMAGES.shape
        found = frames[index]
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, IMAGES[index])


@pytest.mark.parametrize("outside", [N, -N - 1, np.array([0, N]), np.array([-N - 1])])
def test_an_index_outside_is_an_error(outside):
    with pytest.raises(IndexError, match=f"out of bounds for axis 0 with size {N}"):
        FromArray(IMAGES)[outside]
    with pytest.raises(IndexError):
        FromArray(IMAGES[:0])[np.array([0])]


@pytest.mark.parametrize("strange", [True, np.zeros((2, 2), int), (0, 1), 1.5, None])
def test_what_is_no_index_of_frames_is_an_error(strange):
    with pytest.raises(IndexError):
        FromArray(IMAGES)[strange]


def test_only_what_is_asked_for_is_fetched_and_nothing_for_nothing():
    frames = FromArray(IMAGES)
    assert frames[3:3].shape == (0, 6, 8, 3)
    frames[-1]
    frames[np.array([4, 1])]
    assert frames.asked == [[6], [4, 1]]


def test_going_through_all_reads_a_few_at_a_time():
    images = np.zeros((2 * FRAMES_AT_ONCE + 1, 2, 2, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(len(images))
    frames = FromArray(images)
    assert [int(image[0, 0, 0]) for image in frames] == list(range(len(images)))
    assert [len(asked) for asked in frames.asked] == [FRAMES_AT_ONCE, FRAMES_AT_ONCE, 1]


def test_all_frames_become_an_array():
    np.testing.assert_array_equal(np.asarray(FromArray(IMAGES)), IMAGES)
    assert np.asarray(FromArray(IMAGES), np.float32).dtype == np.float32
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(FromArray(IMAGES), copy=False)


@pytest.mark.parametrize("wrong", [IMAGES[:2].astype(float), IMAGES[:1], IMAGES[:2, :3]])
def test_a_reader_that_returns_something_else_is_found_out(wrong):
    frames = FromArray(IMAGES)
    frames.fetch = lambda indices: wrong
    with pytest.raises(FrameReadError, match=r"expected uint8 \(2, 6, 8, 3\)"):
        frames[:2]


def test_chosen_frames_choose_from_chosen_frames():
    once = ChosenFrames(IMAGES, [5, 3, 1])
    twice = ChosenFrames(once, np.array([2, 0]))
    np.testing.assert_array_equal(twice[:], IMAGES[[1, 5]])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(twice))[:], IMAGES[[1, 5]])


def test_encoded_images_are_red_green_blue():
    red = np.zeros((1, 16, 16, 3), np.uint8)
    red[..., 0] = 250
    for suffix in (".png", ".jpg"):
        found = EncodedFrames(encoded(red, suffix), name="camera")[0]
        assert found[..., 0].min() > 240 and found[..., 1:].max() < 10


def test_grey_images_become_colour():
    grey = cv2.imencode(".png", IMAGES[0, :, :, 0])[1].tobytes()
    found = decode_image(grey, name="camera")
    np.testing.assert_array_equal(found, IMAGES[0, :, :, :1].repeat(3, axis=-1))


def test_no_images_are_no_frames():
    frames = EncodedFrames([], name="camera")
    assert len(frames) == 0 and frames[:].shape == (0, 0, 0, 3)


@pytest.mark.parametrize(
    "data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\x00" * 100]
)
def test_what_is_no_image_is_refused(data):
    with pytest.raises(FrameReadError, match="^wrist, frame 3: .*JPEG"):
        decode_image(data, name="wrist, frame 3")


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_an_image_that_ends_early_is_refused(suffix, share):
    """Some decoders fill in what is missing and say nothing."""
    smooth = cv2.resize(IMAGES[0], (160, 120))
    data = encoded(smooth[None], suffix)[0]
    assert decode_image(data, name="whole").shape == (120, 160, 3)
    with pytest.raises(FrameReadError):
        decode_image(data[: int(len(data) * share)], name="cut")
    decode_image(data + bytes(64), name="padded, as rows of equal length are")


def test_a_jpeg_with_a_whole_thumbnail_that_ends_early_is_refused(monkeypatch):
    """The decoder is not asked: what OpenCV 4 does with such an image is fill in the rest."""
    data = encoded(cv2.resize(IMAGES[0], (160, 120))[None], ".jpg")[0]
    thumbnail = encoded(IMAGES[:1], ".jpg")[0]
    comment = b"\xff\xfe" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    data = data[:2] + comment + data[2:]
    assert decode_image(data, name="whole").shape == (120, 160, 3)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: np.zeros((120, 160, 3), np.uint8))
    with pytest.raises(FrameReadError, match="cut: the JPEG image ends early"):
        decode_image(data[:-5], name="cut")


def test_an_image_of_another_size_is_named():
    images = [*encoded(IMAGES[:2]), *encoded(IMAGES[2:3, :4])]
    with pytest.raises(FrameReadError, match=r"camera, frame 2: image is \(4, 8, 3\), the first"):
        EncodedFrames(images, name="camera")[np.array([0, 2])]
