"""The way blocks run on a CPU without gradients, piece by piece, against float64 arithmetic written out here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from everyframe.backbone import Block, BlockConfig, VisionConfig, VisionTransformer, pieces
from everyframe.backbone.vit import ACTIVATIONS

WIDTH, HEADS, MLP = 32, 4, 64
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.04}
"""Of the largest value: a float32 block rounds about 1e-7 at each of its steps, a bfloat16 one 4e-3."""


def make_block(seed: int = 0, dtype: torch.dtype = torch.float32, **more: Any) -> Block:
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"activation": "quick_gelu", "norm_eps": 1e-5, **more}
    block = Block(BlockConfig(width=WIDTH, heads=HEADS, mlp_width=MLP, **settings))
    for name, values in block.named_parameters():
        nn.init.normal_(values, std=0.5 if values.dim() == 1 else 1 / math.sqrt(values.shape[-1]))
        if "scale" in name:
            nn.init.uniform_(values, 0.5, 1.5)
    return block.to(dtype).requires_grad_(False)


def activated(name: str, x: Tensor) -> Tensor:
    if name == "quick_gelu":
        return x / (1 + (-1.702 * x).exp())
    if name == "gelu":
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    if name in ("gelu_pytorch_tanh", "gelu_new", "gelu_fast"):
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x.clamp_min(0) if name == "relu" else x / (1 + (-x).exp())


def normed(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    spread = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    return centred / spread * norm.weight.double() + norm.bias.double()


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return x @ layer.weight.double().T + (0 if layer.bias is None else layer.bias.double())


def attended(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
    scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
    if bias is not None:
        scores = scores.masked_fill(~bias, -math.inf) if bias.dtype == torch.bool else scores + bias.double()
    return scores.softmax(-1) @ values


def expected(block: Block, x: Tensor, name: str, bias: Tensor | None = None, qkv: Tensor | None = None) -> Tensor:
    """One block in float64; `qkv`: what the layer of that name makes of the normalised tokens, where it is adapted."""
    x = x.double()
    heads = linear(normed(x, block.norm1), block.qkv) if qkv is None else qkv
    queries, keys, values = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in heads.chunk(3, -1))
    branch = linear(attended(queries, keys, values, bias).transpose(1, 2).flatten(2), block.proj)
    x = x + (branch if block.scale1 is None else branch * block.scale1.double())
    hidden = linear(normed(x, block.norm2), block.mlp.fc1)
    if block.mlp.gated:
        gate, value = hidden.chunk(2, -1)
        hidden = activated(name, gate) * value
    else:
        hidden = activated(name, hidden)
    branch = linear(hidden, block.mlp.fc2)
    return x + (branch if block.scale2 is None else branch * block.scale2.double())


def close(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype
    worst = float((found.detach().double() - wanted).abs().max() / wanted.abs().max())
    assert worst < TOLERANCE[dtype], worst


@pytest.fixture(params=[7, 64, 10**6], ids=["odd pieces", "pieces", "one piece"])
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Rows of a piece of the blocks below, whose widest tensor has 128 values or less."""
    monkeypatch.setattr(pieces, "PIECE_BYTES", request.param * 4 * 3 * WIDTH)
    return request.param


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation(name: str, dtype: torch.dtype, piece: int) -> None:
    block = make_block(activation=name, dtype=dtype)
    x = torch.randn(41, 27, WIDTH).to(dtype)  # 1107 rows: enough to lay weights out anew
    before = x.clone()
    with torch.no_grad():
        close(block(x), expected(block, x, name), dtype)
    assert torch.equal(x, before)


@pytest.mark.parametrize("count", [3, 60])
@pytest.mark.parametrize(
    "more",
    [{"gated_mlp": True, "activation": "silu"}, {"layer_scale": True}, {"qkv_bias": False}],
    ids=["gated", "layer scale", "no bias"],
)
def test_every_kind_of_block(more: dict[str, Any], count: int, piece: int) -> None:
    block = make_block(**more)
    x = torch.randn(count, 19, WIDTH)
    wanted = expected(block, x, more.get("activation", "quick_gelu"))
    with torch.no_grad():
        close(block(x), wanted, x.dtype)
        split = x + block.attend(x)
        close(split + block.feed(split), wanted, x.dtype)


