import io
import json
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodel import hub
from worldmodel.encoder import VideoEncoder
from worldmodel.encoder21 import VideoEncoder21
from worldmodel.hub import layout, registry
from worldmodel.interfaces import Encoder
from worldmodel.jepa import JEPA
from worldmodel.predictor import ActionConditionedPredictor
from worldmodel.sincos_encoders import IJepaEncoder, VJepa1Encoder

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
TINY = registry.Transformer(24, 2, 2, 96)


@pytest.fixture
def published(make_encoder, make_predictor) -> dict:
    """The contents of a checkpoint file in Meta's layout."""
    encoder = make_encoder(rope="tiled")
    target = make_encoder(rope="tiled", seed=5)
    predictor = make_predictor(residual=False, rotation_input="euler", num_frequencies=0)
    own = {"proprio_mean", "proprio_std", "action_std"}
    return {
        "encoder": {f"module.backbone.{k}": v for k, v in encoder.state_dict().items()},
        "target_encoder": {f"module.backbone.{k}": v for k, v in target.state_dict().items()},
        "predictor": {f"module.{k}": v for k, v in predictor.state_dict().items() if k not in own},
        "epoch": 3,
    }


@pytest.fixture
def tiny_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts two encoders of one tiny shape and a world model of it in the place of the registry."""
    large = registry.find("vjepa2-l")
    models = (
        replace(large, name="tiny", encoder=TINY, patch_size=8, image_size=32),
        replace(
            large,
            name="tiny-large",
            encoder=TINY,
            patch_size=8,
            image_size=64,
            files=(registry.RemoteFile("https://example.org/tiny-large.pt"),),
        ),
        replace(
            registry.find("vjepa2-ac"),
            name="tiny-ac",
            encoder=TINY,
            predictor=registry.Transformer(32, 2, 2, 128),
            patch_size=8,
            image_size=32,
            files=(registry.RemoteFile("https://example.org/tiny-ac.pt"),),
        ),
    )
    for module in ("registry", "layout", "loading", "forensics"):
        monkeypatch.setattr(f"worldmodel.hub.{module}.MODELS", models)


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


def test_half_precision_files_load_in_full_precision(load, published) -> None:
    halves = {k: v.bfloat16() for k, v in published["encoder"].items()}
    world = load(published | {"encoder": halves})
    assert {value.dtype for value in world.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("missing", ["model.pt", "model.json"])
def test_a_missing_file_is_named(load, published, tmp_path: Path, missing: str) -> None:
    load(published)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"no c[a-z]* file at .*{missing}"):
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
        " do not fit: missing norm.bias; ",
        "unexpected cls_token; ",
        "of another shape: norm.weight is (25,), expected (24,). ",
        "They look like an encoder of 2 blocks, 24 wide (of no published geometry)",
    ):
        assert part in str(caught.value)


def test_a_model_that_lacks_a_block_is_refused_and_summed_up(load, published) -> None:
    geometry = GEOMETRY | {"encoder": GEOMETRY["encoder"] | {"depth": 3}}
    with pytest.raises(ValueError, match=r"missing blocks.2.* and 8 more\. They look like"):
        load(published, geometry)


def test_jepa_wms_naming_of_the_proprio_layer_is_accepted(load, published) -> None:
    state = published["predictor"]
    expected = state["module.state_encoder.weight"]
    for name in ("weight", "bias"):
        state[f"module.proprio_encoder.{name}"] = state.pop(f"module.state_encoder.{name}")
    assert torch.equal(load(published).predictor.state_encoder.weight, expected)


class Surprise:
    """A pickle of it leaves a file behind when it is read."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("layout", ["archive", "bare pickle"])
def test_a_file_that_could_run_code_is_refused(tmp_path: Path, published, layout: str) -> None:
    path, trace = tmp_path / "model.pt", tmp_path / "trace"
    contents = published | {"epoch": Surprise(trace)}
    if layout == "archive":
        torch.save(contents, path)
    else:
        torch.save(contents, path, _use_new_zipfile_serialization=False)
    with pytest.raises(
        ValueError, match=r"refused .*model.pt: reading it would run code \(.*mkdir"
    ):
        hub.load(path)
    assert not trace.exists()
    # The very same bytes do run where nobody refuses them.
    pickle.load(io.BytesIO(pickle.dumps(Surprise(trace))))
    assert trace.exists()


def test_a_truncated_file_is_named(load, published, tmp_path: Path) -> None:
    load(published)
    path = tmp_path / "model.pt"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"model.pt is cut short \(\d+ bytes"):
        hub.load(path, config=tmp_path / "model.json")


