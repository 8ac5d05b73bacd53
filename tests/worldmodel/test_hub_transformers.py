"""V-JEPA 2 as `transformers` implements it, against ours with the same weights.

`WORLDMODEL_WEIGHTS` names a folder of real weights, laid out like the cache of downloads
(<model>/<file>); without it only random weights are compared.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from worldmodel import hub

transformers = pytest.importorskip("transformers")

# Every published geometry with its head size and MLP ratio, but two blocks and fewer heads.
GEOMETRIES = {
    "vjepa2-l": {"hidden_size": 256, "num_attention_heads": 4, "mlp_ratio": 4.0},
    "vjepa2-h": {"hidden_size": 240, "num_attention_heads": 3, "mlp_ratio": 4.0},
    "vjepa2-g": {"hidden_size": 704, "num_attention_heads": 11, "mlp_ratio": 48 / 11},
    "vjepa2-g-384": {"hidden_size": 704, "num_attention_heads": 11, "mlp_ratio": 48 / 11},
}
REAL = [model for model in hub.MODELS if model.name in {f"{name}-hf" for name in GEOMETRIES}]


def save_random(folder: Path, name: str) -> None:
    """Has `transformers` write a model of this geometry with random weights."""
    published = hub.find(name)
    size = GEOMETRIES[name]
    heads = published.encoder.num_heads
    assert size["hidden_size"] // size["num_attention_heads"] == (
        published.encoder.embed_dim // heads
    )
    config = transformers.VJEPA2Config(
        crop_size=published.image_size, num_hidden_layers=2, pred_num_hidden_layers=2, **size
    )
    torch.manual_seed(0)
    model = transformers.VJEPA2Model(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # not zero biases, not zero mask tokens
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)


def reference(folder: Path):
    return transformers.VJEPA2Model.from_pretrained(
        folder, local_files_only=True, attn_implementation="eager"
    ).eval()


def clip_for(image_size: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    frames = 4 if image_size == 256 else 2  # two time steps; one at 384 pixels, for speed
    return torch.randn(1, 3, frames, image_size, image_size, generator=generator)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    paths = {name: tmp_path_factory.mktemp(name) for name in GEOMETRIES}
    for name, path in paths.items():
        save_random(path, name)
    return paths


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_encoder_is_that_of_transformers(folders: dict[str, Path], name: str) -> None:
    loaded = hub.load_encoder(folders[name])
    clip = clip_for(loaded.image_size)
    with torch.inference_mode():
        theirs = reference(folders[name])(clip.transpose(1, 2), skip_predictor=True)
        ours = loaded.encoder(clip)
    difference = float((ours - theirs.last_hidden_state).abs().max())
    print(f"{name}: max difference {difference:.2g}")
    assert loaded.image_size == hub.find(name).image_size
    assert difference < 1e-5


@pytest.mark.parametrize("name", ["vjepa2-l", "vjepa2-h"])
def test_the_masked_predictor_is_that_of_transformers(folders: dict[str, Path], name: str) -> None:
    encoder, predictor = (load(folders[name]) for load in (_encoder, hub.load_mask_predictor))
    clip = clip_for(256)
    ids = torch.randperm(512, generator=torch.Generator().manual_seed(2))
    kept, hidden = ids[None, :200].sort().values, ids[None, 200:300].sort().values
    with torch.inference_mode():
        theirs = reference(folders[name])(
            clip.transpose(1, 2), context_mask=[kept], target_mask=[hidden]
        )
        context = encoder(clip)[:, kept[0]]
        ours = predictor(context, kept, hidden, mask_token=1)
    difference = float((ours - theirs.predictor_output.last_hidden_state).abs().max())
    print(f"{name} predictor: max difference {difference:.2g}")
    assert difference < 1e-5


def _encoder(folder: Path):
    return hub.load_encoder(folder).encoder


def test_older_names_and_classifiers_load_too(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["vjepa2-l"]
    weights = load_file(folder / "model.safetensors")
    older = {
        f"vjepa2.{name}".replace(".attention.", ".attention.attention."): value
        for name, value in weights.items()
    } | {"classifier.weight": torch.zeros(3, 3)}
    save_file(older, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    expected = hub.load_encoder(folder).encoder.state_dict()
    for name, value in hub.load_encoder(tmp_path).encoder.state_dict().items():
        assert torch.equal(value, expected[name])


def test_what_does_not_fit_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["vjepa2-l"]
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.0.attention.key.bias"]
    weights["encoder.cls_token"] = torch.zeros(1)
    save_file(weights, tmp_path / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"missing blocks.0.attn.qkv.bias; unexpected blocks.0.at"):
        hub.load_encoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_act": "swiglu"}))
    with pytest.raises(ValueError, match="'hidden_act': 'swiglu'.* expected vjepa2 with"):
        hub.load_encoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config)[:-9])
    with pytest.raises(ValueError, match=r"config.json is damaged"):
        hub.load_encoder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model.safetensors missing"):
        hub.load_encoder(tmp_path)


def test_a_folder_has_no_target_encoder(folders: dict[str, Path]) -> None:
    with pytest.raises(KeyError, match="has no 'target_encoder': such folders hold only"):
        hub.load_encoder(folders["vjepa2-l"], weights="target_encoder")


def test_a_dino_folder_loads_behind_the_same_function(tmp_path: Path) -> None:
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    theirs = transformers.Dinov2Model(config).eval()
    theirs.save_pretrained(tmp_path)
    loaded = hub.load_encoder(tmp_path)
    image = torch.randn(1, 3, 28, 28)
    with torch.inference_mode():
        expected = theirs(image).last_hidden_state[:, 1:]
        tokens = loaded.encoder(image[:, :, None])
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=0)
    assert (loaded.image_size, loaded.provenance["weights"]) == (28, "encoder")


def test_forensics_read_a_folder(folders: dict[str, Path]) -> None:
    text = str(hub.verify(folders["vjepa2-h"]))
    assert "10 mask tokens, still zero: none" in text
    assert "an encoder of 2 blocks, 240 wide (of no published geometry)" in text


@pytest.mark.parametrize("model", REAL, ids=lambda model: model.name)
def test_real_weights_encode_as_in_transformers(model: hub.Model) -> None:
    folder = Path(os.environ.get("WORLDMODEL_WEIGHTS", "")) / model.name
    if "WORLDMODEL_WEIGHTS" not in os.environ or not folder.is_dir():
        pytest.skip(f"no real weights: WORLDMODEL_WEIGHTS has no {model.name}")
    clip = clip_for(model.image_size)[:, :, :2]
    with torch.inference_mode():
        theirs = reference(folder)(clip.transpose(1, 2), skip_predictor=True).last_hidden_state
        ours = hub.load_encoder(folder).encoder(clip)
    assert float((ours - theirs).abs().max()) < 1e-3  # the criterion of the published conversion
