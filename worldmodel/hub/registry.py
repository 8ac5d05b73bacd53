"""The published models of the family: where their weights are, how large they are, whose they are.

A hash or a size that is not known is None; nothing here is guessed. Meta publishes no hashes: the
known ones were recorded by independent users of the same files and agree with each other. A file
without a known hash gets one recorded at its first download (`worldmodel.hub.download`).
"""

from dataclasses import dataclass, replace
from typing import Literal

from worldmodel.images import Crop
from worldmodel.names import unknown

Family = Literal[
    "vjepa2", "vjepa2-ac", "vjepa2.1", "vjepa1", "ijepa", "dinov2", "dinov3", "jepa-wm"
]
Weights = Literal["encoder", "target_encoder", "ema_encoder"]

META = "https://dl.fbaipublicfiles.com"
HUGGING_FACE = "https://huggingface.co"
# The revision of the jepa-wms repository that the sizes and hashes below belong to.
JEPA_WMS = f"{HUGGING_FACE}/facebook/jepa-wms/resolve/9b9c41ef249466630dbf1a20e78391865d07b3b9"


@dataclass(frozen=True)
class RemoteFile:
    """One file of a published model.

    Attributes:
        url: Where it is.
        size: Bytes; None where not known.
        sha256: Hash in hex; None where not known.
    """

    url: str
    size: int | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Transformer:
    """The size of one transformer.

    Attributes:
        embed_dim: Width.
        depth: Number of blocks.
        num_heads: Attention heads a block; a state dict does not tell it.
        mlp_dim: Width of the hidden layer of the MLPs; None where only the file tells.
        parameters: Total number of weights, without a table of fixed positions; None where not
            known.
    """

    embed_dim: int
    depth: int
    num_heads: int
    mlp_dim: int | None
    parameters: int | None = None


@dataclass(frozen=True)
class Model:
    """A published model.

    Attributes:
        name: What it is called here.
        family: Which loader reads it.
        encoder: Size of the encoder; of the one it needs, if the files hold none.
        image_size: Side in pixels of the images it was trained on.
        patch_size: Side in pixels of a patch.
        tubelet_size: Frames a token spans; 1 for image models.
        licence: Of the weights.
        clock_hz: Nominal frames or model steps per second of the training data; None for images.
        files: What to download. Several files make a folder (Hugging Face).
        weights: Which of the state dicts in the file is the encoder to use; None if it has none.
        predictor: Size of the predictor in the same file, if there is one: masked of a V-JEPA 2,
            action-conditioned of a world model.
        position_tokens: Length of the learned or fixed position table; None for rotary positions.
        crop: How a world model's training cut pictures, see `worldmodel.images`.
    """

    name: str
    family: Family
    encoder: Transformer
    image_size: int
    patch_size: int
    tubelet_size: int
    licence: str
    clock_hz: float | None
    files: tuple[RemoteFile, ...]
    weights: Weights | None
    predictor: Transformer | None = None
    position_tokens: int | None = None
    crop: Crop = "none"


VIT_B = Transformer(768, 12, 12, 3072, 86_833_152)  # of V-JEPA 2.1, the only one released
VIT_L = Transformer(1024, 24, 16, 4096, 303_885_312)
VIT_H = Transformer(1280, 32, 16, 5120, 631_648_000)
VIT_G = Transformer(1408, 40, 22, 6144, 1_012_173_952)
MASK_PREDICTOR = Transformer(384, 12, 12, 1536)
AC_PREDICTOR = Transformer(1024, 24, 16, 4096, 305_220_992)


def _vjepa2(name: str, encoder: Transformer, image_size: int, file: str, repo: str) -> list[Model]:
    """Returns the two copies of a V-JEPA 2 model: Meta's file and the Hugging Face folder."""
    meta = Model(
        name=name,
        family="vjepa2",
        encoder=encoder,
        predictor=MASK_PREDICTOR,
        image_size=image_size,
        patch_size=16,
        tubelet_size=2,
        licence="MIT",
        clock_hz=4.0,
        files=(RemoteFile(f"{META}/vjepa2/{file}"),),
        weights="target_encoder",
    )
    # The folder was converted from the key "encoder"; Meta's own evaluations use the other one.
    return [meta, replace(meta, name=f"{name}-hf", files=_folder(repo), weights="encoder")]


def _vjepa21(name: str, encoder: Transformer, weights: Weights, file: RemoteFile) -> Model:
    return Model(
        name=name,
        family="vjepa2.1",
        encoder=encoder,
        image_size=384,
        patch_size=16,
        tubelet_size=2,
        licence="MIT",
        clock_hz=4.0,
        files=(file,),
        weights=weights,
    )


