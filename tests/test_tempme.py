"""TempMe against `reference.tempme`, which goes token by token; against mean-pooled frames; its counts and cost."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import checkpoints
from everyframe.backbone import VideoConfig, VideoModel, VideoTransformer, load, skeleton, video_skeleton
from everyframe.backbone.preprocess import Preprocess
from everyframe.cost import flops
from everyframe.encoders import DenseEncoder, TempMe
from everyframe.encoders.clip_positions import read_positions
from everyframe.encoders.tempme import PRESETS
from everyframe.tokens.clips import join_clips
from everyframe.tokens.merge import Tokens
from reference import tempme as reference
from reference import vidtldr

HALF = (0.5, 0.5, 0.5)
SIDE = 40  # 5 x 5 patches
SHORT = {"r": 2, "clips": {1: 2, 2: 2, 3: 3}, "remove_cross": 30, "remove_intra": 10}  # 12 -> 6 -> 3 -> 1
LONG = {"r": 3, "clips": {1: 4, 2: 4}, "remove_cross": 40, "remove_intra": 20}  # 16 -> 4 -> 1, one block after


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def image_model(folder, depth=5, **more):
    checkpoints.clip(folder, image_size=SIDE, depth=depth, tokenizer=False, **more)
    return load(folder, device="cpu")


def umt(frames=4, depth=4):
    config = VideoConfig(
        width=32, heads=4, mlp_width=64, activation="gelu", norm_eps=1e-6, depth=depth, patch_size=8, image_size=32,
        frames=frames, dim=16, final_norm=True, pool_norm=True, projection=True,
    )  # fmt: skip
    vision = VideoTransformer(config)
    vision.positions.copy_(vidtldr.sinusoids(vision.num_patches, 32).float())
    checkpoints.randomise(vision, 0)
    preprocessing = Preprocess(size=32, stretch=32, crop=False, mean=HALF, std=HALF)
    return VideoModel(name="tiny", family="umt", vision=vision, frames=frames, preprocessing=preprocessing)


def positions_for(encoder, frames):
    """Clip positions of the size of the tokens, so that leaving them out or mixing them up shows."""
    rows = encoder.zero_positions(frames)
    return {block: seeded(*zeros.shape, seed=block) for block, zeros in rows.items()}


def layers_of(vision):
    """The blocks of a tower (made float64) as the reference takes them."""

    def layer(block):
        def qkv(x):
            width = x.shape[1] // block.heads
            parts = block.qkv(block.norm1(x)).chunk(3, dim=1)
            return tuple(part.view(len(x), block.heads, width).transpose(0, 1) for part in parts)

        def project(attended):
            out = block.proj(attended.transpose(0, 1).reshape(attended.shape[1], -1))
            return out if block.scale1 is None else out * block.scale1

        return vidtldr.Layer(qkv, project, block.feed)

    return [layer(block) for block in vision.blocks]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return image_model(tmp_path_factory.mktemp("clip"))


# --- the pass --------------------------------------------------------------------------------------------


def check_against_loops(model, schedule, frames, *, positions=None, **more):
    """Tokens, sizes, origins and the feature of 2 videos; returns the encoder."""
    encoder = TempMe(model, **schedule, positions=positions, **more)
    side, prefix = model.image_size, model.vision.num_prefix
    pixels = seeded(2, frames, 3, side, side)
    found, features = encoder.tokens(pixels), encoder.encode(pixels)
    vision = model.vision.double()
    rows = {block: rows.double() for block, rows in (positions or {}).items()}
    for video in range(2):
        start = vision.start(pixels[video].double())
        clips = reference.run(layers_of(vision), start, **schedule, positions=rows, prefix=prefix, **more)
        last = encoder.counts(frames)[-1]
        assert [len(clip.x) for clip in clips] == [last.after] * last.clips
        normed = [vision.norm_post(clip.x) for clip in clips]
        torch.testing.assert_close(found.tokens[video].double(), torch.cat(normed), atol=1e-4, rtol=1e-4)
        sizes = [float(size) for clip in clips for size in clip.sizes]
        assert found.masses[video].tolist() == sizes
        assert sum(sizes) == start.shape[0] * start.shape[1] == found.sources.shape[1]
        holds = [held for clip in clips for held in clip.holds]
        for place, held in enumerate(holds):
            assert (found.sources[video] == place).nonzero()[:, 0].tolist() == sorted(
                frame * start.shape[1] + i for frame, i in held
            )
        pooled = pooled_by_hand(vision, clips, normed)
        torch.testing.assert_close(features[video].double(), pooled, atol=1e-4, rtol=1e-4)
    model.vision.float()
    return encoder


def pooled_by_hand(vision, clips, normed):
    """Every CLS, or every clip through SigLIP's head, normalised; their mean, normalised."""
    parts = []
    for clip, x in zip(clips, normed, strict=True):
        if vision.head is not None:
            bias = torch.tensor([math.log(size) for size in clip.sizes], dtype=torch.float64)
            parts.append(vision.head(x[None], bias[None, None, None])[0])
            continue
        for i in range(clip.c):
            if clip.holds[i][0][1] == 0:  # the first token of its frame; the others are registers
                parts.append(x[i] if vision.projection is None else vision.projection(x[i]))
    mean = torch.stack([part / part.norm() for part in parts]).mean(0)
    return mean / mean.norm()


