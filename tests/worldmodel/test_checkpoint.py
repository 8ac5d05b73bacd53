import json
import re
from pathlib import Path

import pytest
import torch

from worldmodel import checkpoint
from worldmodel.adaln_predictor import AdaLNPredictor
from worldmodel.jepa import JEPA
from worldmodel.state_head import StateHead
from worldmodel.surprise_calibration import CALIBRATION_FILE, load_calibration


@torch.inference_mode()
def outputs(world: JEPA, make_motion) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (2, 1, 32, 32, 3), generator=generator, dtype=torch.uint8)
    proprio, actions = make_motion(2, 3)
    return world.rollout(world.encode(frames), proprio[:, :1], actions)


def edit(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("merge, standardise", [(1, False), (2, True)])
def test_a_saved_world_imagines_the_same_bit_for_bit(
    make_world, make_motion, tmp_path: Path, merge: int, standardise: bool
) -> None:
    world = make_world(merge=merge, standardise=standardise)
    world.predictor.action_std.mul_(3)
    checkpoint.save(world, tmp_path / "a" / "model", provenance={})
    loaded = checkpoint.load(tmp_path / "a" / "model")
    assert torch.equal(outputs(loaded, make_motion), outputs(world, make_motion))
    assert loaded.control_hz == 4.0
    assert loaded.action_limit == world.action_limit
    assert not loaded.training


def test_half_precision_halves_the_folder_and_changes_little(
    make_world, make_motion, tmp_path: Path
) -> None:
    world = make_world(merge=2, standardise=True)
    checkpoint.save(world, tmp_path / "full", provenance={})
    checkpoint.save(world, tmp_path / "half", provenance={}, dtype=torch.float16)
    full, half = (
        (tmp_path / name / "weights.safetensors").stat().st_size for name in ("full", "half")
    )
    assert half < 0.6 * full
    loaded = checkpoint.load(tmp_path / "half")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(
        outputs(loaded, make_motion), outputs(world, make_motion), atol=0.02, rtol=0.02
    )


def test_a_saved_encoder_gives_the_same_tokens(make_encoder, tmp_path: Path) -> None:
    encoder = make_encoder(rope="tiled")
    checkpoint.save_encoder(encoder, tmp_path, image_size=32, provenance={"steps": 3})
    loaded, image_size = checkpoint.load_encoder(tmp_path)
    clip = torch.randn(1, 3, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(loaded(clip), encoder(clip))
    assert image_size == 32
    assert checkpoint.read_config(tmp_path, kind="encoder")["provenance"] == {"steps": 3}


def test_a_checkpoint_is_json_and_safetensors_and_nothing_pickled(world_checkpoint: Path) -> None:
    assert {f.name for f in world_checkpoint.iterdir()} == {"config.json", "weights.safetensors"}
    json.loads((world_checkpoint / "config.json").read_text())
    weights = (world_checkpoint / "weights.safetensors").read_bytes()
    length = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + length])
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    assert 8 + length + max(ends) == len(weights)  # numbers to the last byte


def test_saving_again_replaces_the_checkpoint(make_world, make_motion, tmp_path: Path) -> None:
    checkpoint.save(make_world(seed=1), tmp_path, provenance={})
    checkpoint.save(make_world(seed=5), tmp_path, provenance={})
    expected = outputs(make_world(seed=5), make_motion)
    assert torch.equal(outputs(checkpoint.load(tmp_path), make_motion), expected)


def test_a_state_head_comes_back_and_a_world_without_says_nothing_of_it(
    make_world, tmp_path: Path
) -> None:
    world = make_world(merge=2)
    checkpoint.save(world, tmp_path / "without", provenance={})
    config = json.loads((tmp_path / "without" / "config.json").read_text())
    assert (
        "state_head" not in config and "state_head" not in config["jepa"]
    )  # as older programs read it
    assert checkpoint.load(tmp_path / "without").state_head is None

    world.state_head = StateHead(latent_dim=96, num_tokens=4, hidden_dim=20, num_hidden=1)
    world.state_head.pose_std.fill_(0.3)
    checkpoint.save(world, tmp_path / "with", provenance={})
    loaded = checkpoint.load(tmp_path / "with")
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 2, 4, 96, generator=generator)
    proprio = torch.rand(2, 7, generator=generator)
    with torch.inference_mode():
        assert torch.equal(loaded.propose(z[0], proprio, z[1]), world.propose(z[0], proprio, z[1]))
    assert checkpoint.load_encoder(tmp_path / "with")[1] == 32


@pytest.mark.parametrize("missing", ["config.json", "weights.safetensors"])
def test_a_missing_file_is_named(make_world, tmp_path: Path, missing: str) -> None:
    checkpoint.save(make_world(), tmp_path, provenance={})
    (tmp_path / missing).unlink()
    message = f"no checkpoint at .*: {missing} missing; expected a folder written by .*train"
    with pytest.raises(FileNotFoundError, match=message):
        checkpoint.load(tmp_path)


def test_a_missing_folder_says_which_command_makes_one(tmp_path: Path) -> None:
    message = "config.json and weights.safetensors missing; expected .* `worldmodel pretrain`"
    with pytest.raises(FileNotFoundError, match=message):
        checkpoint.load_encoder(tmp_path / "nowhere")