def _ac(name: str, file: RemoteFile, weights: Weights | None, licence: str, crop: Crop) -> Model:
    return Model(
        name=name,
        family="vjepa2-ac",
        encoder=VIT_G,
        predictor=AC_PREDICTOR,
        image_size=256,
        patch_size=16,
        tubelet_size=2,
        licence=licence,
        clock_hz=4.0,
        files=(file,),
        weights=weights,
        crop=crop,
    )


def _vjepa1(name: str, encoder: Transformer, image_size: int, file: str) -> Model:
    return Model(
        name=name,
        family="vjepa1",
        encoder=encoder,
        image_size=image_size,
        patch_size=16,
        tubelet_size=2,
        licence="CC-BY-NC-4.0",
        clock_hz=None,  # every fourth frame, whatever the frame rate
        files=(RemoteFile(f"{META}/jepa/{file}"),),
        weights="target_encoder",
        position_tokens=8 * (image_size // 16) ** 2,
    )


def _ijepa(
    name: str, encoder: Transformer, image_size: int, patch_size: int, file: RemoteFile
) -> Model:
    return Model(
        name=name,
        family="ijepa",
        encoder=encoder,
        image_size=image_size,
        patch_size=patch_size,
        tubelet_size=1,
        licence="CC-BY-NC-4.0",
        clock_hz=None,
        files=(file,),
        weights="target_encoder",
        position_tokens=(image_size // patch_size) ** 2,
    )


def _dinov2(name: str, encoder: Transformer, repo: str) -> Model:
    return Model(
        name=name,
        family="dinov2",
        encoder=encoder,
        image_size=518,
        patch_size=14,
        tubelet_size=1,
        licence="Apache-2.0",
        clock_hz=None,
        files=_folder(repo),
        weights="encoder",
        position_tokens=1 + 37**2,
    )


def _dinov3(name: str, encoder: Transformer, repo: str) -> Model:
    return Model(
        name=name,
        family="dinov3",
        encoder=encoder,
        image_size=224,
        patch_size=16,
        tubelet_size=1,
        licence="DINOv3 License (ask for access)",
        clock_hz=None,
        files=_folder(repo),
        weights="encoder",
    )


def _jepa_wm(name: str, encoder: Transformer, predictor: Transformer, file: RemoteFile) -> Model:
    return Model(
        name=name,
        family="jepa-wm",
        encoder=encoder,
        predictor=predictor,
        image_size=256,
        patch_size=16,
        tubelet_size=1,
        licence="CC-BY-NC-4.0",
        clock_hz=4.0,
        files=(file,),
        weights=None,
    )


def _folder(repo: str) -> tuple[RemoteFile, ...]:
    base = f"{HUGGING_FACE}/facebook/{repo}/resolve/main"
    return (RemoteFile(f"{base}/config.json"), RemoteFile(f"{base}/model.safetensors"))


DINOV3_L = Transformer(1024, 24, 16, 4096, 303_129_600)

MODELS: tuple[Model, ...] = (
    *_vjepa2("vjepa2-l", VIT_L, 256, "vitl.pt", "vjepa2-vitl-fpc64-256"),
    *_vjepa2("vjepa2-h", VIT_H, 256, "vith.pt", "vjepa2-vith-fpc64-256"),
    *_vjepa2("vjepa2-g", VIT_G, 256, "vitg.pt", "vjepa2-vitg-fpc64-256"),
    *_vjepa2("vjepa2-g-384", VIT_G, 384, "vitg-384.pt", "vjepa2-vitg-fpc64-384"),
    _ac("vjepa2-ac", RemoteFile(f"{META}/vjepa2/vjepa2-ac-vitg.pt"), "encoder", "MIT", "squash"),
    _ac(
        "vjepa2-ac-repacked",
        RemoteFile(
            f"{JEPA_WMS}/vjepa2_ac_oss.pth.tar",
            5_269_870_323,
            "c7c2974c2698dd92dc55386e285c390a9be670af4a00f1e247d7b55a0bd291d7",
        ),
        "encoder",
        "MIT",
        "squash",
    ),
    _ac(
        "vjepa2-ac-fixed",
        RemoteFile(
            f"{JEPA_WMS}/vjepa2_ac_droid.pth.tar",
            3_662_844_455,
            "c08425152bf3eee07641654511666c63b1111734432890883989ad2d9b3ba3a6",
        ),
        None,
        "CC-BY-NC-4.0",
        "square",
    ),
    _vjepa21(
        "vjepa2.1-b",
        VIT_B,
        "ema_encoder",
        RemoteFile(
            f"{META}/vjepa2/vjepa2_1_vitb_dist_vitG_384.pt",
            1_664_223_428,
            "848a77c33cc9e6649ed2119c9bea1e2c569bcdab9539ff3e7c02ccc2959ddf4d",
        ),
    ),
    _vjepa21(
        "vjepa2.1-l",
        Transformer(1024, 24, 16, 4096, 304_680_960),
        "ema_encoder",
        RemoteFile(f"{META}/vjepa2/vjepa2_1_vitl_dist_vitG_384.pt"),
    ),
    _vjepa21(
        "vjepa2.1-g",
        Transformer(1408, 40, 22, 6144, 1_013_267_968),
        "target_encoder",
        RemoteFile(f"{META}/vjepa2/vjepa2_1_vitg_384.pt"),
    ),
    _vjepa21(
        "vjepa2.1-gigantic",
        Transformer(1664, 48, 26, None),
        "target_encoder",
        RemoteFile(
            f"{META}/vjepa2/vjepa2_1_vitG_384.pt",
            None,
            "7aae1a3c7a31d258af9c985388b5d2f20587469380f2e11b54d7876ac8cfe58a",
        ),
    ),
    _vjepa1("vjepa1-l", VIT_L, 224, "vitl16/vitl16.pth.tar"),
    _vjepa1("vjepa1-h", VIT_H, 224, "vith16/vith16.pth.tar"),
    _vjepa1("vjepa1-h-384", VIT_H, 384, "vith16-384/vith16-384.pth.tar"),
    _ijepa(
        "ijepa-h14",
        Transformer(1280, 32, 16, 5120, 630_434_560),
        224,
        14,
        RemoteFile(
            f"{META}/ijepa/IN1K-vit.h.14-300e.pth.tar",
            None,
            "0382013c481743e9ccea89f970bc6c6aa126aa19a62127500d6e672a641aae22",
        ),
    ),
    _ijepa(
        "ijepa-h16-448",
        Transformer(1280, 32, 16, 5120, 630_664_960),
        448,
        16,
        RemoteFile(f"{META}/ijepa/IN1K-vit.h.16-448px-300e.pth.tar"),
    ),
    _ijepa(
        "ijepa-h14-22k",
        Transformer(1280, 32, 16, 5120, 630_434_560),
        224,
        14,
        RemoteFile(f"{META}/ijepa/IN22K-vit.h.14-900e.pth.tar"),
    ),
    _ijepa(
        "ijepa-g16-22k",
        Transformer(1408, 40, 16, 6144, 1_011_092_608),
        224,
        16,
        RemoteFile(f"{META}/ijepa/IN22K-vit.g.16-600e.pth.tar"),
    ),
    _dinov2("dinov2-s", Transformer(384, 12, 6, 1536, 22_056_576), "dinov2-small"),
    _dinov2("dinov2-b", Transformer(768, 12, 12, 3072, 86_580_480), "dinov2-base"),
    _dinov2("dinov2-l", Transformer(1024, 24, 16, 4096, 304_368_640), "dinov2-large"),
    _dinov2("dinov2-g", Transformer(1536, 40, 24, 4096, 1_136_480_768), "dinov2-giant"),
    _dinov3(
        "dinov3-s", Transformer(384, 12, 6, 1536, 21_596_544), "dinov3-vits16-pretrain-lvd1689m"
    ),
    _dinov3(
        "dinov3-b", Transformer(768, 12, 12, 3072, 85_660_416), "dinov3-vitb16-pretrain-lvd1689m"
    ),
    _dinov3("dinov3-l", DINOV3_L, "dinov3-vitl16-pretrain-lvd1689m"),
    _jepa_wm(
        "jepa-wm-droid",
        DINOV3_L,
        Transformer(1024, 12, 16, 4096),
        RemoteFile(
            f"{JEPA_WMS}/jepa_wm_droid.pth.tar",
            2_746_249_135,
            "daa69198aef764932f1cb809239a4e19c71da20a93c6a0b9f3869cb30a13f4aa",
        ),
    ),
)


def find(name: str) -> Model:
    """Returns the published model of this name.

    Raises:
        KeyError: There is none; the message names the nearest.
    """
    for model in MODELS:
        if model.name == name:
            return model
    raise KeyError(unknown("published model", name, (model.name for model in MODELS)))


def list_models() -> str:
    """Returns the registry as a table: a line a model, then its files."""
    rows = [("name", "encoder", "pixels", "clock", "weights", "licence", "SHA-256", "URL")]
    for model in MODELS:
        size = model.encoder
        millions = f" ({size.parameters / 1e6:.0f} M)" if size.parameters else ""
        rows.append(
            (
                model.name,
                f"{size.embed_dim}x{size.depth}/{model.patch_size}{millions}",
                str(model.image_size),
                f"{model.clock_hz:g} Hz" if model.clock_hz else "-",
                model.weights or "none in the file",
                model.licence,
                (model.files[-1].sha256 or "unknown")[:12],
                model.files[-1].url,
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
