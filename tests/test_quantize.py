"""int8: the layers against whole-number arithmetic written out, features against float32, and what must be refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import checkpoints
import everyframe as ef
from everyframe.backbone import Model
from everyframe.backbone.model import parse_precision
from everyframe.backbone.quantize import ROWS, Int8Linear, Int8Mlp, check_int8, is_quantized, quantize
from everyframe.backbone.vit import Block, BlockConfig, Mlp
from everyframe.encoders.baselines import fidelity
from everyframe.pipeline.decoding import model_facts
from everyframe.scale.shipping import arrive, ship
from everyframe.synthetic import SyntheticVideo
from everyframe.training import distill, open_clips
from everyframe.training.finetune_recipe import FinetuneRecipe

CPU = torch.device("cpu")


def _int8_here() -> bool:
    try:
        check_int8(CPU)
    except ValueError:
        return False
    return True


here = pytest.mark.skipif(not _int8_here(), reason="this processor or this torch has no int8")


def rounded(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows as whole numbers and a scale each, one row after the other."""
    whole, scales = np.zeros(rows.shape, np.int64), np.zeros((len(rows), 1))
    for number, row in enumerate(rows.astype(np.float64)):
        largest = np.abs(row).max()
        if largest > 0:
            scales[number] = largest / 127
            whole[number] = np.rint(row / scales[number])
    return whole, scales


def linear_reference(linear: nn.Linear, rows: np.ndarray) -> np.ndarray:
    """[m, K] -> float64 [m, N]: both sides to whole numbers, their product in integers, then the two scales."""
    left, row_scales = rounded(rows)
    right, channel_scales = rounded(linear.weight.detach().numpy())
    bias = 0.0 if linear.bias is None else linear.bias.detach().double().numpy()
    return (left @ right.T) * row_scales * channel_scales.T + bias


def made_linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(inputs)
    return nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)


@here
@pytest.mark.parametrize(("inputs", "outputs", "bias"), [(48, 40, True), (33, 7, False), (256, 130, True)])
@pytest.mark.parametrize("count", [1, 5, ROWS + 3])
def test_linear_is_whole_number_arithmetic(inputs: int, outputs: int, bias: bool, count: int) -> None:
    linear = made_linear(inputs, outputs, bias=bias)
    rows = torch.randn(count, inputs) * torch.logspace(-3, 3, count)[:, None]  # every row with a size of its own
    found, wanted = Int8Linear(linear)(rows).double().numpy(), linear_reference(linear, rows.numpy())
    # A value exactly between two whole numbers may fall to either side in float32: one step of one weight at most.
    step = np.abs(rows.numpy()).max(1, keepdims=True) / 127 * float(linear.weight.abs().max())
    assert (np.abs(found - wanted) <= 2.1 * step).all()
    assert (np.abs(found - wanted) > 1e-5 * (1 + np.abs(wanted))).mean() < 0.05


@here
def test_zero_and_extreme_rows() -> None:
    linear = made_linear(16, 8)
    rows = torch.zeros(4, 16)
    rows[1, 3], rows[2], rows[3, 5] = -2.0, 1e-30, 1e30
    found = Int8Linear(linear)(rows)
    assert torch.equal(found[0], linear.bias)
    assert torch.isfinite(found).all()
    assert torch.allclose(found[1], linear(rows[1]), atol=2 * float(linear.weight.abs().max()) / 127)
    assert torch.isnan(Int8Linear(linear)(torch.full((1, 16), float("nan")))).all()


@here
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_do_not_depend_on_others(dtype: torch.dtype) -> None:
    layer = Int8Linear(made_linear(64, 48))
    x = torch.randn(3, ROWS, 64).to(dtype)
    whole = layer(x)
    assert whole.shape == (3, ROWS, 48)
    assert whole.dtype == dtype
    assert torch.equal(layer(x[1, 5]), whole[1, 5])
    assert torch.equal(layer(x[:, 3:4]), whole[:, 3:4])
    assert torch.equal(layer(x.transpose(0, 1)), whole.transpose(0, 1))
    assert layer(x[:0]).shape == (0, ROWS, 48)


