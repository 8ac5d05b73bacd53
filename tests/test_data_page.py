"""What docs/data.md says holds: its walk runs, its list of findings and formats is complete."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from worldmodel.cli import main
from worldmodel.data.checks.findings import KINDS
from worldmodel.data.formats import FORMATS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


def test_every_finding_is_explained_with_a_picture() -> None:
    rows = re.findall(
        r"^\| \*\*(.+?)\*\*<br>`(\w+)`<br>!\[.+?\]\((.+?)\) \| (\w+) \| (.+?) \| (.+?) \|$",
        PAGE,
        re.MULTILINE,
    )
    shown = {code: (title, severity, why, fix) for title, code, _, severity, why, fix in rows}
    assert shown == {code: (k.title, k.severity, k.why, k.fix) for code, k in KINDS.items()}
    for _, code, picture, *_ in rows:
        assert picture == f"images/findings/{code}.png" and (ROOT / "docs" / picture).is_file()


def test_every_format_is_listed() -> None:
    assert set(FORMATS) == set(re.findall(r"^\| [^|]+ \| `(\w+)` \|", PAGE, re.MULTILINE))


def test_the_mapping_shown_is_the_example() -> None:
    (shown,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    example = (ROOT / "examples" / "own_logs" / "mapping.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(shown) == yaml.safe_load(example)


@pytest.mark.slow
def test_the_walk_from_a_folder_of_logs_to_a_training_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (walk,) = re.findall(r"^```bash\n(python examples.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    ran = []
    for line in walk.replace("\\\n", " ").splitlines():
        words = [word.strip("'") for word in line.partition("#")[0].split()]
        words = [word.replace("schedule.steps=50", "schedule.steps=2") for word in words]
        words = [word.replace("warmup_steps=10", "warmup_steps=1") for word in words]
        ran.append(words[0])
        if words[0] == "python":
            subprocess.run([sys.executable, ROOT / words[1], *words[2:]], check=True)
        elif words[0] == "cp":
            shutil.copy(ROOT / words[1], words[2])
        else:
            assert words[0] == "worldmodel" and main(words[1:]) == 0
    assert ran == ["python", "cp", "worldmodel", "worldmodel"]
    out = capsys.readouterr().out
    assert "8 episodes, 0 errors, 0 warnings" in out
    assert (tmp_path / "runs/first/model/weights.safetensors").is_file()