@pytest.mark.parametrize("bytes_", [b"", b"<html>not found</html>"])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path, bytes_: bytes) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(bytes_)
    with pytest.raises(ValueError, match=r"model.pt is damaged"):
        hub.load(path)


def test_a_file_of_bare_weights_is_named(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "model.pt")
    with pytest.raises(ValueError, match="holds a list, expected a dict of weights"):
        hub.load(tmp_path / "model.pt")


def test_which_encoder_is_loaded_is_chosen_and_recorded(
    tiny_models, published, tmp_path: Path
) -> None:
    path = tmp_path / "vitl.pt"
    del published["predictor"]
    torch.save(published, path)
    by_default = hub.load_encoder(path)
    online = hub.load_encoder(path, weights="encoder")
    assert by_default.image_size == 32
    assert by_default.provenance["weights"] == "target_encoder"
    assert online.provenance == by_default.provenance | {"weights": "encoder"}
    assert by_default.provenance["model"] == "tiny"
    for loaded in (by_default, online):
        state = published[loaded.provenance["weights"]]
        for name, value in loaded.encoder.state_dict().items():
            assert torch.equal(value, state[f"module.backbone.{name}"])


def test_two_models_of_one_shape_need_a_name(tiny_models, published, tmp_path: Path) -> None:
    path = tmp_path / "download.pt"
    torch.save(published, path)
    with pytest.raises(ValueError, match="could be tiny or tiny-large or tiny-ac, .* pass name="):
        hub.load_encoder(path)
    assert hub.load_encoder(path, name="tiny-large").image_size == 64
    path.rename(tmp_path / "tiny-large.pt")
    assert hub.load_encoder(tmp_path / "tiny-large.pt").image_size == 64