@pytest.mark.parametrize(("schedule", "frames"), [(SHORT, 12), (LONG, 16)], ids=["short", "long"])
@torch.no_grad()
def test_equals_the_loops(clip, schedule, frames):
    positions = positions_for(TempMe(clip, **schedule), frames)
    encoder = check_against_loops(clip, schedule, frames, positions=positions)
    assert encoder.frames == encoder.group_size == frames
    assert encoder.counts()[-1].clips == 1
    assert encoder.counts()[-1].protected == frames


VARIANTS = {
    "no positions": ({**SHORT}, {}),
    "image merging alone": ({**SHORT, "clips": {}}, {}),
    "temporal modelling alone": ({**SHORT, "r": 0, "remove_cross": 0, "remove_intra": 0}, {}),
    "token reduction alone": ({**SHORT}, {"temporal": False}),
    "cross alone": ({**SHORT, "remove_intra": 0}, {}),
    "intra alone": ({**SHORT, "remove_cross": 0}, {}),
    "equal weights in attention": ({**SHORT}, {"proportional": False}),
    "frames left apart": ({**SHORT, "clips": {1: 2, 3: 2}}, {}),
    "from the first block": ({**SHORT, "clips": {0: 3, 4: 2}}, {}),
}


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_ablations_equal_the_loops(clip, variant):
    schedule, more = VARIANTS[variant]
    check_against_loops(clip, schedule, 12, **more)


@torch.no_grad()
def test_positions_without_merging_equal_the_loops(clip):
    """The authors' code leaves the positions out where nothing merges; here they are added all the same."""
    schedule = {**SHORT, "r": 0, "remove_cross": 0, "remove_intra": 0}
    check_against_loops(clip, schedule, 12, positions=positions_for(TempMe(clip, **schedule), 12))


FAMILIES = {
    "siglip": lambda path: checkpoints.siglip(path, image_size=SIDE),
    "dinov2": lambda path: checkpoints.dinov2(path),
    "registers": lambda path: checkpoints.dinov2(path, registers=3),
}


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_other_families_equal_the_loops(tmp_path, family):
    FAMILIES[family](tmp_path)
    model = load(tmp_path, device="cpu")
    schedule = {"r": 2, "clips": {1: 2, 2: 2}, "remove_cross": 30, "remove_intra": 10}
    check_against_loops(model, schedule, 8, positions=positions_for(TempMe(model, **schedule), 8))


@torch.no_grad()
def test_umt_frame_by_frame_equals_the_loops():
    model = umt()
    schedule = {"r": 2, "clips": {1: 2, 2: 2}, "remove_cross": 40, "remove_intra": 20}
    encoder = TempMe(model, **schedule, positions=positions_for(TempMe(model, **schedule), 4))
    pixels = seeded(2, 4, 3, 32, 32)
    features, found = encoder.encode(pixels), encoder.tokens(pixels)
    positions = {block: rows.double() for block, rows in encoder.positions.items()}
    vision = model.vision.double()
    for video in range(2):
        start = vision.start(pixels[video : video + 1].double())[0].view(4, 16, 32)
        (last,) = reference.run(layers_of(vision), start, **schedule, positions=positions, prefix=0)
        tokens = vision.norm_post(last.x)
        torch.testing.assert_close(found.tokens[video].double(), tokens, atol=1e-4, rtol=1e-4)
        pooled = vision.projection(vision.norm_pool(tokens.mean(0)))
        torch.testing.assert_close(features[video].double(), pooled / pooled.norm(), atol=1e-4, rtol=1e-4)
    assert found.sources.shape == (2, 64)