def test_an_encoder_is_not_taken_for_a_world(make_encoder, tmp_path: Path) -> None:
    checkpoint.save_encoder(make_encoder(), tmp_path, image_size=32, provenance={})
    with pytest.raises(ValueError, match="holds a checkpoint of kind 'encoder', not 'jepa'"):
        checkpoint.load(tmp_path)


def test_a_newer_version_is_refused(make_world, tmp_path: Path) -> None:
    checkpoint.save(make_world(), tmp_path, provenance={})
    edit(tmp_path, version=2)
    message = "has checkpoint version 2, this program reads 1; update worldmodel"
    with pytest.raises(ValueError, match=message):
        checkpoint.load(tmp_path)


def test_another_programs_folder_is_refused(make_world, tmp_path: Path) -> None:
    checkpoint.save(make_world(), tmp_path, provenance={})
    edit(tmp_path, format="transformers")
    with pytest.raises(ValueError, match="config.json is not a worldmodel checkpoint"):
        checkpoint.load(tmp_path)


def test_damaged_weights_are_called_damaged(make_world, tmp_path: Path) -> None:
    checkpoint.save(make_world(), tmp_path, provenance={})
    file = tmp_path / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"weights.safetensors is damaged \(.*\); fetch it again"):
        checkpoint.load(tmp_path)


def test_weights_of_another_architecture_are_refused(make_world, tmp_path: Path) -> None:
    checkpoint.save(make_world(), tmp_path, provenance={})
    config = checkpoint.read_config(tmp_path, kind="jepa")
    edit(tmp_path, encoder=config["encoder"] | {"depth": 1})
    message = re.compile("do not fit its config: .*Unexpected key", re.DOTALL)
    with pytest.raises(ValueError, match=message):
        checkpoint.load(tmp_path)


def test_the_fingerprint_changes_with_one_weight_and_with_one_argument(make_encoder) -> None:
    encoder = make_encoder()
    before = checkpoint.fingerprint(encoder)
    assert before == checkpoint.fingerprint(make_encoder())
    assert re.fullmatch("[0-9a-f]{16}", before)
    assert checkpoint.fingerprint(make_encoder(rope="tiled")) != before
    with torch.no_grad():
        encoder.norm.bias[3] += 1e-6
    assert checkpoint.fingerprint(encoder) != before


def test_the_shipped_models_are_small_and_load() -> None:
    assert checkpoint.load_default().control_hz == 4.0
    folders = checkpoint.SHIPPED.values()
    size = sum(file.stat().st_size for folder in folders for file in folder.iterdir())
    assert size <= 16 * 2**20


@pytest.mark.parametrize("name", checkpoint.SHIPPED)
def test_a_shipped_model_has_a_name_and_knows_what_is_normal(name: str) -> None:
    world = checkpoint.load(name)
    assert checkpoint.fingerprint(world) == checkpoint.fingerprint(
        checkpoint.load(checkpoint.SHIPPED[name])
    )
    file = checkpoint.SHIPPED[name] / CALIBRATION_FILE
    assert load_calibration(file, world=world, camera="exterior").steps == 16


def test_the_encoder_of_a_world_model_can_be_taken_out(tmp_path, make_world) -> None:
    world = make_world()
    checkpoint.save(world, tmp_path, provenance={})
    encoder, image_size = checkpoint.load_encoder(tmp_path)
    assert image_size == world.image_size
    assert checkpoint.fingerprint(encoder) == checkpoint.fingerprint(world.encoder)


def test_default_names_the_shipped_encoder() -> None:
    encoder, image_size = checkpoint.load_encoder("default")
    shipped = checkpoint.load_default()
    assert image_size == shipped.image_size
    assert checkpoint.fingerprint(encoder) == checkpoint.fingerprint(shipped.encoder)


@pytest.mark.parametrize("kind", sorted(checkpoint.ENCODERS.keys() - {"dino"}))
def test_every_kind_of_encoder_is_saved_and_loaded(kind: str, tmp_path) -> None:
    geometry = {"patch_size": 8, "embed_dim": 24, "depth": 12, "num_heads": 2}
    sized = {"image_size": 32} if kind in ("ijepa", "vjepa1") else {}
    encoder = checkpoint.ENCODERS[kind](**geometry, **sized)
    checkpoint.save_encoder(encoder, tmp_path, image_size=32, provenance={})
    loaded, image_size = checkpoint.load_encoder(tmp_path)
    assert type(loaded) is type(encoder) and image_size == 32
    assert checkpoint.fingerprint(loaded) == checkpoint.fingerprint(encoder)


def test_an_adaln_predictor_is_saved_and_loaded(tmp_path, make_encoder) -> None:
    encoder = make_encoder()
    predictor = AdaLNPredictor(
        latent_dim=encoder.embed_dim, grid_size=(4, 4), embed_dim=24, depth=1, num_heads=2
    )
    world = JEPA(encoder=encoder, predictor=predictor, image_size=32)
    checkpoint.save(world, tmp_path, provenance={})
    loaded = checkpoint.load(tmp_path)
    assert type(loaded.predictor) is AdaLNPredictor
    assert checkpoint.fingerprint(loaded.predictor) == checkpoint.fingerprint(predictor)


def test_an_unknown_kind_of_encoder_is_refused(tmp_path, make_world) -> None:
    checkpoint.save(make_world(), tmp_path, provenance={})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"encoder_type": "vjepa3"}))
    with pytest.raises(ValueError, match="unknown encoder type 'vjepa3'; did you mean 'vjepa2'?"):
        checkpoint.load(tmp_path)