def test_a_world_model_is_recognised_without_a_config(
    tiny_models, published, tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    torch.save(published, path)
    world = hub.load(path)
    assert (world.image_size, world.crop, world.predictor.num_heads) == (32, "squash", 2)
    assert torch.equal(
        world.encoder.norm.bias, published["encoder"]["module.backbone.norm.bias"]
    )  # never the target encoder


def test_a_file_with_only_a_predictor_takes_an_encoder(
    tiny_models, published, make_encoder, tmp_path: Path
) -> None:
    path, encoder = tmp_path / "model.pt", make_encoder(rope="tiled")
    torch.save(published, path)
    with pytest.raises(ValueError, match="leave encoder= out"):
        hub.load(path, encoder=encoder)
    torch.save({"predictor": published["predictor"]}, path)
    assert hub.load(path, encoder=encoder).encoder is encoder
    with pytest.raises(KeyError, match="has no 'encoder'; it has predictor"):
        hub.load(path)


def test_an_unknown_geometry_asks_for_a_config(published, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(published, path)
    with pytest.raises(ValueError, match=r"an action-conditioned predictor .* pass config="):
        hub.load(path)
    with pytest.raises(ValueError, match=r"of no published geometry\); pass config="):
        hub.load_encoder(path)


def test_names_that_do_not_exist_are_answered_with_the_nearest() -> None:
    with pytest.raises(
        KeyError, match="unknown published model 'vjepa2-XL'; did you mean 'vjepa2-"
    ):
        hub.load_encoder("vjepa2-XL")
    with pytest.raises(KeyError, match="did you mean 'vjepa2-ac'"):
        hub.find("vjepa2_ac")


def test_a_family_that_is_not_read_is_named(tmp_path: Path) -> None:
    torch.save({"encoder": {}}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="jepa-wm-droid is a jepa-wm model; Meta's files are read"):
        hub.load_encoder(tmp_path / "model.pt", name="jepa-wm-droid")


@pytest.mark.parametrize("weights", ["ema_encoder", "target_encoder"])
@pytest.mark.parametrize("kind", ["clip", "image"])
def test_the_reference_v_jepa_2_1_encodes_as_the_reference_does(
    shared: Path, weights: registry.Weights, kind: str
) -> None:
    folder = shared / "golden"
    loaded = hub.load_encoder(
        folder / "vjepa21_tiny.pt", config=folder / "vjepa21_tiny.json", weights=weights
    )
    assert loaded.provenance["weights"] == weights
    with np.load(folder / "vjepa21_tiny_io.npz") as arrays, torch.inference_mode():
        tokens = loaded.encoder(torch.from_numpy(arrays[kind]))
        expected = torch.from_numpy(arrays[f"{kind}_tokens"])
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=0)


def test_several_encoders_and_no_choice_are_refused(published, tmp_path: Path) -> None:
    path, config = tmp_path / "model.pt", tmp_path / "model.json"
    torch.save(published, path)
    config.write_text(json.dumps(GEOMETRY))
    with pytest.raises(ValueError, match="pass weights= one of encoder, target_encoder"):
        hub.load_encoder(path, config=config)
    with pytest.raises(KeyError, match="has no 'ema_encoder'; it has encoder, epoch"):
        hub.load_encoder(path, config=config, weights="ema_encoder")


@pytest.mark.parametrize(
    "family, encoder",
    [
        ("ijepa", IJepaEncoder(image_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2)),
        ("vjepa1", VJepa1Encoder(image_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2)),
    ],
)
def test_encoders_with_fixed_positions_load_with_their_table(
    tmp_path: Path, family: str, encoder: Encoder
) -> None:
    path, config = tmp_path / "model.pth.tar", tmp_path / "model.json"
    state = {f"module.{name}": value for name, value in encoder.state_dict().items()}
    torch.save({"encoder": state}, path)
    config.write_text(json.dumps(GEOMETRY | {"family": family}))
    loaded = hub.load_encoder(path, config=config).encoder
    clip = torch.randn(1, 3, 2, 32, 32)
    with torch.inference_mode():
        assert torch.equal(loaded(clip), encoder(clip))
    del state["module.pos_embed"]
    torch.save({"encoder": state}, path)
    with pytest.raises(ValueError, match="missing pos_embed"):
        hub.load_encoder(path, config=config)


def test_an_unknown_family_in_a_config_is_named(load, published, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown family 'vjepa3'; did you mean 'vjepa"):
        load(published, GEOMETRY | {"family": "vjepa3"})


@pytest.mark.parametrize(
    "name, family",
    [("vjepa2-l", "vjepa2"), ("vjepa1-l", "vjepa1"), ("vjepa2.1-l", "vjepa2.1")],
)
def test_shapes_alone_tell_the_families_of_one_size_apart(name: str, family: str) -> None:
    size = layout.Layout(
        embed_dim=1024,
        depth=24,
        mlp_dim=4096,
        patch_size=16,
        tubelet_size=2,
        position_tokens=hub.find(name).position_tokens,
        per_level_norms=family == "vjepa2.1",
    )
    assert [model.name for model in layout.candidates(size)] == [name]


def test_the_registry_is_consistent() -> None:
    names = [model.name for model in hub.MODELS]
    assert len(set(names)) == len(names)
    for model in hub.MODELS:
        assert hub.find(model.name) is model
        assert model.image_size % model.patch_size == 0
        assert model.encoder.embed_dim % model.encoder.num_heads == 0
        for file in model.files:
            assert file.url.startswith("https://")
            assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
    table = hub.list_models()
    assert all(name in table for name in names)


def build(cls: type[torch.nn.Module], size: registry.Transformer, **arguments) -> int:
    """The number of weights of a model of this size; none of them takes memory."""
    assert size.mlp_dim is not None
    with torch.device("meta"):
        module = cls(
            embed_dim=size.embed_dim,
            depth=size.depth,
            num_heads=size.num_heads,
            mlp_ratio=layout.mlp_ratio(size.embed_dim, size.mlp_dim),
            **arguments,
        )
    return sum(parameter.numel() for parameter in module.parameters())


ENCODERS = {
    "vjepa2": VideoEncoder,
    "vjepa2-ac": VideoEncoder,
    "vjepa2.1": VideoEncoder21,
    "vjepa1": VJepa1Encoder,
    "ijepa": IJepaEncoder,
}


@pytest.mark.parametrize("family", ENCODERS)
def test_the_registry_counts_parameters_as_the_models_do(family: str) -> None:
    for model in hub.MODELS:
        if model.family == family and model.encoder.mlp_dim is not None:
            extra = {"patch_size": model.patch_size, "image_size": model.image_size}
            arguments = extra if family == "ijepa" else {}
            assert build(ENCODERS[family], model.encoder, **arguments) == model.encoder.parameters


def test_the_registry_counts_the_parameters_of_the_action_conditioned_predictor() -> None:
    predictor = hub.find("vjepa2-ac").predictor
    assert predictor is not None
    count = build(
        ActionConditionedPredictor,
        predictor,
        latent_dim=1408,
        grid_size=(16, 16),
        rotation_input="euler",
        num_frequencies=0,
    )
    assert count == predictor.parameters == 305_220_992


@pytest.mark.parametrize("width, hidden", [(1408, 6144), (1664, 8192), (1664, 6656), (1280, 5120)])
def test_the_mlp_ratio_gives_back_the_exact_width(width: int, hidden: int) -> None:
    assert int(width * layout.mlp_ratio(width, hidden)) == hidden