@torch.no_grad()
def test_umt_unmerged_is_every_frame_alone():
    """Without merging, UMT4Clip: UMT's own blocks on the tokens of one frame, mean of unit features."""
    model = umt()
    pixels = seeded(3, 4, 3, 32, 32)
    tokens = model.vision.start(pixels).view(12, 16, 32)
    for block in model.vision.blocks:
        tokens = block(tokens)
    wanted = F.normalize(model.vision.pool(model.vision.finish(tokens)), dim=1).view(3, 4, -1).mean(1)
    found = TempMe(model, r=0, clips={}).encode(pixels)
    torch.testing.assert_close(found, F.normalize(wanted, dim=1), atol=1e-6, rtol=1e-6)


def test_joining_keeps_order_and_origin():
    """Two clips of a CLS and three patches, one token of which holds two of the first tokens."""
    tokens = torch.arange(16.0).view(4, 4, 1)
    state = Tokens(tokens, tokens[..., 0] + 1, torch.tensor([0, 1, 2, 3, 3]).expand(4, -1))
    joined = join_clips(state, 2, 1)
    assert joined.tokens[..., 0].tolist() == [[0, 4, 1, 2, 3, 5, 6, 7], [8, 12, 9, 10, 11, 13, 14, 15]]
    assert torch.equal(joined.masses, joined.tokens[..., 0] + 1)
    assert joined.sources.tolist() == [[0, 2, 3, 4, 4, 1, 5, 6, 7, 7]] * 2
    assert join_clips(state, 1, 1) is state


@pytest.mark.parametrize("zeros", [False, True])
def test_merging_nothing_is_mean_pooled_frames(clip, zeros):
    """ToMe of rate 0; and clips that are joined while zeros are added change nothing before the first join."""
    pixels = seeded(3, 6, 3, SIDE, SIDE)
    frames = DenseEncoder(clip).encode(pixels.flatten(0, 1)).view(3, 6, -1)
    encoder = TempMe(clip, r=0, clips={}, positions={} if zeros else None)
    torch.testing.assert_close(encoder.encode(pixels), F.normalize(frames.mean(1), dim=1), atol=1e-6, rtol=1e-6)
    apart = TempMe(clip, 0, {2: 3}, 0, 0, temporal=False)
    torch.testing.assert_close(apart.encode(pixels), encoder.encode(pixels), atol=1e-6, rtol=1e-6)


def test_zero_positions_are_no_positions(clip):
    pixels = seeded(2, 12, 3, SIDE, SIDE)
    plain = TempMe(clip, **SHORT)
    zeros = plain.zero_positions(12)
    assert {block: list(rows.shape) for block, rows in zeros.items()} == {1: [12, 32], 2: [6, 32], 3: [3, 32]}
    torch.testing.assert_close(TempMe(clip, **SHORT, positions=zeros).encode(pixels), plain.encode(pixels))
    moved = TempMe(clip, **SHORT, positions=positions_for(plain, 12)).encode(pixels)
    assert (moved - plain.encode(pixels)).abs().max() > 0.05


def test_order_of_frames_enters_by_positions_alone(clip):
    """Where nothing merges, a video without positions is the same as its reverse; with them they are told apart."""
    pixels = seeded(1, 12, 3, SIDE, SIDE)
    schedule = {**SHORT, "r": 0, "remove_cross": 0, "remove_intra": 0}
    plain = TempMe(clip, **{**schedule, "clips": {2: 12}})
    torch.testing.assert_close(plain.encode(pixels), plain.encode(pixels.flip(1)), atol=1e-5, rtol=1e-5)
    placed = TempMe(clip, **{**schedule, "clips": {2: 12}}, positions=positions_for(plain, 12))
    assert (placed.encode(pixels) - placed.encode(pixels.flip(1))).abs().max() > 0.01


