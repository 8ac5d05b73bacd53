import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from worldmodel import dino
from worldmodel.dino import DinoEncoder

# As the published config.json files, but tiny. The registers' number is what tells them apart.
SIZE: dict[str, Any] = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "dinov2": SIZE | {"patch_size": 4, "image_size": 20},
    "dinov2_with_registers": SIZE | {"patch_size": 4, "image_size": 20, "num_register_tokens": 3},
    "dinov3_vit": SIZE | {"patch_size": 4, "intermediate_size": 48, "num_register_tokens": 4},
}
EVERY_TYPE = pytest.mark.parametrize("model_type", list(CONFIGS))


def make(model_type: str, **changes: Any) -> DinoEncoder:
    pytest.importorskip("transformers")
    encoder = DinoEncoder(config={"model_type": model_type} | CONFIGS[model_type] | changes)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return encoder.eval()


def pixels(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@EVERY_TYPE
@pytest.mark.parametrize("height, width", [(20, 20), (28, 16)])
def test_tokens_are_the_feature_map_of_transformers_own_backbone(
    model_type: str, height: int, width: int
) -> None:
    # The backbone drops class and register tokens and folds patches into a map by its own code.
    encoder, images = make(model_type), pixels(2, 3, height, width)
    from transformers import AutoBackbone  # type: ignore[import-not-found]

    backbone = AutoBackbone.from_config(encoder.model.config).eval()
    weights = encoder.model.state_dict()
    assert set(backbone.state_dict()) <= set(weights)
    backbone.load_state_dict({name: weights[name] for name in backbone.state_dict()})
    with torch.no_grad():
        feature_map = backbone(images).feature_maps[-1]  # (2, D, rows, columns)
        tokens = encoder(images[:, :, None])
    assert feature_map.shape == (2, 24, height // 4, width // 4)
    expected = feature_map.permute(0, 2, 3, 1).flatten(1, 2)
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=0)


@EVERY_TYPE
def test_only_patch_tokens_come_out_in_row_major_order(model_type: str) -> None:
    # Without layers a token is its own patch's alone.
    encoder, dark = make(model_type, num_hidden_layers=0), torch.zeros(1, 3, 1, 8, 12)
    for row in range(2):
        for column in range(3):
            bright = dark.clone()
            bright[..., 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 1
            with torch.no_grad():
                changed = (encoder(bright) != encoder(dark)).any(-1)[0]
            assert changed.shape == (6,)
            assert changed.nonzero().tolist() == [[3 * row + column]]


@EVERY_TYPE
def test_frames_of_a_clip_are_encoded_each_by_itself(model_type: str) -> None:
    encoder, clip = make(model_type), pixels(2, 3, 3, 8, 12)
    assert (encoder.patch_size, encoder.tubelet_size, encoder.embed_dim) == (4, 1, 24)
    assert encoder.frames_per_image == 1
    assert encoder.grid(3, 8, 12) == (3, 2, 3)
    with torch.no_grad():
        single = [encoder(clip[:, :, t : t + 1]) for t in range(3)]
        torch.testing.assert_close(encoder(clip), torch.cat(single, dim=1), atol=1e-5, rtol=0)


@EVERY_TYPE
def test_a_folder_gives_its_weights_in_float32_without_the_network(
    model_type: str, tmp_path: Path
) -> None:
    saved = make(model_type)
    saved.model.to(torch.bfloat16).save_pretrained(tmp_path)
    encoder = dino.load(tmp_path)
    assert not encoder.training
    assert encoder.config == json.loads((tmp_path / "config.json").read_text())
    for name, value in saved.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], value.float())
    with torch.no_grad():
        tokens = encoder(pixels(1, 3, 1, 8, 12))
        rebuilt = DinoEncoder(config=encoder.config).eval()
        rebuilt.load_state_dict(encoder.state_dict())
        assert torch.equal(rebuilt(pixels(1, 3, 1, 8, 12)), tokens)
    assert tokens.dtype == torch.float32 and torch.isfinite(tokens).all()


def test_weights_that_do_not_fit_the_config_are_refused(tmp_path: Path) -> None:
    make("dinov2").model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ValueError, match="do not fit its config: .*missing_keys"):
        dino.load(tmp_path)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_is_refused(tmp_path: Path, missing: str) -> None:
    for name in {"config.json", "model.safetensors"} - {missing}:
        (tmp_path / name).write_text("{}")
    with pytest.raises(FileNotFoundError, match="expected config.json and model.safetensors in"):
        dino.load(tmp_path)


def test_another_kind_of_model_is_refused() -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match="model_type must be one of dinov2, .*, got vit"):
        DinoEncoder(config={"model_type": "vit"})


def test_a_size_that_is_no_multiple_of_the_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of patch_size=4, got 8x14"):
        make("dinov2")(pixels(1, 3, 1, 8, 14))


def test_without_transformers_the_command_that_installs_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'worldmodel\[dino\]'"):
        DinoEncoder(config={"model_type": "dinov2"})
