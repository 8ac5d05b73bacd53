"""The report shows what was measured: the right pixels, the right numbers, and the failures."""

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from worldmodel.data.video_frames import VideoFrames
from worldmodel.report import (
    median_curve,
    plot_curves,
    write_filmstrip,
    write_gif,
    write_report,
    write_video,
)
from worldmodel.results import EpisodeResult, Evaluation, PolicyResult, Switch
from worldmodel.video import draw_steps, split_curve

STEPS = 10
GREEN, RED = (21, 128, 61), (220, 38, 38)


def scene(step: int) -> np.ndarray:
    """Returns a smooth image that says which step it is: a bar of its own colour moves right."""
    image = np.full((64, 64, 3), (120, 140, 160), np.uint8)
    image[20:44, 5 * step : 5 * step + 8] = (200, 60, 20 * step)
    return image


def episode(
    seed: int, *, distances: np.ndarray, success: bool, frames: bool = True
) -> EpisodeResult:
    """Returns an episode of len(distances) - 1 steps."""
    steps = len(distances) - 1
    return EpisodeResult(
        seed=seed,
        successes=np.array([False] * steps + [success]),
        distances=distances,
        features=np.zeros((steps + 1, 13)),
        energies=0.2 + distances,
        actions=np.zeros((steps, 7)),
        stages=np.zeros(steps + 1, int),
        stage_names=("reach",),
        switches=(),
        plan_ms=np.arange(1.0, steps + 1) * 100,
        encode_ms=np.full(steps, 7.0),
        frames=np.stack([scene(step) for step in range(steps + 1)]) if frames else None,
        goal_images=scene(steps)[None, :, ::-1].copy() if frames else None,
    )


REACHED = episode(11, distances=np.linspace(0.30, 0.01, STEPS + 1), success=True)
MISSED = episode(
    22,
    distances=np.concatenate([np.linspace(0.25, 0.031, 6), np.linspace(0.04, 0.123, 5)]),
    success=False,
)


STAGED = dataclasses.replace(
    MISSED,
    seed=33,
    stages=np.array([0] * 4 + [1] * 7),
    stage_names=("above", "grasp", "lift"),
    switches=(Switch(step=4, stage=1, reason="limit"),),
    features=np.concatenate([np.zeros((6, 13)), np.full((5, 13), 0.5)]),
    goal_images=np.stack([np.full((64, 64, 3), 60 * i, np.uint8) for i in (1, 2, 3)]),
)


def evaluation(*episodes: EpisodeResult, task: str = "reach") -> Evaluation:
    """Returns an evaluation of these episodes beside a policy that does nothing."""
    still = tuple(
        dataclasses.replace(
            one,
            successes=np.zeros(STEPS + 1, bool),
            distances=np.full(STEPS + 1, 0.2),
            energies=np.zeros(0),
            plan_ms=np.zeros(0),
            encode_ms=np.zeros(0),
            frames=None,
            goal_images=None,
        )
        for one in episodes
    )
    return Evaluation(
        task=task,
        variation="mild",
        seed=0,
        subgoals=True,
        planner=PolicyResult("planner", episodes),
        baselines=(PolicyResult("do_nothing", still),),
        settings={"planner": {"search": {"num_samples": 321}}, "axes": ["x", "y"]},
        machine={"processor": "a <fast> one", "gpu": None},
        command="worldmodel evaluate 'a=<b>'",
    )


def frames_of(path: Path) -> list[np.ndarray]:
    """Returns the decoded frames of a video, uint8 RGB."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def pixels_of(path: Path) -> np.ndarray:
    """Returns a PNG as uint8 RGB."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


class Links(HTMLParser):
    """Collects what a page refers to, and the ids in it."""

    def __init__(self, page: str):
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href") and value:
                self.links.append(value)
            if name == "id" and value:
                self.ids.append(value)


