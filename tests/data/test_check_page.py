import base64
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from worldmodel.data.check_page import write_check_page
from worldmodel.data.episode import Episode
from worldmodel.data.source import Source, open_source
from worldmodel.data.store import EpisodeStore
from worldmodel.data.validate import check


@pytest.fixture
def source(tmp_path: Path, make_episode) -> Source:
    store = EpisodeStore(tmp_path / "store", mode="a")
    for k in range(12):
        episode: Episode = make_episode(k, steps=20, size=16)
        frames = np.array(episode.frames["exterior"])
        frames[5:7] = 0 if k == 7 else frames[5:7]
        metadata = episode.metadata.to_json() | {"name": "<cup> & plate"}
        metadata = type(episode.metadata).from_json(metadata)
        store.write(
            k,
            Episode(
                frames={"exterior": frames},
                proprio=episode.proprio,
                timestamps=episode.timestamps,
                metadata=metadata,
            ),
        )
    shutil.rmtree(store.path / "episodes" / "00000009" / "proprio")
    return open_source(store.path)


def test_the_page_shows_what_was_found_and_loads_nothing(tmp_path, source):
    report = check(source, progress=False)
    assert {(f.episode, f.code) for f in report.findings if f.severity != "info"} == {
        (7, "camera_black"),
        (9, "unreadable"),
    }
    file = write_check_page(report, source, tmp_path / "out" / "check.html", episodes=5)
    page = file.read_text(encoding="utf-8")
    assert "store: 1 error, 1 warning" in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page) and "http" not in page
    for found in report.findings:
        assert found.code in page and found.why in page
    # Every link goes somewhere; the worst comes first, then episodes without a finding.
    anchors = re.findall(r'id="(episode-\d+)"', page)
    assert anchors == ["episode-9", "episode-7", "episode-0", "episode-4", "episode-11"]
    assert set(re.findall(r'href="#([^"]*)"', page)) <= set(anchors)
    assert "&lt;cup&gt; &amp; plate" in page and "<cup>" not in page


def test_frames_that_a_finding_names_are_edged_red(tmp_path, source):
    report = check(source, ids=[7], progress=False)
    page = write_check_page(report, source, tmp_path / "check.html", episodes=1).read_text()
    (data,) = re.findall(r"data:image/jpeg;base64,([^\"]*)", page)
    sheet = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert sheet is not None
    blue, green, red = sheet[1].astype(int).T  # the upper edge of the frames
    redness = (red - np.maximum(blue, green) > 100).reshape(-1, 93).mean(axis=1)
    assert len(redness) == 9 and redness.argmax() == 2 and redness[2] > 0.9
    assert (np.delete(redness, 2) < 0.5).all()


def test_a_set_without_faults_is_said_to_be_fine(tmp_path, source):
    report = check(source, ids=[0, 1, 2], progress=False)
    page = write_check_page(report, source, tmp_path / "check.html").read_text()
    assert "nothing wrong found" in page
    assert page.count("<svg") == 4 * page.count('src="data:image/jpeg')