@here
@pytest.mark.parametrize(
    ("activation", "gated"), [("quick_gelu", False), ("gelu", False), ("silu", True), ("quick_gelu", True)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mlp_against_its_float_self(activation: str, gated: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    config = BlockConfig(width=64, heads=4, mlp_width=256, activation=activation, norm_eps=1e-5, gated_mlp=gated)
    mlp = Mlp(config).requires_grad_(False)
    x = torch.randn(2, ROWS + 9, 64) * 3
    quantised = Int8Mlp(mlp)
    found, wanted = quantised(x.to(dtype)), mlp(x)
    assert found.dtype == dtype
    assert torch.cosine_similarity(found.float(), wanted, dim=-1).min() > 0.999
    assert torch.equal(quantised(x[1, 4:6].to(dtype)), found[1, 4:6])


@here
def test_loud_channels_do_not_drown_the_others() -> None:
    torch.manual_seed(3)
    config = BlockConfig(width=128, heads=4, mlp_width=256, activation="gelu", norm_eps=1e-5)
    blocks = nn.ModuleList([Block(config)]).requires_grad_(False)
    for norm, linear in ((blocks[0].norm1, blocks[0].qkv), (blocks[0].norm2, blocks[0].mlp.fc1)):
        norm.weight[5], norm.bias[7], linear.weight[:, 9] = 100.0, 0.5, 0.0
        linear.weight[:, 5] /= 100
        norm.weight[11] = 0.0
    x = torch.randn(2, 20, 128)
    wanted = blocks[0](x)
    quantize(blocks)
    assert torch.cosine_similarity(blocks[0](x) - x, wanted - x, dim=-1).min() > 0.995


# --- models ----------------------------------------------------------------------------------------------


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "clip": lambda path: checkpoints.clip(path, width=64, depth=4),
    "siglip": checkpoints.siglip,
    "dinov2-swiglu": lambda path: checkpoints.dinov2(path, swiglu=True),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = FAMILIES[name](tmp_path_factory.mktemp(name))
        return made[name]

    return make


@pytest.fixture(scope="module")
def bundled() -> Model:
    return ef.load("bundled", device="cpu", dtype="int8")


@pytest.fixture(scope="module")
def full() -> Model:
    return ef.load("bundled", device="cpu")


@pytest.fixture(scope="module")
def pixels(full: Model) -> Tensor:
    video = SyntheticVideo(901, seconds=6, fps=3, size=(160, 120), style="pan")
    return full.preprocess(np.stack(list(video.frames())))


def cosines(found: Tensor, wanted: Tensor) -> np.ndarray:
    return fidelity(found.numpy(), wanted.numpy())


@here
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", ["int8+float32", "int8+bfloat16"])
def test_families_stay_close_to_float32(name: str, dtype: str, folder: Callable[[str], Path]) -> None:
    model, wanted = ef.load(folder(name), device="cpu", dtype=dtype), ef.load(folder(name), device="cpu")
    images = torch.randn(6, 3, model.image_size, model.image_size, generator=torch.Generator().manual_seed(2))
    found = ef.DenseEncoder(model).encode(images)
    assert cosines(found, ef.DenseEncoder(wanted).encode(images)).min() >= 0.99
    assert model.precision == dtype


@here
@pytest.mark.parametrize(
    "make",
    [
        ef.DenseEncoder,
        lambda model: ef.ResidualViT(model, select="center"),
        lambda model: ef.ReuseEncoder(model, interleave=5),
        lambda model: ef.ToMe(model, [8, 8, 8, 8]),
    ],
    ids=["dense", "residual", "reuse", "tome"],
)
def test_encoders_on_the_bundled_model(
    make: Callable[[Model], ef.DenseEncoder], bundled: Model, full: Model, pixels: Tensor
) -> None:
    found, wanted = make(bundled).encode(pixels), make(full).encode(pixels)
    assert found.dtype == torch.float32
    near = cosines(found, wanted)
    assert near.mean() >= 0.99


@here
def test_a_feature_does_not_depend_on_its_batch(pixels: Tensor) -> None:
    model = ef.load("bundled", device="cpu", dtype="int8+float32")
    together = ef.DenseEncoder(model).encode(pixels[:6])
    alone = torch.cat([ef.DenseEncoder(model).encode(frame[None]) for frame in pixels[:6]])
    loud = ef.DenseEncoder(model).encode(torch.cat((pixels[:1], 50 * torch.randn_like(pixels[:1]))))
    # Attention's last float32 bit may change with the batch, and then a value between two whole numbers its side.
    assert cosines(alone, together).min() > 0.9999
    assert cosines(loud[:1], together[:1]).min() > 0.9999


@here
def test_precision_is_recorded_and_can_be_loaded_again(bundled: Model, full: Model) -> None:
    assert full.precision == "float32"
    assert bundled.precision in ("int8+bfloat16", "int8+float32")
    assert ef.load("bundled", device="cpu", dtype=bundled.precision).precision == bundled.precision
    assert bundled.precision in repr(bundled)
    assert model_facts(bundled)["dtype"] == bundled.precision


@here
def test_only_the_image_blocks_are_quantised(bundled: Model) -> None:
    assert is_quantized(bundled.vision.blocks)
    assert bundled.text is not None
    assert not is_quantized(bundled.text)
    assert type(bundled.vision.patch) is nn.Linear
    assert type(bundled.vision.projection) is nn.Linear


@here
def test_texts_find_their_video(bundled: Model, full: Model, tmp_path: Path) -> None:
    """Features are saved and loaded, and searched by texts of the same int8 model."""
    file = tmp_path / "video.mp4"
    SyntheticVideo(902, seconds=6, fps=10, size=(160, 120)).write(file)
    feats = ef.encode_video(file, ef.DenseEncoder(bundled), fps=2)
    feats.save(tmp_path / "feats.npz")
    again = ef.VideoFeatures.load(tmp_path / "feats.npz")
    assert again.model["dtype"] == bundled.precision
    assert np.array_equal(again.embeddings, feats.embeddings)
    texts = bundled.encode_text(["a red circle", "a blue square"])
    assert torch.cosine_similarity(texts, full.encode_text(["a red circle", "a blue square"])).min() > 0.999
    assert ef.ground(again, texts[0], top=1)


@here
def test_copies_casts_and_shipping_keep_the_numbers(bundled: Model, pixels: Tensor) -> None:
    wanted = ef.DenseEncoder(bundled).encode(pixels[:2])
    assert torch.equal(ef.DenseEncoder(copy.deepcopy(bundled)).encode(pixels[:2]), wanted)
    shipped = ship(ef.DenseEncoder(bundled))
    assert torch.equal(arrive(shipped.full).encode(pixels[:2]), wanted)
    assert arrive(shipped.planning).model.precision == bundled.precision
    layer = Int8Linear(made_linear(16, 8))
    cast = copy.deepcopy(layer).to(torch.bfloat16)
    assert cast.weight_scale.dtype == torch.float32
    x = torch.randn(3, 16)
    assert torch.equal(cast(x), layer(x))
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))


# --- what is refused -------------------------------------------------------------------------------------


@here
def test_gradients_are_refused(bundled: Model, pixels: Tensor) -> None:
    model = ef.load("bundled", device="cpu", dtype="int8+float32")
    with pytest.raises(RuntimeError, match="an int8 model cannot be trained through; load it with"):
        model.vision(pixels[:1].clone().requires_grad_())
    with pytest.raises(ValueError, match="an int8 model cannot be compiled"):
        bundled.compile()


@here
def test_training_is_refused(bundled: Model, tmp_path: Path) -> None:
    SyntheticVideo(903, seconds=12, fps=6, size=(160, 120)).write(tmp_path / "video.mp4")
    with pytest.raises(ValueError, match="an int8 model; load it with dtype='float32' or 'bfloat16'"):
        distill(bundled, open_clips([tmp_path / "video.mp4"]), tmp_path / "out", loss="mse")
    with pytest.raises(ValueError, match="must be loaded in float32 to be fitted, got int8"):
        FinetuneRecipe.for_data(bundled, 1000, 1)


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("int4", "dtype must be one of float32, bfloat16, float16, int8, got 'int4'"),
        ("int8+float16", "dtype must be one of"),
        ("int8+", "dtype must be one of"),
        (torch.int8, "dtype must be one of"),
        ("bfloat16+int8", "dtype must be one of"),
    ],
)
def test_unknown_precisions_are_refused(dtype: str | torch.dtype, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_precision(dtype, CPU)


def test_other_devices_and_processors_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="dtype 'int8' is for CPUs, but the device is 'cuda'; use dtype='bfloat16'"):
        check_int8(torch.device("cuda"))
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(ValueError, match=r"AVX-512 VNNI, which this one lacks; use dtype='float32'"):
        ef.load("bundled", device="cpu", dtype="int8")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ValueError, match="needs torch with oneDNN"):
        ef.load("bundled", device="cpu", dtype="int8")
