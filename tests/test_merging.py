"""Token merging and saliency against `reference.vidtldr`, which goes token by token; and against themselves."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import checkpoints
from everyframe.backbone import VideoConfig, VideoModel, VideoTransformer, load
from everyframe.backbone.preprocess import Preprocess
from everyframe.encoders import DenseEncoder, EViT, Pruning, ResidualTokenizer, ResidualViT, ToMe, VidTLDR
from everyframe.encoders.merging import PRESETS
from everyframe.tokens import saliency as scores
from everyframe.tokens.merge import (
    Tokens,
    bipartite_match,
    fuse_tokens,
    merge_tokens,
    num_reduced,
    prune_tokens,
    token_counts,
    tome_schedule,
)
from reference import vidtldr as reference

HALF = (0.5, 0.5, 0.5)


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def video_model(*, frames=3, depth=4, pooling="mean", joint=True, seed=0):
    """A random video tower of 4 x 4 patches per frame: a UMT in small."""
    config = VideoConfig(
        width=32,
        heads=4,
        mlp_width=64,
        activation="gelu",
        norm_eps=1e-6,
        depth=depth,
        patch_size=8,
        image_size=32,
        frames=frames,
        dim=16 if joint else 32,
        final_norm=True,
        pool_norm=True,
        projection=joint,
        pooling=pooling,
    )
    vision = VideoTransformer(config)
    vision.positions.copy_(reference.sinusoids(vision.num_patches, 32).float())
    checkpoints.randomise(vision, seed)
    model = VideoModel(
        name="tiny",
        family="umt",
        vision=vision,
        frames=frames,
        preprocessing=Preprocess(size=32, stretch=32, crop=False, mean=HALF, std=HALF),
    )
    return model.eval()


def clips(count, frames=3, seed=0):
    return seeded(count, frames, 3, 32, 32, seed=seed)


def layers_of(vision):
    """The blocks of a tower (made float64) as the reference takes them."""

    def layer(block):
        def qkv(x):
            width = x.shape[1] // block.heads
            queries, keys, values = block.qkv(block.norm1(x)).chunk(3, dim=1)
            return tuple(part.view(len(x), block.heads, width).transpose(0, 1) for part in (queries, keys, values))

        def project(attended):
            return block.proj(attended.transpose(0, 1).reshape(attended.shape[1], -1)) * (
                1 if block.scale1 is None else block.scale1
            )

        return reference.Layer(qkv, project, block.feed)

    return [layer(block) for block in vision.blocks]


@pytest.fixture(scope="module")
def video():
    return video_model()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    checkpoints.clip(folder, image_size=40, tokenizer=False)
    return load(folder, device="cpu")


# --- functions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protected", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("length", [7, 12])
def test_matching_and_merging_equal_the_loops(length, protected):
    count = (length - protected) // 2
    for asked in {0, 1, count}:
        x, masses = seeded(2, length, 6), 1 + seeded(2, length, seed=1).abs()
        weights = seeded(2, length, seed=2).abs()
        matching = bipartite_match(x, asked, protected=protected)
        merged = merge_tokens(Tokens(x, masses, torch.arange(length).expand(2, -1)), matching, weights)
        for row in range(2):
            pairs = reference.match(x[row].double(), asked, protected)
            assert list(zip(matching.merged[row].tolist(), matching.into[row].tolist(), strict=True)) == pairs
            tokens, wanted, made_of = reference.merge(
                x[row].double(), masses[row].tolist(), pairs, weights[row].tolist(), protected
            )
            torch.testing.assert_close(merged.tokens[row].double(), tokens, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(merged.masses[row], torch.tensor(wanted), atol=1e-5, rtol=1e-5)
            for place, parts in enumerate(made_of):
                assert set((merged.sources[row] == place).nonzero()[:, 0].tolist()) == set(parts)


def test_plain_merging_conserves_mass_and_weighted_sum():
    x, masses = seeded(3, 20, 5), 1 + seeded(3, 20, seed=1).abs()
    state = Tokens(x, masses)
    for count in (6, 5, 3):
        state = merge_tokens(state, bipartite_match(state.tokens, count))
    assert state.tokens.shape == (3, 6, 5)
    torch.testing.assert_close(state.masses.sum(1), masses.sum(1))
    torch.testing.assert_close((state.masses[..., None] * state.tokens).sum(1), (masses[..., None] * x).sum(1))


def test_background_contributes_nothing():
    """A source of weight 0 is dropped: its destination keeps value and mass to the last bit."""
    x = seeded(1, 8, 4)
    matching = bipartite_match(x, 4)
    merged = merge_tokens(Tokens(x), matching, torch.zeros(1, 8))
    assert torch.equal(merged.tokens, x[:, 1::2])
    assert torch.equal(merged.masses, torch.ones(1, 4))


def test_equal_tokens_merge_in_order():
    assert bipartite_match(torch.ones(1, 8, 3), 2).merged.tolist() == [[0, 2]]


@pytest.mark.parametrize(("count", "protected"), [(5, 0), (-1, 0), (4, 2)])
def test_matching_refuses_too_many(count, protected):
    with pytest.raises(ValueError, match="count must be between 0 and"):
        bipartite_match(seeded(1, 9, 3), count, protected=protected)


def test_saliency_equals_the_loops():
    queries, keys = seeded(2, 3, 14, 8), seeded(2, 3, 14, 8, seed=1)
    for row in range(2):
        weights = reference.attention(queries[row].double(), keys[row].double())
        wanted = torch.tensor(reference.sharpness(weights), dtype=torch.float64)
        entropy = scores.negative_entropy(weights.mean(0)[None])
        torch.testing.assert_close(scores.sharpness(entropy)[0], wanted)
        masked = torch.tensor(reference.background_dropped(wanted.tolist()), dtype=torch.float64)
        torch.testing.assert_close(scores.masked_saliency(wanted[None])[0], masked)
        torch.testing.assert_close(scores.saliency_weights(entropy)[0], masked)
        assert torch.equal(scores.foreground(wanted[None])[0], masked > 0)
        assert masked.max() == 1
        attentive = torch.tensor(reference.attentiveness(weights), dtype=torch.float64)
        torch.testing.assert_close(scores.attentiveness(weights[None])[0], attentive)


@pytest.mark.parametrize("slice_bytes", [1, 4 * 2 * 3 * 14 * 5, 1 << 24], ids=["rows", "uneven", "whole"])
def test_scored_attention_equals_plain_attention(monkeypatch, slice_bytes):
    monkeypatch.setattr(scores, "_SLICE_BYTES", slice_bytes)
    queries, keys, values = (seeded(2, 3, 14, 8, seed=seed) for seed in range(3))
    masses = 1 + seeded(2, 14, seed=3).abs()
    whole = torch.stack([reference.attention(q, k) for q, k in zip(queries, keys, strict=True)])
    for bias in (None, masses):
        mask = None if bias is None else bias.log()[:, None, None]
        wanted = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        attended, entropy = scores.scored_attention(queries, keys, values, score="sharpness", masses=bias)
        torch.testing.assert_close(attended, wanted, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(entropy, scores.negative_entropy(whole.mean(1)), atol=1e-5, rtol=1e-5)
    for cls in (False, True):
        _, attentive = scores.scored_attention(queries, keys, values, score="attentiveness", cls=cls)
        wanted = torch.tensor([reference.attentiveness(weights, cls=cls) for weights in whole])
        torch.testing.assert_close(attentive, wanted)


def test_large_masses_do_not_overflow_in_half_precision():
    queries, keys, values = (seeded(1, 2, 6, 4, seed=seed) for seed in range(3))
    masses = torch.tensor([[1.0, 3000, 2, 1, 5, 1]])
    wanted, _ = scores.scored_attention(queries, keys, 200 * values, score="sharpness", masses=masses)
    half = [part.half() for part in (queries, keys, 200 * values)]
    found, _ = scores.scored_attention(*half, score="sharpness", masses=masses)
    torch.testing.assert_close(found.float(), wanted, atol=1, rtol=0.02)


@pytest.mark.parametrize("kind", ["uniform", "one-hot"])
def test_degenerate_attention_gives_no_nan(kind):
    """The published code divides zero by zero here, or takes the logarithm of zero."""
    queries = torch.zeros(1, 1, 6, 4) if kind == "uniform" else torch.eye(6)[None, None] * 1e4
    attended, entropy = scores.scored_attention(queries, queries, queries, score="sharpness")
    weights = scores.saliency_weights(entropy)
    assert attended.isfinite().all()
    assert torch.equal(weights, torch.zeros(1, 6))
    state = merge_tokens(Tokens(seeded(1, 6, 4)), bipartite_match(seeded(1, 6, 4), 3), weights)
    assert torch.equal(state.masses, torch.ones(1, 3))


def test_rollout_equals_the_product():
    pairs = [(seeded(1, 2, 9, 4, seed=n), seeded(1, 2, 9, 4, seed=n + 9)) for n in range(3)]
    maps = [reference.attention(q[0], k[0]).mean(0) for q, k in pairs]
    found = scores.rollout(*zip(*pairs, strict=True))
    for first, wanted in enumerate((maps[2] @ maps[1] @ maps[0], maps[2] @ maps[1], maps[2])):
        torch.testing.assert_close(found[first][0], wanted.mean(0))


def test_pruning_and_fusing():
    x, marks = seeded(1, 6, 4), torch.tensor([[0.0, 5, 1, 4, 1, 3]])
    start = Tokens(x, None, torch.arange(6)[None])
    pruned = prune_tokens(start, marks, 3, protected=1)
    assert torch.equal(pruned.tokens, x[:, [0, 1, 3]])
    assert pruned.sources.tolist() == [[0, 1, -1, 2, -1, -1]]
    again = prune_tokens(pruned, torch.tensor([[0.0, 1, 2]]), 1, protected=1)
    assert again.sources.tolist() == [[0, -1, -1, 1, -1, -1]]
    fused = fuse_tokens(start, marks, 2, protected=1)
    assert torch.equal(fused.tokens[:, :3], x[:, [0, 1, 3]])
    torch.testing.assert_close(fused.tokens[0, 3], 1 * x[0, 2] + 1 * x[0, 4] + 3 * x[0, 5])
    assert fused.sources.tolist() == [[0, 1, 3, 2, 3, 3]]
    assert fuse_tokens(start, marks, 0) is start
    with pytest.raises(ValueError, match="leave at least one"):
        prune_tokens(start, marks, 6)


@pytest.mark.parametrize(
    ("tokens", "reduce", "protected", "expected"),
    [(10, 3, 0, 3), (10, 7, 0, 5), (11, 7, 0, 5), (197, 99, 1, 98), (10, 0.25, 0, 2), (10, 0.9, 0, 5), (1, 1, 0, 0)],
)
def test_num_reduced(tokens, reduce, protected, expected):
    assert num_reduced(tokens, reduce, protected) == expected


def test_schedules():
    assert tome_schedule(8, 3) == [8, 8, 8]
    assert tome_schedule(8, 5, decreasing=True) == [16, 12, 8, 4, 0]
    assert sum(tome_schedule(8, 12, decreasing=True)) == pytest.approx(8 * 12, rel=0.06)
    assert tome_schedule(3, 1, decreasing=True) == [3]
    assert token_counts(20, [6, 0.5], 4) == [20, 14, 7, 7, 7]
    with pytest.raises(ValueError, match="reduce must be at least 0"):
        tome_schedule(-1, 3)


# --- video models ----------------------------------------------------------------------------------------

REDUCE = [12, 0.25, 7]
METHODS = {
    "vidtldr": lambda model, reduce: VidTLDR(model, reduce),
    "tome": lambda model, reduce: ToMe(model, reduce),
    "tome tokens": lambda model, reduce: ToMe(model, reduce, metric="tokens"),
    "prune sharpness": lambda model, reduce: Pruning(model, reduce),
    "prune attentiveness": lambda model, reduce: Pruning(model, reduce, score="attentiveness"),
    "prune rollout": lambda model, reduce: Pruning(model, reduce, score="rollout"),
    "evit": EViT,
}


@pytest.mark.parametrize("method", METHODS)
def test_video_model_equals_the_loops(method):
    model = video_model()
    encoder = METHODS[method](model, REDUCE)
    pixels = clips(2)
    found, features = encoder.tokens(pixels), encoder.encode(pixels)
    vision = model.vision.double()
    layers = layers_of(vision)
    for row in range(2):
        start = vision.start(pixels[row : row + 1].double())[0]
        tokens, masses, holds = reference.run(layers, start, REDUCE, method=method)
        assert len(tokens) == encoder.counts[-1] == 20
        wanted = vision.norm_post(tokens)
        torch.testing.assert_close(found.tokens[row].double(), wanted, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.masses[row], torch.tensor(masses), atol=1e-4, rtol=1e-4)
        held = {place: sorted(parts) for place, parts in enumerate(holds)}
        for place, parts in held.items():
            assert (found.sources[row] == place).nonzero()[:, 0].tolist() == parts
        pooled = vision.projection(vision.norm_pool(wanted.mean(0)))
        torch.testing.assert_close(features[row].double(), pooled / pooled.norm(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_without_reduction_it_is_the_model_itself(method, video):
    pixels = clips(3)
    with torch.no_grad():
        wanted = F.normalize(video.vision(pixels), dim=1)
    for reduce in ([], [0, 0], [0] * 4):
        encoder = METHODS[method](video, reduce)
        torch.testing.assert_close(encoder.encode(pixels), wanted, atol=1e-6, rtol=1e-6)
    found = encoder.tokens(pixels)
    assert torch.equal(found.masses, torch.ones(3, 48))
    assert torch.equal(found.sources, torch.arange(48).expand(3, -1))


@pytest.mark.parametrize("method", METHODS)
def test_batching_changes_nothing(method, video):
    encoder = METHODS[method](video, REDUCE)
    pixels = clips(5)
    one = encoder.encode(pixels)
    encoder.batch_size = 3
    torch.testing.assert_close(encoder.encode(pixels), one, atol=1e-5, rtol=1e-5)
    assert encoder.encode(pixels[:0]).shape == (0, 16)
    assert encoder.tokens(pixels[:0]).tokens.shape[:2] == (0, encoder.counts[-1])


def test_pruning_before_attention_drops_before(video):
    """Only what stays is attended to: the attention of a block sees the tokens that are left."""
    encoder = Pruning(video, [20], before=True)
    pixels = clips(1)
    with torch.no_grad():
        x = video.vision.start(pixels)
        block = video.vision.blocks[0]
        queries, keys, _ = block.heads_of(x)
        sharp = torch.tensor(reference.sharpness(reference.attention(queries[0].double(), keys[0].double())))
        x = x[:, sorted(sharp.argsort(descending=True)[:28].tolist())]
        for layer in video.vision.blocks:
            x = layer(x)
        wanted = F.normalize(video.vision.pool(video.vision.finish(x)), dim=1)
    torch.testing.assert_close(encoder.encode(pixels), wanted, atol=1e-5, rtol=1e-5)


def test_first_token_is_protected_where_it_is_read():
    """VideoMAE without mean pooling classifies by the first token."""
    encoder = VidTLDR(video_model(pooling="first", joint=False), [10, 10])
    sources = encoder.tokens(clips(2)).sources
    assert (sources == 0).sum(1).tolist() == [1, 1]
    assert sources[:, 0].tolist() == [0, 0]


def test_without_joint_space_features_are_not_normalised():
    model = video_model(joint=False)
    with torch.no_grad():
        wanted = model.vision(clips(2))
    torch.testing.assert_close(VidTLDR(model).encode(clips(2)), wanted, atol=1e-6, rtol=1e-6)
    assert (wanted.norm(dim=1) - 1).abs().min() > 0.1


def test_bfloat16_stays_close():
    model = video_model()
    wanted = VidTLDR(model, [12]).encode(clips(3))
    found = VidTLDR(model.to(torch.bfloat16), [12]).encode(clips(3))
    assert found.dtype == torch.float32
    assert F.cosine_similarity(found, wanted).min() > 0.99


def test_presets_are_table_a():
    assert VidTLDR.preset("umt-b/msrvtt-retrieval") == [600, 200, 100]
    assert VidTLDR.preset("umt-l/ssv2-template-retrieval") == [350, 300, 100, 50]
    assert len(PRESETS) == 18
    with pytest.raises(ValueError, match="there is no preset 'umt-b/kinetics'; known are umt-b/msrvtt-retrieval"):
        VidTLDR.preset("umt-b/kinetics")


# --- image models ----------------------------------------------------------------------------------------

IMAGE_FAMILIES = {
    "clip": lambda path: checkpoints.clip(path, image_size=40, tokenizer=False),
    "siglip": lambda path: checkpoints.siglip(path, image_size=40),
    "dinov2": lambda path: checkpoints.dinov2(path, registers=3),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_image_model_equals_the_loops(tmp_path, family, method):
    IMAGE_FAMILIES[family](tmp_path)
    model = load(tmp_path, device="cpu")
    side, prefix = model.image_size, model.vision.num_prefix
    pixels = seeded(2, 3, side, side)
    encoder = METHODS[method](model, [5, 3])
    found, features = encoder.tokens(pixels), encoder.encode(pixels)
    vision = model.vision.double()
    for row in range(2):
        start = vision.start(pixels[row : row + 1].double())[0]
        tokens, masses, _ = reference.run(
            layers_of(vision), start, [5, 3], method=method, protected=prefix, cls=prefix > 0
        )
        torch.testing.assert_close(found.tokens[row].double(), vision.norm_post(tokens), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.masses[row], torch.tensor(masses), atol=1e-4, rtol=1e-4)
        assert found.sources[row, :prefix].tolist() == list(range(prefix))
        if family == "siglip":  # the pooling head's logits carry the masses
            bias = torch.tensor([math.log(mass) for mass in masses], dtype=torch.float64)
            pooled = vision.head(vision.norm_post(tokens)[None], bias[None, None, None])[0]
        else:
            pooled = vision.norm_post(tokens[0])
        if vision.projection is not None:
            pooled = vision.projection(pooled)
        torch.testing.assert_close(features[row].double(), pooled / pooled.norm(), atol=1e-4, rtol=1e-4)


def test_image_model_without_reduction_is_dense(clip):
    pixels = seeded(5, 3, 40, 40)
    encoder = VidTLDR(clip)
    torch.testing.assert_close(encoder.encode(pixels), DenseEncoder(clip).encode(pixels), atol=1e-6, rtol=1e-6)
    assert encoder.roles(3) == "III"
    assert encoder.settings == {"encoder": "vidtldr", "reduce": []}
    plan = encoder.planner().add(pixels)
    assert torch.equal(encoder.encode_planned(pixels, plan), encoder.encode(pixels))
    with pytest.raises(ValueError, match="reads every frame alike"):
        encoder.encode_planned(pixels, ResidualViT(clip, 1, 0.5, "random", None).planner().add(pixels))


# --- P-frames --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
@pytest.mark.parametrize("token", [False, True])
def test_p_frames_merge_and_protect(tmp_path, family, token):
    """CLS, registers and the residual token stay themselves; the rest is ToMe by keys."""
    IMAGE_FAMILIES[family](tmp_path)
    model = load(tmp_path, device="cpu")
    side, prefix = model.image_size, model.vision.num_prefix
    tokenizer = None
    if token:
        tokenizer = ResidualTokenizer(model.dim, model.vision.config.width)
        checkpoints.randomise(tokenizer, 5)
    encoder = ResidualViT(model, 2, 0.6, residual=tokenizer, reduction="merge", merge=4)
    pixels = seeded(4, 3, side, side)
    features = encoder.encode(pixels)
    dense = DenseEncoder(model).encode(pixels)
    torch.testing.assert_close(features[[0, 3]], dense[[0, 3]], atol=1e-6, rtol=1e-6)
    residual = None if tokenizer is None else tokenizer(dense[:1])[0].detach()
    vision = model.vision.double()
    for row in (1, 2):
        patches = vision.embed(vision.patchify(pixels[row : row + 1].double()))[0]
        parts = [vision.prefix(1)[0]] + ([] if residual is None else [residual.double()[None]]) + [patches]
        start = vision.pre(torch.cat(parts)[None])[0]
        protected = prefix + token
        tokens, masses, holds = reference.run(
            layers_of(vision), start, [4] * len(vision.blocks), method="tome", protected=protected
        )
        assert holds[:protected] == [[i] for i in range(protected)]
        bias = torch.tensor([math.log(mass) for mass in masses], dtype=torch.float64)[None, None, None]
        wanted = F.normalize(vision.pool(tokens[None], bias), dim=1)[0]
        torch.testing.assert_close(features[row].double(), wanted, atol=1e-4, rtol=1e-4)


def test_merging_p_frames_cost_about_what_dropping_costs():
    from everyframe.backbone import skeleton
    from everyframe.cost import flops

    model = skeleton("ViT-L/14")
    dropping = ResidualViT(model, 2, 0.85, residual=None)
    merging = ResidualViT(model, 2, 0.85, residual=None, reduction="merge")
    assert flops(merging).total == pytest.approx(flops(dropping).total, rel=0.02)
    assert merging.settings["merge"] == merging.merge > 30
    nothing = ResidualViT(model, 2, 0.85, residual=None, reduction="merge", merge=0)
    assert flops(nothing, rule="all").total == pytest.approx(flops(DenseEncoder(model), 3, rule="all").total)


def test_merging_nothing_is_dense_p_frames(clip):
    pixels = seeded(4, 3, 40, 40)
    encoder = ResidualViT(clip, 3, residual=None, reduction="merge", merge=0)
    torch.testing.assert_close(encoder.encode(pixels), DenseEncoder(clip).encode(pixels), atol=1e-6, rtol=1e-6)


# --- bad input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reduce", "error", "message"),
    [
        ([1] * 5, ValueError, "reduce has 5 entries, but the model has 4 blocks"),
        ([3, -1], ValueError, r"reduce\[1\] must be at least 0, got -1"),
        ([1.5], ValueError, r"reduce\[0\] must be a whole number of tokens, or a share of them below 1, got 1.5"),
        ([float("nan")], ValueError, r"reduce\[0\] must be at least 0, got nan"),
        ([float("inf")], ValueError, r"reduce\[0\] must be at least 0, got inf"),
        (["3"], TypeError, r"reduce\[0\] must be a number, got '3'"),
        ([True], TypeError, r"reduce\[0\] must be a number, got True"),
        ("600,200", TypeError, "reduce must be a list with a number per block"),
        (600, TypeError, "reduce must be a list with a number per block"),
    ],
)
def test_bad_reduce(video, reduce, error, message):
    with pytest.raises(error, match=message):
        VidTLDR(video, reduce)


def test_more_than_half_is_half_with_a_warning(video):
    with pytest.warns(UserWarning, match=r"half of the tokens in block 0 \(40 of 48\), block 2 \(0.9 of 24\)"):
        encoder = VidTLDR(video, [40, 0, 0.9])
    assert encoder.counts == [48, 24, 24, 12, 12]
    with pytest.warns(UserWarning, match="half are merged"):
        assert VidTLDR(video, [25]).counts[1] == 24
    assert VidTLDR(video, [24.0]).reduce == (24,)
    assert VidTLDR(video, np.array([24, 3])).reduce == (24, 3)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(1, 2, 3, 32, 32), "takes clips of 3 frames, got 2; sample 3 frames"),
        (torch.zeros(3, 3, 32, 32), r"pixels must be \[V, 3, 3, 32, 32\] for tiny, got \[3, 3, 32, 32\]"),
        (torch.zeros(1, 3, 3, 32, 32, dtype=torch.uint8), "pixels must be floating point, got torch.uint8"),
        (torch.zeros(1, 3, 3, 40, 32), r"pixels must be \[V, 3, 3, 32, 32\]"),
        ([1], "got list"),
    ],
)
def test_bad_clips(video, pixels, message):
    with pytest.raises(ValueError, match=message):
        VidTLDR(video, [4]).encode(pixels)


def test_bad_arguments(video, clip):
    with pytest.raises(TypeError, match=r"everyframe.load or everyframe.load_video returns, got str"):
        VidTLDR("umt", [4])
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        ToMe(video, batch_size=0)
    with pytest.raises(ValueError, match='metric must be "keys" or "tokens"'):
        ToMe(video, metric="values")
    with pytest.raises(ValueError, match='score must be "sharpness"'):
        Pruning(video, score="size")
    with pytest.raises(ValueError, match="before has no meaning with rollout"):
        Pruning(video, score="rollout", before=True)
    with pytest.raises(TypeError, match="features at a frame rate need an image model"):
        VidTLDR(video).planner()
    with pytest.raises(ValueError, match=r"pixels must be \[T, 3, 40, 40\]"):
        VidTLDR(clip).encode(torch.zeros(1, 3, 3, 40, 40))
    with pytest.raises(ValueError, match='merge has a meaning only with reduction="merge"'):
        ResidualViT(clip, residual=None, merge=3)
    with pytest.raises(ValueError, match="merge must be a number of tokens, 0 or more, got -1"):
        ResidualViT(clip, residual=None, reduction="merge", merge=-1)
