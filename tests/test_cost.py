"""Costs against the paper's Table 1, and against what PyTorch and hooks count while the encoders run."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import checkpoints
from everyframe.backbone import load, skeleton
from everyframe.cost import add_macs, flops
from everyframe.encoders import DenseEncoder, ResidualTokenizer, ResidualViT

FAMILIES = {
    "clip": lambda path: checkpoints.clip(path, image_size=40, tokenizer=False),
    "clip-bare": lambda path: checkpoints.clip_vision(path, projection=False),
    "siglip": checkpoints.siglip_vision,
    "dinov2": checkpoints.dinov2,
    "dinov2-swiglu": lambda path: checkpoints.dinov2(path, swiglu=True),
    "dinov2-registers": lambda path: checkpoints.dinov2(path, registers=3),
}


@pytest.fixture(scope="module")
def large():
    return skeleton("ViT-L/14")


def tokenizer_for(model):
    return ResidualTokenizer(model.dim, model.vision.config.width)


# --- the paper -------------------------------------------------------------------------------------------


def test_table_1_of_the_paper(large):
    """GFLOPs per second of video at 3 frames/s, ViT-L/14, p = 0.85, N = 2."""
    dense = flops(DenseEncoder(large), 3)
    assert dense.total / 1e9 == pytest.approx(233.4, rel=0.01)
    assert dense.gflops_per_frame == pytest.approx(77.8, rel=0.01)
    free = ResidualViT(large, 2, 0.85, residual=None)
    told = ResidualViT(large, 2, 0.85, residual=tokenizer_for(large))
    assert flops(free, 3).total / 1e9 == pytest.approx(102.0, rel=0.01)
    assert flops(told, 3).total / 1e9 == pytest.approx(102.6, rel=0.01)
    # Row b, the reduction on every frame, is three P-frames: what a group costs beyond its I-frame.
    reduced = (flops(free, 3).total - flops(free, 1).total) / 2
    assert 3 * reduced / 1e9 == pytest.approx(35.7, rel=0.01)
    assert reduced / 1e9 == pytest.approx(11.9, rel=0.01)
    assert (flops(told, 3).total - flops(told, 1).total) / 2e9 == pytest.approx(12.2, rel=0.01)


@pytest.mark.parametrize(("interleave", "saved"), [(1, 42), (2, 56), (3, 63), (5, 70), (10, 77)])
def test_savings_of_figure_4(large, interleave, saved):
    encoder = ResidualViT(large, interleave, 0.85, residual=tokenizer_for(large))
    share = flops(encoder).per_frame / flops(DenseEncoder(large)).per_frame
    assert 100 * (1 - share) == pytest.approx(saved, abs=1)


@pytest.mark.parametrize("name", ["ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336"])
@pytest.mark.parametrize(("interleave", "drop"), [(0, 0.85), (1, 0.5), (2, 0.85), (5, 0.7), (10, 0.95)])
def test_cost_follows_the_formula(name, interleave, drop):
    model = skeleton(name)
    expected = (1 + (1 - drop) * interleave) / (1 + interleave)
    share = flops(ResidualViT(model, interleave, drop, residual=None)).per_frame / flops(DenseEncoder(model)).per_frame
    assert share == pytest.approx(expected, abs=0.025)  # CLS is never dropped: at most 1 of 50 tokens


@pytest.mark.parametrize(("frames", "full"), [(1, 1), (2, 1), (3, 1), (4, 2), (100, 34)])
def test_partial_groups_count_their_i_frame(large, frames, full):
    encoder = ResidualViT(large, 2, 0.85, residual=None)
    one = flops(encoder, 1).total
    reduced = flops(encoder, 2).total - one
    cost = flops(encoder, frames)
    assert cost.total == pytest.approx(full * one + (frames - full) * reduced)
    assert cost.per_frame == pytest.approx(cost.total / frames)
    assert sum(cost.by_part.values()) == pytest.approx(cost.total)
    assert (cost.frames, cost.rule) == (frames, "paper")


def test_default_is_one_group(large):
    assert flops(DenseEncoder(large)).frames == 1
    assert flops(ResidualViT(large, 4, residual=None)).frames == 5


# --- counted while running -------------------------------------------------------------------------------


def measured(encoder, pixels, motion, monkeypatch):
    """Multiply-accumulates of one `encode`, seen from outside: each linear layer, each attention product."""
    linear, attention = [], []

    def hook(module, inputs, output):
        linear.append(output.numel() * module.in_features)

    def attend(query, key, value, **options):
        batch, heads, queries, size = query.shape
        attention.append(batch * heads * queries * key.shape[2] * (size + value.shape[3]))
        return real(query, key, value, **options)

    real = F.scaled_dot_product_attention
    parts = nn.ModuleList([encoder.model, getattr(encoder, "tokenizer", None) or nn.Identity()])
    handles = [m.register_forward_hook(hook) for m in parts.modules() if isinstance(m, nn.Linear)]
    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", attend)
        encoder.encode(pixels, motion)
    for handle in handles:
        handle.remove()
    return sum(linear), sum(attention)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_rule_all_is_what_runs(family, tmp_path, monkeypatch):
    model = load(FAMILIES[family](tmp_path), device="cpu")
    side = model.image_size
    pixels, motion = torch.randn(5, 3, side, side), torch.rand(5, side, side)
    options = {"interleave": 2, "drop": 0.7, "select": "motion", "batch_size": 1}
    encoders = [
        DenseEncoder(model, batch_size=1),
        ResidualViT(model, **options, residual=None),
        ResidualViT(model, **options, residual=tokenizer_for(model)),
    ]
    totals = []
    for encoder in encoders:
        cost = flops(encoder, 5, rule="all")
        linear, attention = measured(encoder, pixels, motion, monkeypatch)
        # SigLIP's pooling query is the same for all images: computed once per batch, counted once per frame.
        if family == "siglip" and encoder is not encoders[0]:
            batches = 2 + 1  # two I-frames one by one; all three P-frames at once
            linear += (5 - batches) * model.vision.config.width**2
        assert cost.by_part["attention"] == attention
        assert cost.total == linear + attention
        totals.append(cost.total)
    assert totals[0] > totals[2] > totals[1]


@pytest.mark.parametrize("family", ["clip", "dinov2"])
def test_rule_all_is_what_pytorch_counts(family, tmp_path):
    model = load(FAMILIES[family](tmp_path), device="cpu")
    side = model.image_size
    pixels, motion = torch.randn(7, 3, side, side), torch.rand(7, side, side)
    for encoder in (DenseEncoder(model), ResidualViT(model, 2, 0.7, residual=tokenizer_for(model))):
        counter = FlopCounterMode(display=False)
        with counter, sdpa_kernel(SDPBackend.MATH):
            encoder.encode(pixels, motion)
        assert flops(encoder, 7, rule="all").total == counter.get_total_flops() / 2


def test_paper_rule_leaves_out_attention_and_rounding(large):
    encoder = ResidualViT(large, 1, 0.85, residual=None)
    paper, everything = (flops(encoder, rule=rule) for rule in ("paper", "all"))
    assert "attention" not in paper.by_part
    # 24 layers, 257 tokens in the I-frame and 39 in the P-frame, width 1024.
    assert everything.by_part["attention"] == 24 * 2 * 1024 * (257**2 + 39**2)
    assert paper.by_part["patches"] == pytest.approx(3 * 14**2 * 1024 * (256 + 0.15 * 256))
    assert everything.by_part["patches"] == 3 * 14**2 * 1024 * (256 + 38)
    assert paper.by_part["blocks"] == pytest.approx(24 * 12 * 1024**2 * (257 + 1 + 0.15 * 256))


def test_residual_token_costs_its_layer_and_one_token(large):
    free = flops(ResidualViT(large, 1, 0.85, residual=None))
    told = flops(ResidualViT(large, 1, 0.85, residual=tokenizer_for(large)))
    assert told.by_part["residual token"] == 768 * 1024
    assert told.total - free.total == pytest.approx(768 * 1024 + 24 * 12 * 1024**2)


# --- arithmetic and errors -------------------------------------------------------------------------------


def test_add_macs_sums_part_by_part():
    total = add_macs((2, {"a": 1.5, "b": 1.0}), (3, {"b": 10.0, "c": 0.5}), (0, {"d": 4.0}))
    assert total == {"a": 3.0, "b": 32.0, "c": 1.5, "d": 0.0}


@pytest.mark.parametrize("frames", [0, -3])
def test_too_few_frames_raise(large, frames):
    with pytest.raises(ValueError, match=f"frames must be at least 1, got {frames}"):
        flops(DenseEncoder(large), frames)


def test_unknown_rule_raises(large):
    with pytest.raises(ValueError, match='rule must be "paper" or "all", got \'exact\''):
        flops(DenseEncoder(large), rule="exact")


def test_cost_is_finite_and_read_only(large):
    cost = flops(DenseEncoder(large), 2)
    assert math.isfinite(cost.total)
    with pytest.raises(AttributeError):
        cost.total = 0.0