def test_batching_changes_nothing(clip):
    pixels = seeded(5, 12, 3, SIDE, SIDE)
    one = TempMe(clip, **SHORT, batch_size=1).encode(pixels)
    assert one.shape == (5, 24)
    torch.testing.assert_close(one.norm(dim=1), torch.ones(5))
    for size in (2, 5):
        found = TempMe(clip, **SHORT, batch_size=size).encode(pixels)
        torch.testing.assert_close(found, one, atol=1e-5, rtol=1e-5)
    assert TempMe(clip, **SHORT).encode(pixels[:0]).shape == (0, 24)
    # A longer video ends as two clips, whose frames count alike.
    double = TempMe(clip, **SHORT).encode(pixels[:2].reshape(1, 24, 3, SIDE, SIDE))
    assert double.shape == (1, 24)
    assert TempMe(clip, **SHORT).counts(24)[-1].clips == 2


def test_bfloat16_stays_close(tmp_path):
    model = image_model(tmp_path)
    pixels = seeded(2, 12, 3, SIDE, SIDE)
    wanted = TempMe(model, **{**SHORT, "r": 0}).encode(pixels)
    found = TempMe(model.to(torch.bfloat16), **{**SHORT, "r": 0}).encode(pixels)
    assert found.dtype == torch.float32
    assert F.cosine_similarity(found, wanted).min() > 0.98


# --- training --------------------------------------------------------------------------------------------