def test_gradients_take_the_usual_way_and_agree() -> None:
    block = make_block(layer_scale=True).requires_grad_(True)
    x = torch.randn(60, 19, WIDTH, requires_grad=True)
    found = block(x)
    close(found, expected(block, x.detach(), "quick_gelu").detach(), x.dtype)
    found.square().sum().backward()
    assert all(values.grad is not None and values.grad.abs().sum() > 0 for values in block.parameters())
    with torch.no_grad():
        torch.testing.assert_close(block(x), found.detach(), atol=1e-5, rtol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(block(x), found.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", ["none", "masses", "mask", "causal", "one for all"])
def test_attention(kind: str, dtype: torch.dtype, piece: int) -> None:
    torch.manual_seed(1)
    batch, count, others = 9, 11, 11 if kind == "causal" else 17
    queries, keys, values = (torch.randn(batch, 2, size, 8).to(dtype) for size in (count, others, others))
    bias = {
        "masses": torch.randn(batch, 1, 1, others).to(dtype),
        "mask": torch.rand(batch, 1, 1, others) < 0.7,
        "one for all": torch.randn(1, 1, count, others).to(dtype),
    }.get(kind)
    if kind == "mask":
        bias[..., 0] = True
    seen = torch.ones(count, others, dtype=torch.bool).tril() if kind == "causal" else bias
    with torch.no_grad():
        found = pieces.attention(queries, keys, values, bias=bias, causal=kind == "causal")
    wanted = attended(queries.double(), keys.double(), values.double(), seen)
    close(found, wanted, dtype)
    assert found.transpose(1, 2).flatten(2).is_contiguous()


def test_a_block_with_masses(piece: int) -> None:
    block, bias = make_block(), torch.rand(50, 1, 1, 23).log()
    x = torch.randn(50, 23, WIDTH)
    with torch.no_grad():
        close(block(x, bias=bias), expected(block, x, "quick_gelu", bias), x.dtype)


def test_rows_of_different_sequences(piece: int) -> None:
    block = make_block(layer_scale=True)
    x = torch.randn(1301, WIDTH)
    with torch.no_grad():
        qkv, merged = torch.empty(1301, 3 * WIDTH), torch.randn(1301, WIDTH)
        block.write_qkv(x, qkv)
        close(qkv, linear(normed(x.double(), block.norm1), block.qkv), x.dtype)
        wanted = x.double() + linear(merged.double(), block.proj) * block.scale1.double()
        block.add_attended(x, merged)
        close(x, wanted, x.dtype)
        wanted = x + block.feed(x)
        block.add_fed(x)
        torch.testing.assert_close(x, wanted, atol=1e-5, rtol=1e-5)


def test_adapted_layers_keep_their_own_arithmetic(piece: int) -> None:
    peft = pytest.importorskip("peft")
    holder = nn.ModuleDict({"block": make_block()})
    x = torch.randn(60, 19, WIDTH)
    block = holder["block"]
    with torch.no_grad():
        plain = block(x)
    adapted = peft.get_peft_model(holder, peft.LoraConfig(r=2, lora_alpha=4, target_modules=["qkv"]))
    down, up = block.qkv.lora_A.default.weight, block.qkv.lora_B.default.weight
    nn.init.normal_(up, std=0.3)
    tokens = normed(x.double(), block.norm1)
    qkv = linear(tokens, block.qkv.base_layer) + 2 * tokens @ (up.double() @ down.double()).T
    wanted = expected(block, x, "quick_gelu", qkv=qkv).detach()
    with torch.no_grad():
        close(block(x), wanted, x.dtype)
    block(x).sum().backward()
    assert up.grad is not None
    merged = adapted.merge_and_unload()["block"]
    assert type(merged.qkv) is nn.Linear
    with torch.no_grad():
        close(merged(x), wanted, x.dtype)  # weights that were laid out before are not used again
        assert not torch.allclose(merged(x), plain, atol=1e-2)


def test_hooks_of_a_layer_are_called() -> None:
    block, rows = make_block(), {"layer": 0, "mlp": 0}

    def count(name: str) -> Callable[..., None]:
        return lambda layer, inputs, output: rows.update({name: rows[name] + output.shape[:-1].numel()})

    block.mlp.fc1.register_forward_hook(count("layer"))
    block.mlp.register_forward_hook(count("mlp"))
    with torch.no_grad():
        block(torch.randn(60, 19, WIDTH))
    assert rows == {"layer": 60 * 19, "mlp": 60 * 19}


def test_features_do_not_depend_on_pieces_or_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    vision = VisionTransformer(
        VisionConfig(
            width=WIDTH,
            heads=HEADS,
            mlp_width=MLP,
            activation="quick_gelu",
            norm_eps=1e-5,
            depth=3,
            patch_size=4,
            image_size=20,
            dim=16,
            projection=True,
            pre_norm=True,
        )
    ).requires_grad_(False)
    for values in vision.parameters():
        if values.dim() == 2:
            nn.init.normal_(values, std=0.2)
    pixels = torch.randn(50, 3, 20, 20)
    with torch.no_grad():
        whole = vision(pixels)
        torch.testing.assert_close(torch.cat([vision(some) for some in pixels.split(7)]), whole, atol=1e-5, rtol=1e-5)
        monkeypatch.setattr(pieces, "PIECE_BYTES", 5000)
        torch.testing.assert_close(vision(pixels), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", [20, 22])
def test_single_patches_are_those_of_patchify(side: int) -> None:
    config = VisionConfig(
        width=WIDTH,
        heads=HEADS,
        mlp_width=MLP,
        activation="gelu",
        norm_eps=1e-5,
        depth=1,
        patch_size=4,
        image_size=side,
        dim=WIDTH,
    )
    vision, pixels = VisionTransformer(config), torch.randn(6, 3, side, side)
    frames, places = torch.tensor([[1], [5], [0]]), torch.tensor([[0, 7, 24], [3, 3, 5], [24, 1, 2]])
    assert torch.equal(vision.patches_at(pixels, frames, places), vision.patchify(pixels)[frames, places])
    flat = vision.patches_at(pixels, torch.tensor([2, 2, 4]), torch.tensor([1, 0, 9]))
    assert torch.equal(flat, vision.patchify(pixels)[[2, 2, 4], [1, 0, 9]])
