import json
import pickle
import re
from pathlib import Path

import pytest
import torch

from worldmodel import hub
from worldmodel.jepa import JEPA

GEOMETRY = {
    "image_size": 32,
    "patch_size": 8,
    "tubelet_size": 2,
    "layer_norm_eps": 1e-6,
    "encoder": {"embed_dim": 24, "depth": 2, "num_heads": 2, "mlp_ratio": 4.0},
    "predictor": {
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 4.0,
        "use_extrinsics": False,
    },
}


@pytest.fixture
def published(make_encoder, make_predictor, tmp_path: Path) -> dict:
    """The contents of a checkpoint file in Meta's layout."""
    encoder = make_encoder(rope="tiled")
    predictor = make_predictor(residual=False, rotation_input="euler", num_frequencies=0)
    own = {"proprio_mean", "proprio_std", "action_std"}
    return {
        "encoder": {f"module.backbone.{k}": v for k, v in encoder.state_dict().items()},
        "predictor": {f"module.{k}": v for k, v in predictor.state_dict().items() if k not in own},
        "epoch": 3,
    }


@pytest.fixture
def load(tmp_path: Path):
    """Writes a checkpoint and its geometry, and loads them."""

    def write_and_load(contents: object, geometry: dict | None = None) -> JEPA:
        path, config = tmp_path / "model.pt", tmp_path / "model.json"
        torch.save(contents, path)
        config.write_text(json.dumps(GEOMETRY if geometry is None else geometry))
        return hub.load(path, config=config)

    return write_and_load


def test_the_reference_checkpoint_loads_and_imagines_as_the_reference_does(
    golden_world, golden
) -> None:
    assert not golden_world.training
    with torch.inference_mode():
        latents = golden_world.encode(golden["frames"])
        imagined = golden_world.rollout(latents[:, :1], golden["states"], golden["actions"])
    expected = golden["rollout_tokens_normalised"].unflatten(1, (3, 16))
    torch.testing.assert_close(imagined, expected, atol=1e-5, rtol=0)


def test_wrapper_prefixes_and_stale_position_tables_are_dropped(load, published) -> None:
    published["encoder"]["module.backbone.pos_embed"] = torch.zeros(1, 16, 24)
    published["predictor"]["module.predictor_pos_embed"] = torch.zeros(1, 16, 32)
    world = load(published)
    for name, value in world.encoder.state_dict().items():
        assert torch.equal(value, published["encoder"][f"module.backbone.{name}"])
    bias = world.predictor.predictor_proj.bias
    assert torch.equal(bias, published["predictor"]["module.predictor_proj.bias"])


def test_a_foreign_model_keeps_its_own_conventions(load, published) -> None:
    world = load(published)
    assert world.encoder.rope == world.predictor.rope == "tiled"
    assert world.predictor.rotation_input == "euler"
    assert not world.predictor.residual
    assert not world.standardise
    assert float(world.predictor.action_std.min()) == float(world.predictor.action_std.max()) == 1


@pytest.mark.parametrize("missing", ["model.pt", "model.json"])
def test_a_missing_file_is_named(load, published, tmp_path: Path, missing: str) -> None:
    load(published)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"no checkpoint file at .*{missing}; download it"):
        hub.load(tmp_path / "model.pt", config=tmp_path / "model.json")


def test_a_missing_entry_of_the_config_is_named(load, published) -> None:
    geometry = {key: value for key, value in GEOMETRY.items() if key != "layer_norm_eps"}
    message = "model.json has no 'layer_norm_eps'; it has encoder, image_size, patch_size"
    with pytest.raises(KeyError, match=message):
        load(published, geometry)


def test_a_missing_part_of_the_checkpoint_is_named(load, published) -> None:
    del published["predictor"]
    with pytest.raises(KeyError, match=r"model.pt has no 'predictor'; it has encoder, epoch"):
        load(published)


def test_a_missing_an_unexpected_and_a_misshapen_weight_are_named(load, published) -> None:
    del published["encoder"]["module.backbone.norm.bias"]
    published["encoder"]["module.backbone.cls_token"] = torch.zeros(24)
    published["encoder"]["module.backbone.norm.weight"] = torch.ones(25)
    with pytest.raises(ValueError) as caught:
        load(published)
    for part in (
        "the encoder weights in ",
        "do not fit the config: ",
        "missing norm.bias",
        "unexpected cls_token",
        "norm.weight is (25,), expected (24,)",
    ):
        assert part in str(caught.value)


def test_a_geometry_that_fits_nothing_is_summed_up(load, published) -> None:
    geometry = GEOMETRY | {"encoder": GEOMETRY["encoder"] | {"depth": 3}}
    with pytest.raises(ValueError, match=r"missing blocks.2.* and 7 more$"):
        load(published, geometry)


class Surprise:
    def __reduce__(self):
        return (Path("/tmp").exists, ())


def test_a_file_that_could_run_code_is_refused(load, published) -> None:
    published["epoch"] = Surprise()
    with pytest.raises(pickle.UnpicklingError, match=re.escape("Weights only load failed")):
        load(published)
