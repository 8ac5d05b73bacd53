from dataclasses import replace
from pathlib import Path

import pytest
import torch

from worldmodel import hub
from worldmodel.hub import registry
from worldmodel.vjepa2_mask_predictor import VJEPA2MaskPredictor


@pytest.fixture
def pretrained(make_encoder) -> dict:
    """A checkpoint as masked pretraining leaves it: only the first mask token was ever used."""
    predictor = VJEPA2MaskPredictor(
        latent_dim=24, grid_size=(4, 4), embed_dim=16, depth=2, num_heads=2
    )
    with torch.no_grad():
        predictor.mask_tokens[0].fill_(0.5)
    target = {f"module.backbone.{k}": v for k, v in make_encoder(seed=3).state_dict().items()}
    online = {k: v.clone() for k, v in target.items()}
    online["module.backbone.norm.bias"] += 0.25
    return {
        "encoder": online,
        "target_encoder": target,
        "predictor": {f"module.{k}": v for k, v in predictor.state_dict().items()},
        "epoch": 40,
        "batch_size": 24,
    }


@pytest.fixture
def world(pretrained, make_predictor) -> dict:
    """A world model whose encoder is the pretrained target encoder."""
    predictor = make_predictor(rotation_input="euler", num_frequencies=0)
    own = {"proprio_mean", "proprio_std", "action_std"}
    return {
        "encoder": {
            k.replace("backbone.", ""): v.clone() for k, v in pretrained["target_encoder"].items()
        },
        "predictor": {k: v for k, v in predictor.state_dict().items() if k not in own},
    }


def write(path: Path, contents: dict) -> Path:
    torch.save(contents, path)
    return path


def test_the_open_questions_about_a_file_are_answered(pretrained, tmp_path: Path) -> None:
    report = hub.describe_checkpoint(write(tmp_path / "model.pt", pretrained))
    text = str(report)
    assert report.ok
    for part in (
        "model.pt\n",
        "entries: encoder, target_encoder, predictor, epoch, batch_size (epoch=40, batch_size=24)",
        "encoder: 28 tensors, ",
        "float32; an encoder of 2 blocks, 24 wide (of no published geometry)",
        "encoder: MLP width 96",
        "target_encoder differs from encoder: at most 0.25, ",
        "predictor: 10 mask tokens, still zero: 1, 2, 3, 4, 5, 6, 7, 8, 9",
        "a masked predictor of 2 blocks",
    ):
        assert part in text


def test_equal_encoders_and_trained_tokens_are_told_so(pretrained, tmp_path: Path) -> None:
    pretrained["encoder"] = pretrained["target_encoder"]
    for index in range(10):
        pretrained["predictor"][f"module.mask_tokens.{index}"] += 1
    text = str(hub.describe_checkpoint(write(tmp_path / "model.pt", pretrained)))
    assert "target_encoder equals encoder exactly" in text
    assert "still zero: none" in text


def test_the_encoder_of_a_world_model_is_compared_with_its_origin(
    pretrained, world, tmp_path: Path
) -> None:
    origin = write(tmp_path / "vitg.pt", pretrained)
    same = hub.describe_checkpoint(write(tmp_path / "same.pt", world), against=origin)
    assert same.ok
    assert f"encoder equals target_encoder of {origin} exactly" in str(same)
    world["encoder"]["module.norm.weight"][3] += 0.5
    other = hub.describe_checkpoint(write(tmp_path / "other.pt", world), against=origin)
    assert not other.ok
    assert f"encoder differs from target_encoder of {origin} by up to 0.5" in str(other)
    del world["encoder"]["module.norm.weight"]
    smaller = hub.describe_checkpoint(write(tmp_path / "smaller.pt", world), against=origin)
    assert "other names or shapes than target_encoder" in str(smaller)


def test_parameters_are_compared_with_the_published(
    pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = sum(v.numel() for v in pretrained["encoder"].values())
    for published, verdict in ((total, "ok"), (total + 1, "bad")):
        tiny = replace(
            hub.find("vjepa2-l"),
            encoder=registry.Transformer(24, 2, 2, 96, published),
            patch_size=8,
        )
        monkeypatch.setattr("worldmodel.hub.layout.MODELS", (tiny,))
        report = hub.describe_checkpoint(write(tmp_path / "model.pt", pretrained))
        assert f"{verdict}  encoder: {published:,} parameters are published" in str(report)
        assert report.ok == (verdict == "ok")


def test_numbers_that_are_not_finite_are_bad(pretrained, tmp_path: Path) -> None:
    pretrained["encoder"]["module.backbone.norm.bias"][0] = torch.nan
    report = hub.describe_checkpoint(write(tmp_path / "model.pt", pretrained))
    assert not report.ok
    assert " bad  encoder: not finite: norm.bias" in str(report)


def test_a_stale_position_table_is_mentioned_and_not_counted(pretrained, tmp_path: Path) -> None:
    before = str(hub.describe_checkpoint(write(tmp_path / "model.pt", pretrained)))
    pretrained["encoder"]["module.backbone.pos_embed"] = torch.zeros(1, 16, 24)
    after = str(hub.describe_checkpoint(write(tmp_path / "model.pt", pretrained)))
    assert "encoder: position table pos_embed in the file" in after
    total = before.partition("tensors, ")[2].partition(" parameters")[0]
    assert f"29 tensors, {total} parameters" in after


def test_a_known_name_with_another_hash_is_bad(pretrained, tmp_path: Path) -> None:
    report = hub.verify(write(tmp_path / "vjepa2_ac_droid.pth.tar", pretrained))
    assert not report.ok
    assert "c08425152bf3" in str(report)
    assert "no published hash is known" in str(hub.verify(write(tmp_path / "x.pt", pretrained)))


def test_the_reference_world_model_is_described(shared: Path) -> None:
    report = hub.verify(shared / "golden" / "vjepa2_ac_tiny.pt")
    assert report.ok
    assert "an action-conditioned predictor of 2 blocks, 128 wide" in str(report)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint file at .*gone.pt"):
        hub.describe_checkpoint(tmp_path / "gone.pt")
