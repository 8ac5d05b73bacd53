import json
from pathlib import Path

from worldmodel.cli import main


def test_the_shipped_model_reaches_goal_images_that_no_baseline_reaches(tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ["task=reach", "episodes=3", "seed=2", "backend=ray", "videos=1", f"run={run}"]
    assert main(["evaluate", *arguments, "oracle_episodes=0"]) == 0
    numbers = json.loads((run / "metrics.json").read_text())
    rows = {row["policy"]: row for row in numbers["rows"]}
    assert rows["planner"]["successes"] >= 2
    assert rows["planner"]["final_distance_cm"]["p50"] < 4
    assert rows["random"]["successes"] == rows["do_nothing"]["successes"] == 0
    assert numbers["settings"]["renderer"] == "ray"
    assert (run / "report.html").is_file()
    assert len(list((run / "episodes").glob("*.mp4"))) == 1