def test_a_video_shows_every_step_and_holds_the_first_and_the_last(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", REACHED, fps=4)
    frames = frames_of(tmp_path / "a.mp4")
    assert len(frames) == 2 + (STEPS + 1) + 6  # half a second, the steps, one and a half seconds
    assert {frame.shape for frame in frames} == {(292, 800, 3)}
    scenes = [
        np.asarray(Image.fromarray(scene(s)).resize((256, 256)), int) for s in range(STEPS + 1)
    ]
    for step in range(STEPS + 1):
        seen = frames[2 + step].astype(int)[28:284, 8:264]
        away = [float(np.abs(seen - other)[8:-8, 8:-8].mean()) for other in scenes]
        assert np.argmin(away) == step
        assert away[step] < 4


def test_a_video_is_one_that_browsers_play_at_the_asked_rate(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", REACHED, fps=8)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 8
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # faststart: the index comes first


def test_a_video_shows_the_goal_beside_the_camera(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", REACHED)
    goal = np.asarray(Image.fromarray(scene(STEPS)[:, ::-1]).resize((256, 256)), int)
    for frame in frames_of(tmp_path / "a.mp4"):
        assert np.abs(frame[28:284, 272:528] - goal)[8:-8, 8:-8].mean() < 4


def test_the_curves_in_a_video_grow_with_time(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", REACHED)
    steps = frames_of(tmp_path / "a.mp4")[2 : 2 + STEPS + 1]
    curves = [frame[28:252, 568:762].min(axis=-1) < 160 for frame in steps]
    for step in range(1, STEPS + 1):
        drawn = np.flatnonzero((curves[step] & ~curves[0]).any(axis=0))
        assert abs(drawn.max() - drawn.min() - 196 * step / STEPS) < 12, step


@pytest.mark.parametrize(("result", "color"), [(REACHED, GREEN), (MISSED, RED)])
def test_only_the_last_frame_of_a_video_wears_the_colour_of_the_outcome(
    tmp_path: Path, result: EpisodeResult, color: tuple[int, int, int]
) -> None:
    write_video(tmp_path / "a.mp4", result)
    edges = [frame[29:31, 20:250].mean(axis=(0, 1)) for frame in frames_of(tmp_path / "a.mp4")]
    assert np.abs(edges[-1] - color).max() < 25
    assert np.abs(edges[-8] - color).max() > 60


def test_what_the_gate_did_is_seen_where_it_did_it(tmp_path: Path) -> None:
    amber = np.array((0xF5, 0x9E, 0x0B))
    held = dataclasses.replace(REACHED, verdicts=("ok", "slow", "hold", *["ok"] * (STEPS - 3)))
    write_video(tmp_path / "a.mp4", held)
    write_filmstrip(tmp_path / "a.png", held)
    write_filmstrip(tmp_path / "plain.png", REACHED)
    frames = frames_of(tmp_path / "a.mp4")[2:]  # the first is shown three times
    edges = np.stack([frame[29:31, 20:250].mean(axis=(0, 1)) for frame in frames])
    amber_steps = np.flatnonzero(np.abs(edges - amber).max(axis=1) < 25)
    assert amber_steps.tolist() == [1, 2]
    strip, plain = pixels_of(tmp_path / "a.png"), pixels_of(tmp_path / "plain.png")
    assert (strip == amber).all(axis=-1).any() and not (plain == amber).all(axis=-1).any()
    assert (strip[-58:-40] != plain[-58:-40]).any()  # the verdict stands beside the step


def test_a_camera_that_is_not_square_keeps_its_proportions(tmp_path: Path) -> None:
    wide = dataclasses.replace(
        REACHED, frames=np.full((STEPS + 1, 32, 64, 3), 30, np.uint8), distances=REACHED.distances
    )
    write_video(tmp_path / "a.mp4", wide)
    panel = frames_of(tmp_path / "a.mp4")[0][28:284, 8:264].mean(axis=-1)
    assert panel[:60].min() > 200 and panel[-60:].min() > 200  # paper above and below
    assert panel[70:-70].max() < 60


def test_an_episode_without_known_distances_has_no_outcome(tmp_path: Path) -> None:
    # So it is when the goal is a photograph: nobody knows where the goal is.
    unknown = dataclasses.replace(MISSED, distances=np.full(STEPS + 1, np.nan))
    write_video(tmp_path / "a.mp4", unknown)
    write_filmstrip(tmp_path / "a.png", unknown)
    edge = frames_of(tmp_path / "a.mp4")[-1][29:31, 20:250].mean(axis=(0, 1))
    assert np.abs(edge - (120, 140, 160)).max() < 25
    strip = pixels_of(tmp_path / "a.png")
    assert not (strip == RED).all(axis=-1).any()


def test_an_episode_without_a_world_model_can_be_drawn(tmp_path: Path) -> None:
    blind = dataclasses.replace(MISSED, energies=np.zeros(0), plan_ms=np.zeros(0))
    write_video(tmp_path / "a.mp4", blind)
    write_filmstrip(tmp_path / "a.png", blind)
    assert len(frames_of(tmp_path / "a.mp4")) == STEPS + 1 + 8


def test_a_gif_is_small_and_loops(tmp_path: Path) -> None:
    write_gif(tmp_path / "a.gif", REACHED)
    assert (tmp_path / "a.gif").stat().st_size < 1_000_000
    with Image.open(tmp_path / "a.gif") as image:
        assert image.size == (602, 226)
        assert image.n_frames == STEPS + 1  # pyright: ignore[reportAttributeAccessIssue]
        assert image.info["loop"] == 0
        first = np.asarray(image.convert("RGB"), int)
    expected = np.asarray(Image.fromarray(scene(0)).resize((190, 190)), int)
    assert np.abs(first[28:218, 8:198] - expected).mean() < 6


@pytest.mark.parametrize("steps", [0, 1, 3, 7, 10, 30])
def test_a_filmstrip_has_up_to_eight_frames_and_the_goal(tmp_path: Path, steps: int) -> None:
    frames = np.stack([np.full((16, 16, 3), 4 * step, np.uint8) for step in range(steps + 1)])
    short = dataclasses.replace(
        MISSED,
        distances=np.full(steps + 1, 0.5),
        energies=np.full(steps + 1, 0.5),
        frames=frames,
        goal_images=np.full((1, 16, 16, 3), 200, np.uint8),
        stages=np.zeros(steps + 1, int),
    )
    write_filmstrip(tmp_path / "a.png", short)
    strip = pixels_of(tmp_path / "a.png")
    cells = min(8, steps + 1) + 1
    assert strip.shape == (8 + 168 + 58, 8 + cells * 176, 3)
    middles = strip[92, 92::176, 0].tolist()
    assert (middles[0], middles[-2], middles[-1]) == (0, 4 * steps, 200)
    assert middles[:-1] == sorted(set(middles[:-1]))


@pytest.mark.parametrize(("result", "color"), [(REACHED, GREEN), (MISSED, RED)])
def test_the_last_frame_of_a_filmstrip_wears_the_colour_of_the_outcome(
    tmp_path: Path, result: EpisodeResult, color: tuple[int, int, int]
) -> None:
    write_filmstrip(tmp_path / "a.png", result)
    strip = pixels_of(tmp_path / "a.png")
    colored = (strip[10] == color).all(axis=-1)
    assert np.flatnonzero(colored).tolist() == list(range(8 + 7 * 176, 8 + 7 * 176 + 168))


@pytest.mark.parametrize("write", [write_video, write_gif, write_filmstrip])
def test_an_episode_that_kept_no_frames_cannot_be_drawn(tmp_path: Path, write) -> None:
    with pytest.raises(ValueError, match="episode 11 kept no frames"):
        write(tmp_path / "a", dataclasses.replace(REACHED, frames=None))
    with pytest.raises(ValueError, match="no goal image"):
        write(tmp_path / "a", dataclasses.replace(REACHED, goal_images=None))


@pytest.mark.parametrize("write", [write_video, write_gif])
def test_a_rate_that_is_not_positive_is_refused(tmp_path: Path, write) -> None:
    with pytest.raises(ValueError, match="fps must be positive, got 0"):
        write(tmp_path / "a", REACHED, fps=0)


def test_the_page_holds_the_numbers(tmp_path: Path) -> None:
    page = write_report(tmp_path, evaluation(REACHED, MISSED)).read_text(encoding="utf-8")
    text = re.sub(r"<[^>]+>", " ", page).replace("\N{NO-BREAK SPACE}", " ")
    text = " ".join(text.split())
    assert "<h1>reach: 1 of 2 goals reached</h1>" in page
    assert "planner 1 of 2 50 % (9 to 91 %) 1 6.7 cm 10" in text  # Wilson interval of 1 of 2
    assert "do nothing 0 of 2 0 % (0 to 66 %) 0 20.0 cm 1 : 0 1" in text  # McNemar: 1 of 1
    assert "600 ms to plan a step, median; p95 1.00 s" in text
    assert "Variation of the scene: mild" in text
    assert "worldmodel evaluate &#x27;a=&lt;b&gt;&#x27;" in text
    assert "planner.search.num_samples 321" in text
    assert "gpu none" in text
    assert 'axes ["x", "y"]' in text.replace("&quot;", '"')


def test_the_page_lists_the_failures_and_where_they_ended(tmp_path: Path) -> None:
    page = write_report(tmp_path, evaluation(REACHED, MISSED)).read_text(encoding="utf-8")
    failures = page[page.index("What went wrong") : page.index("Distance and energy")]
    text = " ".join(re.sub(r"<[^>]+>", " ", failures).split())
    assert "1 of 2 goals were missed. In 0 of these the goal was held on the way" in text
    assert "22 25.0 cm 3.1 cm at step 5 12.3 cm 0.231 0.323" in text
    assert "it ended in failures goal held before a stage ran out of time reach 1 0 0" in text
    assert "11" not in text
    # In the gallery they come first.
    assert page.index('id="episode-22"') < page.index('id="episode-11"')


def test_the_page_says_when_nothing_failed(tmp_path: Path) -> None:
    page = write_report(tmp_path, evaluation(REACHED)).read_text(encoding="utf-8")
    assert "Nothing: all 1 goals were reached." in page


def test_every_link_of_the_page_leads_somewhere_beside_it(tmp_path: Path) -> None:
    page = write_report(tmp_path / "new" / "run", evaluation(REACHED, MISSED))
    found = Links(page.read_text(encoding="utf-8"))
    assert {"curves.png", "episodes/22.mp4", "filmstrips/11.png", "#episode-22"} <= set(found.links)
    for link in found.links:
        if link.startswith("#"):
            assert link[1:] in found.ids
        else:
            assert (page.parent / link).stat().st_size > 0
    assert "http" not in page.read_text(encoding="utf-8")


def test_text_from_outside_is_escaped(tmp_path: Path) -> None:
    hostile = dataclasses.replace(
        evaluation(REACHED, task="<script>alert(1)</script>"),
        settings={"<b>": {"a&b": "</td>"}, '"': None},
    )
    page = write_report(tmp_path, hostile).read_text(encoding="utf-8")
    assert "<script" not in page and "<b>.a" not in page
    assert "<title>&lt;script&gt;alert(1)&lt;/script&gt;: 1 of 1" in page
    assert "<th scope=row>&lt;b&gt;.a&amp;b</th><td>&lt;/td&gt;</td>" in page
    assert "a &lt;fast&gt; one" in page


def test_an_evaluation_that_kept_no_frames_still_has_its_page(tmp_path: Path) -> None:
    bare = [dataclasses.replace(e, frames=None, goal_images=None) for e in (REACHED, MISSED)]
    page = write_report(tmp_path, evaluation(*bare)).read_text(encoding="utf-8")
    assert "1 of 2 goals reached" in page and ">22</th>" in page
    assert "<video" not in page
    assert list((tmp_path / "episodes").iterdir()) == []
    assert Links(page).links == ["curves.png", "curves.png"]


def test_only_episodes_with_frames_have_videos(tmp_path: Path) -> None:
    bare = dataclasses.replace(REACHED, frames=None, goal_images=None)
    page = write_report(tmp_path, evaluation(bare, MISSED)).read_text(encoding="utf-8")
    assert [path.name for path in (tmp_path / "episodes").iterdir()] == ["22.mp4"]
    assert "1 more episodes were run without keeping their frames" in page


def test_an_episode_that_ended_early_counts_in_the_median_with_its_last_value() -> None:
    curves = [np.array([9.0, 1.0]), np.array([8.0, 5.0, 4.0, 3.0]), np.array([7.0, 6.0, 2.0, 0.0])]
    assert median_curve(curves).tolist() == [8.0, 5.0, 2.0, 1.0]


def test_curves_take_episodes_of_different_lengths_and_no_energies(tmp_path: Path) -> None:
    early = episode(33, distances=np.array([0.3, 0.1, 0.02]), success=True, frames=False)
    plot_curves(tmp_path / "ragged.png", evaluation(early, MISSED))
    blind = dataclasses.replace(MISSED, energies=np.zeros(0))
    plot_curves(tmp_path / "blind.png", evaluation(blind))
    for name in ("ragged.png", "blind.png"):
        assert pixels_of(tmp_path / name).shape == (630, 1500, 3)


def test_a_curve_is_broken_where_the_stage_changes() -> None:
    x, y = split_curve(np.array([5.0, 4.0, 9.0, 8.0]), np.array([0, 0, 1, 2]))
    np.testing.assert_array_equal(x, [0, 1, np.nan, 2, np.nan, 3])
    np.testing.assert_array_equal(y, [5, 4, np.nan, 9, np.nan, 8])


def test_energies_to_different_sub_goals_are_not_joined_and_have_no_median(monkeypatch) -> None:
    lines = []
    plot = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda *a, **k: lines.append(a[1:]) or plot(*a, **k))
    monkeypatch.setattr(Figure, "savefig", lambda *a, **k: None)
    plot_curves(Path("unused.png"), evaluation(STAGED))
    energies = [line for line in lines if len(line) > 1 and isinstance(line[1], np.ndarray)]
    broken, dots = energies
    assert np.flatnonzero(np.isnan(broken[1])).tolist() == [4]
    assert dots[0].tolist() == [4] and dots[1].tolist() == [STAGED.energies[4]]
    # The rest are distances: the episode, its median and that of the other policy.
    assert len(lines) - len(energies) == 3


def test_the_goal_beside_the_camera_is_the_present_sub_goal() -> None:
    steps = draw_steps(STAGED, panel=64)
    goals = [int(picture[28 + 32, 8 + 72 + 32, 0]) for picture in steps]
    assert goals == [60] * 4 + [120] * 7


def test_a_filmstrip_shows_every_sub_goal(tmp_path: Path) -> None:
    write_filmstrip(tmp_path / "a.png", STAGED)
    strip = pixels_of(tmp_path / "a.png")
    assert strip.shape == (8 + 168 + 58, 8 + (8 + 3) * 176, 3)
    assert strip[92, 92::176, 0].tolist()[-3:] == [60, 120, 180]


def test_the_page_tells_the_sub_goals_of_a_failure(tmp_path: Path) -> None:
    page = write_report(tmp_path, evaluation(REACHED, STAGED)).read_text(encoding="utf-8")
    failures = page[page.index("What went wrong") : page.index("Distance and energy")]
    text = " ".join(re.sub(r"<[^>]+>", " ", failures).split())
    assert "above grasp from step 4, out of time 1 never tried" in text
    assert "0.0 cm at step 6" in text  # the first grip
    assert "grasp 1 0 1" in text  # one failure in this sub-goal, after one that ran out of time


def test_curves_show_successes_green_and_failures_red(tmp_path: Path) -> None:
    def reddish_and_greenish(result: EpisodeResult) -> tuple[int, int]:
        farther = dataclasses.replace(result, distances=result.distances + 0.1)
        plot_curves(tmp_path / "curves.png", evaluation(result, farther))
        red, green, _ = np.moveaxis(pixels_of(tmp_path / "curves.png").astype(int), -1, 0)
        return int((red - green > 20).sum()), int((green - red > 20).sum())

    red, green = reddish_and_greenish(REACHED)
    assert red == 0 and green > 20
    red, green = reddish_and_greenish(MISSED)
    assert red > 20 and green == 0


def test_the_same_evaluation_gives_the_same_files(tmp_path: Path) -> None:
    """Byte for byte; but for videos, which x264 writes in other bytes about once in fifty times."""
    for name in ("a", "b"):
        write_report(tmp_path / name, evaluation(REACHED, MISSED))
    files = [path for path in sorted((tmp_path / "a").rglob("*")) if path.is_file()]
    assert len(files) == 6
    for path in files:
        twin = tmp_path / "b" / path.relative_to(tmp_path / "a")
        if path.suffix == ".mp4":
            one, other = VideoFrames(path)[:], VideoFrames(twin)[:]
            assert one.shape == other.shape
            assert np.abs(one.astype(int) - other.astype(int)).mean() < 0.5, path.name
        else:
            assert path.read_bytes() == twin.read_bytes(), path.name