class LowRank(nn.Module):
    """A linear layer with one down-projection shared by queries, keys and values."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear
        self.down = nn.Parameter(0.1 * seeded(2, linear.in_features))
        self.up = nn.Parameter(0.1 * seeded(linear.out_features, 2, seed=1))

    def forward(self, x):
        return self.linear(x) + (x @ self.down.T) @ self.up.T


def trainable(folder):
    model = image_model(folder)
    positions = {block: nn.Parameter(rows) for block, rows in positions_for(TempMe(model, **SHORT), 12).items()}
    for block in model.vision.blocks:
        block.qkv = LowRank(block.qkv)
    return model, TempMe(model, **SHORT, positions=positions)


def test_gradients_reach_positions_and_low_rank_updates(tmp_path):
    model, encoder = trainable(tmp_path)
    pixels, target = seeded(2, 12, 3, SIDE, SIDE), seeded(24, seed=3)
    learned = [
        *encoder.positions.values(),
        *(p for block in model.vision.blocks for p in (block.qkv.down, block.qkv.up)),
    ]
    loss = (encoder.features(pixels) @ target).sum()
    gradients = torch.autograd.grad(loss, learned)
    assert all(gradient.abs().max() > 1e-5 for gradient in gradients)
    kept = (encoder.features(pixels, checkpoint=True) @ target).sum()
    for one, other in zip(torch.autograd.grad(kept, learned), gradients, strict=True):
        torch.testing.assert_close(one, other)
    assert not encoder.encode(pixels).requires_grad
    torch.testing.assert_close(encoder.encode(pixels), encoder.features(pixels).detach())


def test_the_gradient_is_the_slope(tmp_path):
    """A small step along one position changes the loss by what the gradient says: merges do not change meanwhile."""
    _, encoder = trainable(tmp_path)
    pixels, target = seeded(1, 12, 3, SIDE, SIDE), seeded(24, seed=3)
    rows = encoder.positions[3]
    (gradient,) = torch.autograd.grad((encoder.features(pixels) @ target).sum(), [rows])
    values = []
    for step in (1e-3, -1e-3):
        with torch.no_grad():
            rows[1, 5] += step
            values.append(float((encoder.features(pixels) @ target).sum()))
            rows[1, 5] -= step
    assert (values[0] - values[1]) / 2e-3 == pytest.approx(float(gradient[1, 5]), rel=0.02, abs=1e-4)


def test_mixed_precision_trains(tmp_path):
    _, encoder = trainable(tmp_path)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = encoder.features(seeded(2, 12, 3, SIDE, SIDE)).sum()
    loss.backward()
    assert all(rows.grad.isfinite().all() and rows.grad.abs().max() > 0 for rows in encoder.positions.values())


def test_positions_are_written_and_read(tmp_path, clip):
    from safetensors.torch import save_file

    encoder = TempMe(clip, **SHORT, positions=positions_for(TempMe(clip, **SHORT), 12))
    encoder.save_positions(tmp_path / "positions.safetensors")
    again = TempMe(clip, **SHORT, positions=tmp_path / "positions.safetensors")
    assert list(again.positions) == [1, 2, 3]
    assert all(torch.equal(again.positions[block], encoder.positions[block]) for block in again.positions)
    assert again.settings == encoder.settings
    assert (
        again.settings["positions"] != TempMe(clip, **SHORT, positions=encoder.zero_positions(12)).settings["positions"]
    )
    save_file({str(block): rows for block, rows in encoder.positions.items()}, tmp_path / "bare.safetensors")
    assert torch.equal(read_positions(tmp_path / "bare.safetensors")[2], encoder.positions[2])
    save_file({"visual": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other.safetensors holds 'visual'; clip positions are named by their block"):
        TempMe(clip, **SHORT, positions=tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("no")
    for name in ("text", "none"):
        with pytest.raises(ValueError, match=rf"{name}.safetensors cannot be read as clip positions"):
            TempMe(clip, **SHORT, positions=str(tmp_path / f"{name}.safetensors"))
    with pytest.raises(ValueError, match="there are no positions to save"):
        TempMe(clip, **SHORT).save_positions(tmp_path / "x")


# --- counts and cost -------------------------------------------------------------------------------------

# What the authors' code gave: (clips, tokens that attention sees, tokens after, CLS) of blocks 8 to 11.
COUNTED = {
    ("msrvtt-b32", 12): (range(48, 33, -2), [(6, 48, 44, 2), (3, 62, 56, 4), (1, 118, 107, 12), (1, 107, 97, 12)]),
    ("didemo-b32", 64): (range(48, 33, -2), [(16, 96, 87, 4), (4, 244, 220, 16), (1, 616, 555, 64), (1, 555, 500, 64)]),
    ("lsmdc-b16", 12): (
        range(187, 116, -10),
        [(6, 141, 113, 2), (3, 136, 109, 4), (1, 197, 158, 12), (1, 158, 127, 12)],
    ),
}


@pytest.mark.parametrize(("preset", "frames"), COUNTED)
def test_presets_leave_the_published_tokens(preset, frames):
    encoder = TempMe(skeleton(f"ViT-B/{preset[-2:]}"), **TempMe.preset(preset))
    early, late = COUNTED[preset, frames]
    assert encoder.group_size == frames
    counts = encoder.counts()
    assert [(step.clips, step.attended - step.after, step.after) for step in counts[:8]] == [
        (frames, encoder.schedule.r, after) for after in early
    ]
    assert [(step.clips, step.attended, step.after, step.protected) for step in counts[8:]] == late
    assert all(step.clips_before * step.before == step.clips * step.gathered for step in counts)


@pytest.mark.parametrize(("size", "r", "left"), [("ViT-B/32", 2, 26), ("ViT-B/16", 10, 77)])
def test_without_clips_it_leaves_what_tome_leaves(size, r, left):
    last = TempMe(skeleton(size), r=r, clips={}).counts(12)[-1]
    assert (last.clips, last.after) == (12, left)


@pytest.mark.parametrize(
    ("size", "frames", "arguments", "counted"),
    [
        ("ViT-B/32", 12, {"r": 0, "clips": {}}, 52.96),
        ("ViT-B/32", 12, {"r": 2, "clips": {}}, 40.18),
        ("ViT-B/32", 12, TempMe.preset("msrvtt-b32"), 34.76),
        ("ViT-B/16", 12, {"r": 0, "clips": {}}, 210.99),
        ("ViT-B/16", 12, {"r": 10, "clips": {}}, 144.26),
        ("ViT-B/16", 12, TempMe.preset("msrvtt-b16"), 121.42),
        ("ViT-B/32", 64, {"r": 0, "clips": {}}, 282.47),
        ("ViT-B/32", 64, {"r": 2, "clips": {}}, 214.28),
        ("ViT-B/32", 64, TempMe.preset("activitynet-b32"), 186.43),
        ("ViT-B/32", 12, {"r": 0, "remove_cross": 0, "remove_intra": 0}, 54.16),
        ("ViT-B/32", 8, {"clips": {8: 2, 9: 2, 10: 2}}, 23.17),
    ],
)
def test_cost_is_what_was_counted_on_the_authors_tower(size, frames, arguments, counted):
    cost = flops(TempMe(skeleton(size), **arguments), frames)
    assert cost.total / 1e9 == pytest.approx(counted, abs=0.0051)
    assert cost.frames == frames


def counted_by_torch(encoder, pixels):
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        encoder.encode(pixels)
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("more", [{}, {"temporal": False}, {"r": 0}, {"remove_cross": 0}, {"remove_intra": 0}], ids=str)
def test_rule_all_is_what_runs(clip, more):
    encoder = TempMe(clip, **(SHORT | more))
    assert flops(encoder, 12, rule="all").total == counted_by_torch(encoder, seeded(1, 12, 3, SIDE, SIDE))
    assert flops(encoder, 24, rule="all").total == 2 * flops(encoder, 12, rule="all").total


@pytest.mark.parametrize("family", FAMILIES)
def test_rule_all_is_what_runs_in_other_families(tmp_path, family):
    FAMILIES[family](tmp_path)
    model = load(tmp_path, device="cpu")
    encoder = TempMe(model, 2, {1: 4})  # one final clip: SigLIP's query is made once per pass
    pixels = seeded(1, 4, 3, model.image_size, model.image_size)
    assert flops(encoder, 4, rule="all").total == counted_by_torch(encoder, pixels)


def test_rule_all_is_what_runs_in_umt():
    encoder = TempMe(umt(), 2, {1: 2, 2: 2})
    assert flops(encoder, rule="all").total == counted_by_torch(encoder, seeded(1, 4, 3, 32, 32))


# --- presets and bad input -------------------------------------------------------------------------------


def test_presets():
    assert TempMe.preset("msrvtt-b32") == {"r": 2, "clips": {8: 2, 9: 2, 10: 3}, "remove_cross": 30, "remove_intra": 10}
    assert TempMe.preset("didemo-b16") == {
        "r": 10,
        "clips": {8: 4, 9: 4, 10: 4},
        "remove_cross": 40,
        "remove_intra": 20,
    }
    assert len(PRESETS) == 8
    TempMe.preset("lsmdc-b32")["clips"].clear()
    assert TempMe.preset("lsmdc-b32")["clips"]
    with pytest.raises(ValueError, match="there is no preset 'msrvtt'; known are msrvtt-b32, msrvtt-b16, lsmdc-b32"):
        TempMe.preset("msrvtt")


def test_settings_say_what_decides(clip):
    encoder = TempMe(clip, **SHORT)
    plain = {"encoder": "tempme", "r": 2, "clips": {"1": 2, "2": 2, "3": 3}, "remove_cross": 30, "remove_intra": 10}
    assert encoder.settings == plain
    assert TempMe(clip, **SHORT, temporal=False, proportional=False).settings == plain | {
        "temporal": False,
        "proportional": False,
    }
    assert repr(encoder).endswith("r=2, clips={1: 2, 2: 2, 3: 3}, remove_cross=30, remove_intra=10)")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"r": -1}, ValueError, "r must be at least 0, got -1"),
        ({"r": 2.5}, TypeError, "r must be a whole number, got 2.5"),
        ({"remove_cross": 100}, ValueError, "remove_cross must be a percentage from 0 to 99, got 100"),
        ({"remove_intra": -3}, ValueError, "remove_intra must be a percentage from 0 to 99, got -3"),
        (
            {"remove_intra": 0.9},
            TypeError,
            "remove_intra must be a whole number of percent, got 0.9; 30 removes 30 perc",
        ),
        ({"clips": {1: 1}}, ValueError, r"clips\[1\] must be at least 2, the clips that become one, got 1"),
        ({"clips": {1: 2.0}}, TypeError, r"clips\[1\] must be a whole number, got 2.0"),
        ({"clips": {"1": 2}}, TypeError, "a block in clips must be a whole number, got '1'"),
        ({"clips": {2: 2, 1: 2}}, ValueError, r"clips must name its blocks in ascending order, got \[2, 1\]"),
        ({"clips": {1: 2, 5: 2}}, ValueError, "clips names block 5, but .* has 5, counted from 0 to 4"),
        ({"clips": {-1: 2}}, ValueError, "clips names block -1"),
        ({"clips": [1, 2]}, TypeError, "clips must be a dict such as {8: 2, 9: 2, 10: 3}"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"positions": {1: torch.zeros(12, 32)}}, ValueError, r"blocks that join clips, \[1, 2, 3\], got \[1\]"),
        (
            {"positions": {1: torch.zeros(12, 32), 2: torch.zeros(5, 32), 3: torch.zeros(3, 32)}},
            ValueError,
            r"positions\[2\] has 5 rows, but videos of 12 frames come to block 2 as 6 clips",
        ),
        (
            {"positions": {1: torch.zeros(12, 31), 2: torch.zeros(6, 32), 3: torch.zeros(3, 32)}},
            ValueError,
            r"positions\[1\] must be \[clips, 32\], got \[12, 31\]",
        ),
        (
            {"positions": {1: torch.zeros(4, 32), 2: torch.zeros(2, 32), 3: torch.zeros(1, 32)}},
            ValueError,
            r"the positions are for 4 frames, which clips=\{1: 2, 2: 2, 3: 3\} cannot join: it takes a multiple of 12",
        ),
        ({"positions": {1: [0], 2: [0], 3: [0]}}, TypeError, r"positions\[1\] must be a tensor, got list"),
        (
            {"positions": {1: torch.zeros(12, 32)}, "temporal": False},
            ValueError,
            "positions have no meaning with temporal=False",
        ),
    ],
)
def test_bad_arguments(clip, arguments, error, message):
    with pytest.raises(error, match=message):
        TempMe(clip, **(SHORT | arguments))


@pytest.mark.parametrize(
    ("pixels", "error", "message"),
    [
        (
            torch.zeros(1, 10, 3, SIDE, SIDE),
            ValueError,
            r"the videos have 10 frames, which .* a multiple of 12; sample as",
        ),
        (torch.zeros(1, 0, 3, SIDE, SIDE), ValueError, "the videos have 0 frames"),
        (
            torch.zeros(12, 3, SIDE, SIDE),
            ValueError,
            r"pixels must be \[V, F, 3, 40, 40\] for .*, got \[12, 3, 40, 40\]",
        ),
        (torch.zeros(1, 12, 3, SIDE, 32), ValueError, r"pixels must be \[V, F, 3, 40, 40\]"),
        (
            torch.zeros(1, 12, 3, SIDE, SIDE, dtype=torch.uint8),
            ValueError,
            "pixels must be floating point, got torch.ui",
        ),
        ([1], TypeError, "pixels must be a tensor, got list"),
    ],
)
def test_bad_pixels(clip, pixels, error, message):
    for method in (TempMe(clip, **SHORT).encode, TempMe(clip, **SHORT).features, TempMe(clip, **SHORT).tokens):
        with pytest.raises(error, match=message):
            method(pixels)


def test_other_bad_input(clip):
    placed = TempMe(clip, **SHORT, positions=TempMe(clip, **SHORT).zero_positions(12))
    with pytest.raises(ValueError, match="the videos have 24 frames, but its positions are for 12; sample 12 frames"):
        placed.encode(torch.zeros(1, 24, 3, SIDE, SIDE))
    for method in (placed.tokens, placed.features):
        with pytest.raises(ValueError, match="pixels must hold at least one video"):
            method(torch.zeros(0, 12, 3, SIDE, SIDE))
    with pytest.raises(ValueError, match="the video has 7 frames, which"):
        flops(TempMe(clip, **SHORT), 7)
    with pytest.raises(TypeError, match="one feature per video, not one per frame"):
        TempMe(clip, **SHORT).planner()
    with pytest.raises(TypeError, match=r"what everyframe.load returns, or a UMT of everyframe.load_video, got str"):
        TempMe("bundled")
    with pytest.raises(TypeError, match=r"videomae-b cannot be read by TempMe: .* tokens that cover several frames"):
        TempMe(video_skeleton("videomae-b"))
    with pytest.raises(TypeError, match=r"vifi-clip-b16 cannot be read by TempMe: .* load the CLIP it came from"):
        TempMe(video_skeleton("vifi-clip-b16"))
    with pytest.raises(ValueError, match=r"tiny reads 4 frames, which clips=\{1: 3\} cannot join"):
        TempMe(umt(), clips={1: 3})
    with pytest.raises(ValueError, match="the videos have 2 frames, but its model is for 4"):
        TempMe(umt(), clips={1: 2}).encode(torch.zeros(1, 2, 3, 32, 32))


def test_more_than_half_is_half_with_a_warning(clip):
    with pytest.warns(UserWarning, match="more than half of the tokens in block 0, 1: half are merged"):
        encoder = TempMe(clip, r=15, clips={1: 2}, remove_cross=80, remove_intra=0)
    counts = encoder.counts(2)
    assert [(step.gathered, step.attended, step.after) for step in counts[:2]] == [(26, 26, 14), (28, 15, 15)]
