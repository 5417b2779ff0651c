"""ReuseEncoder against `reference.reuse`, which keeps every token's key and value in a dictionary per layer."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import checkpoints
from everyframe.backbone import load, skeleton
from everyframe.cost import flops
from everyframe.encoders import DenseEncoder, Plan, ResidualViT, ReuseEncoder
from everyframe.encoders.packed import packed_features
from everyframe.encoders.planner import LONGEST_GROUP, PLANS
from everyframe.encoders.reuse import SELECT
from everyframe.tokens.drop import random_indices
from reference import reuse as reference

FAMILIES = {
    "clip": lambda path: checkpoints.clip(path, image_size=40, tokenizer=False),
    "clip-gelu": checkpoints.clip_vision,
    "clip-uneven": lambda path: checkpoints.clip(path, image_size=43, activation="gelu", tokenizer=False),
    "siglip": lambda path: checkpoints.siglip(path, image_size=40),
    "siglip-vision": checkpoints.siglip_vision,
    "siglip2": checkpoints.siglip2,
    "dinov2": checkpoints.dinov2,
    "dinov2-swiglu": lambda path: checkpoints.dinov2(path, swiglu=True),
    "dinov2-registers": lambda path: checkpoints.dinov2(path, registers=3),
}
SETTINGS = [(plan, select) for plan in PLANS for select in SELECT if plan != "adaptive" or select == "change"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """name -> (folder, model), made once."""
    made = {}

    def make(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            FAMILIES[name](folder)
            made[name] = (folder, load(folder, device="cpu"))
        return made[name]

    return make


@pytest.fixture(scope="module")
def clip(models):
    return models("clip")[1]


@pytest.fixture(scope="module")
def base():
    return skeleton("ViT-B/16")


def noise(model, count, seed=0):
    """Preprocessed noise and a motion map with distinct values: [T, 3, S, S], [T, S, S]."""
    generator = torch.Generator().manual_seed(seed)
    side = model.image_size
    return (
        torch.randn(count, 3, side, side, generator=generator),
        torch.rand(count, side, side, generator=generator),
    )


def changing(model, count, seed=0):
    """A picture in which a few patches change from frame to frame."""
    pixels = noise(model, 1, seed)[0].repeat(count, 1, 1, 1)
    generator = torch.Generator().manual_seed(seed + 1)
    size, grid = model.vision.config.patch_size, model.vision.grid
    for frame in range(1, count):
        for patch in torch.randperm(grid**2, generator=generator)[: frame % 4].tolist():
            rows, columns = (slice(size * place, size * (place + 1)) for place in divmod(patch, grid))
            pixels[frame:, :, rows, columns] = torch.randn(3, size, size, generator=generator)
    return pixels


def uneven(model, roles, seed=0):
    """A plan with these roles whose P-frames refresh from one patch to all, no two in a row alike."""
    patches = model.vision.num_patches
    generator = torch.Generator().manual_seed(seed)
    counts = [1, patches, *torch.randint(2, patches, (len(roles),), generator=generator).tolist()]
    kept = [random_indices(patches, counts[place], frames=[place], seed=seed)[0] for place in range(roles.count("P"))]
    return Plan.of(roles, kept)


def patches_of(plan):
    return [plan.kept(frame).tolist() for frame, role in enumerate(plan.roles) if role == "P"]


def assert_near(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


# --- the reference ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("roles", ["IPPIPIIPPPP", "ICPCCPIPCIIC", "IPP"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_uneven_plans_equal_the_reference(models, family, roles):
    folder, model = models(family)
    pixels, _ = noise(model, len(roles), seed=len(roles))
    plan = uneven(model, roles, seed=1)
    expected = reference.encode(folder, pixels, roles, patches_of(plan))
    assert_near(ReuseEncoder(model).encode_planned(pixels, plan), expected)


@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2-registers"])
@pytest.mark.parametrize(("plan", "select"), [("fixed", "motion"), ("fixed", "change"), ("adaptive", "change")])
def test_from_pixels_to_features_equals_the_reference(models, family, plan, select):
    folder, model = models(family)
    pixels, motion = changing(model, 12), noise(model, 12)[1]
    encoder = ReuseEncoder(model, 4, 0.85, select, plan=plan, tolerance=0.1)
    options = {"patch_size": model.vision.config.patch_size, "count": encoder.num_kept, "interleave": 4}
    if select == "motion":
        roles, kept = reference.plan_by_motion(motion, **options)
    elif plan == "fixed":
        # Ties between patches that stay as they were are broken at random: let none be.
        pixels += 0.01 * noise(model, 12, seed=3)[0]
        roles, kept, _ = reference.plan_by_change(pixels, **options)
    else:
        roles, kept, _ = reference.plan_by_change(pixels, **options, adaptive=True, tolerance=0.1)
        assert set(roles) == set("IPC")
    assert_near(encoder.encode(pixels, motion), reference.encode(folder, pixels, roles, kept))


# --- identities ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", list(FAMILIES))
def test_refreshing_everything_is_the_dense_encoder(models, family):
    _, model = models(family)
    pixels, motion = noise(model, 7)
    dense = DenseEncoder(model).encode(pixels)
    for plan, select in SETTINGS:
        assert_near(ReuseEncoder(model, 2, 0.0, select, plan=plan).encode(pixels, motion), dense)


@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2-registers"])
def test_a_still_video_is_the_dense_encoder(models, family):
    _, model = models(family)
    pixels = noise(model, 1)[0].repeat(7, 1, 1, 1)
    dense = DenseEncoder(model).encode(pixels)
    for plan, select in SETTINGS:
        encoder = ReuseEncoder(model, 4, 0.8, select, plan=plan)
        assert_near(encoder.encode(pixels, noise(model, 7)[1]), dense)
        assert encoder.planner().add(pixels).roles == ("ICCCCCC" if plan == "adaptive" else "IPPPPIP")


@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2-registers"])
def test_refreshing_what_changed_is_nearer_to_dense_than_the_i_frame_or_dropping(models, family):
    _, model = models(family)
    pixels = changing(model, 6)
    dense = DenseEncoder(model).encode(pixels)
    encoder = ReuseEncoder(model, 5, 0.8)
    near = (encoder.encode(pixels) * dense).sum(1)
    dropped = (ResidualViT(model, 5, 0.8, "residual", None).encode(pixels) * dense).sum(1)
    stale = (dense[:1] * dense).sum(1)
    assert float(near[0]) == pytest.approx(1, abs=1e-5)
    for worse in (stale, dropped):
        assert float((1 - near[1:]).mean()) < 0.5 * float((1 - worse[1:]).mean())


def test_interleave_0_is_the_dense_encoder(clip):
    pixels, _ = noise(clip, 5)
    assert_near(ReuseEncoder(clip, 0).encode(pixels), DenseEncoder(clip).encode(pixels), atol=1e-6)


@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2-registers"])
def test_results_do_not_depend_on_the_passes(models, family):
    _, model = models(family)
    roles = "IPPPIIPCIPPPPPPPPICCIPIPPIPPPPI"
    pixels, _ = noise(model, len(roles))
    plan = uneven(model, roles)
    whole = packed_features(model, pixels, plan)
    for batch_size in (1, 2, 64):
        assert_near(ReuseEncoder(model, batch_size=batch_size).encode_planned(pixels, plan), whole)
    starts = [*(frame for frame, role in enumerate(roles) if role == "I"), len(roles)]
    for groups in (1, 2, 3):
        cuts = [*starts[::groups], len(roles)]
        parts = [packed_features(model, pixels[a:b], plan[a:b]) for a, b in pairwise(cuts) if a < b]
        assert_near(torch.cat(parts), whole)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_passes_hold_whole_groups_and_no_more_tokens_than_asked(clip, batch_size, monkeypatch):
    roles = "IPPPIIPCIPPPPPPPPICCIPIPPIPPPPI"
    pixels, _ = noise(clip, len(roles))
    plan, passes = uneven(clip, roles), []

    def spy(model, some, part):
        passes.append(part)
        return packed_features(model, some, part)

    monkeypatch.setattr("everyframe.encoders.reuse.packed_features", spy)
    ReuseEncoder(clip, batch_size=batch_size).encode_planned(pixels, plan)
    assert "".join(part.roles for part in passes) == roles
    tokens = [26 * part.roles.count("I") + part.roles.count("P") + len(part.indices) for part in passes]
    for place, part in enumerate(passes):
        assert part.roles[0] == "I"
        assert tokens[place] <= 26 * batch_size or part.roles.count("I") == 1
    for before, after in pairwise(passes):  # nor fewer: the next group did not fit
        group = len(after.roles.split("I")[1]) + 1
        more = 26 + after.roles[:group].count("P") + after.offsets[group]
        assert 26 * before.roles.count("I") + before.roles.count("P") + len(before.indices) + more > 26 * batch_size


@pytest.mark.parametrize(("plan", "select"), SETTINGS)
def test_results_do_not_depend_on_batch_size(clip, plan, select):
    pixels, motion = changing(clip, 17), noise(clip, 17)[1]
    whole, *others = (
        ReuseEncoder(clip, 3, 0.7, select, plan=plan, batch_size=size).encode(pixels, motion) for size in (64, 1, 2)
    )
    for other in others:
        assert_near(other, whole)


@pytest.mark.parametrize("select", SELECT)
def test_encoding_in_chunks_is_encoding_the_whole(clip, select):
    pixels, motion = changing(clip, 12), noise(clip, 12)[1]
    encoder = ReuseEncoder(clip, 3, 0.85, select, seed=3)
    whole = encoder.encode(pixels, motion)
    for start, end in ((0, 8), (8, 12), (4, 11)):
        assert_near(encoder.encode(pixels[start:end], motion[start:end], first_frame=start), whole[start:end])


def test_a_copy_is_the_feature_before_it(clip):
    roles = "ICCPCIPPC"
    pixels, _ = noise(clip, len(roles))
    features = ReuseEncoder(clip).encode_planned(pixels, uneven(clip, roles))
    for frame, source in enumerate([0, 0, 0, 3, 3, 5, 6, 7, 7]):
        assert torch.equal(features[frame], features[source])
    assert len({tuple(row) for row in features.tolist()}) == 5


@pytest.mark.parametrize("family", ["clip", "siglip", "siglip2", "dinov2-registers"])
def test_a_p_frame_sees_its_group_up_to_itself_and_only_what_was_refreshed(models, family):
    _, model = models(family)
    roles = "IPPPIP"
    pixels, _ = noise(model, len(roles))
    plan = Plan.of(roles, [torch.tensor(patches) for patches in ([1, 2], [4, 7], [2], [0])])
    encoder = ReuseEncoder(model)
    before = encoder.encode_planned(pixels, plan)
    size, grid = model.vision.config.patch_size, model.vision.grid
    for frame, patches in enumerate([range(grid**2), [1, 2], [4, 7], [2], range(grid**2), [0]]):
        for patch in range(0, grid**2, 5 if roles[frame] == "I" else 1):
            rows, columns = (slice(size * place, size * (place + 1)) for place in divmod(patch, grid))
            other = pixels.clone()
            other[frame, :, rows, columns] += 2.0
            moved = (encoder.encode_planned(other, plan) - before).abs().amax(1) > 1e-5
            group = slice(frame, 4 if frame < 4 else 6)
            expected = torch.zeros(6, dtype=torch.bool)
            expected[group] = patch in patches
            assert torch.equal(moved, expected), (frame, patch)


@pytest.mark.parametrize("select", ["random", "change"])
def test_seed_decides_random_choices(clip, select):
    pixels = noise(clip, 1)[0].repeat(6, 1, 1, 1)
    pixels[1:] += 0.5  # of every patch alike
    one, again, other, later = (
        ReuseEncoder(clip, 5, 0.85, select, seed=seed).encode(pixels, first_frame=first)
        for seed, first in ((1, 0), (1, 0), (2, 0), (1, 6))
    )
    assert torch.equal(one, again)
    for different in (other, later):
        assert float((one - different)[1:].abs().amax(1).min()) > 1e-3


# --- precision, devices, empty input ---------------------------------------------------------------------


@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2"])
def test_bfloat16_is_near_float32(models, family):
    folder, model = models(family)
    half = load(folder, device="cpu", dtype="bfloat16")
    roles = "IPPCPIIPPPP"
    pixels, _ = noise(model, len(roles))
    plan = uneven(model, roles)
    exact, rough = (ReuseEncoder(each).encode_planned(pixels, plan) for each in (model, half))
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    assert float((exact * rough).sum(1).min()) > 0.99
    assert ReuseEncoder(half).encode(pixels.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2-registers"])
def test_features_are_unit_float32_without_gradient(models, family):
    _, model = models(family)
    pixels, motion = noise(model, 5)
    kept = pixels.clone()
    features = ReuseEncoder(model).encode(pixels.requires_grad_(), motion)
    assert (features.shape, features.dtype, features.device) == ((5, model.dim), torch.float32, model.device)
    assert not features.requires_grad
    assert_near(features.norm(dim=1), torch.ones(5), atol=1e-6)
    assert torch.equal(pixels, kept)


@pytest.mark.parametrize(("plan", "select"), SETTINGS)
def test_no_frames_give_no_features(clip, plan, select):
    pixels, motion = noise(clip, 0)
    encoder = ReuseEncoder(clip, select=select, plan=plan)
    for features in (encoder.encode(pixels, motion), encoder.encode(pixels)):
        assert features.shape == (0, clip.dim)
        assert features.dtype == torch.float32
    assert encoder.encode_planned(pixels, Plan.of("", [])).shape == (0, clip.dim)


# --- cost ------------------------------------------------------------------------------------------------


def linear_macs(patches):
    """ViT-B/16 by hand: projection of 16 x 16 x 3 pixels, 12 width^2 per token and layer, CLS to 512."""
    return patches * 768 * 768 + 12 * (1 + patches) * 12 * 768**2 + 768 * 512


@pytest.mark.parametrize(("interleave", "drop"), [(5, 0.85), (2, 0.5), (0, 0.85), (3, 0.0)])
def test_cost_by_the_papers_rule_is_that_of_dropping(base, interleave, drop):
    cost = flops(ReuseEncoder(base, interleave, drop))
    assert cost.frames == interleave + 1
    assert cost.total == pytest.approx(linear_macs(196) + interleave * linear_macs(196 * (1 - drop)))
    assert cost.by_part == pytest.approx(flops(ResidualViT(base, interleave, drop, residual=None)).by_part)


def test_attention_costs_queries_times_all_tokens(base):
    cost = flops(ReuseEncoder(base, 5, 0.85), 8, rule="all")  # IPPPPPIP
    assert cost.by_part["attention"] == 12 * 2 * 768 * (2 * 197**2 + 6 * 30 * 197)
    assert cost.total == cost.by_part["attention"] + 2 * linear_macs(196) + 6 * linear_macs(29)
    assert ReuseEncoder(base, 5, 0.85).num_kept == 29


def test_an_uneven_plan_costs_what_it_computes(base):
    plan = Plan.of("IPCPICCP", [torch.arange(count) for count in (3, 100, 20)])
    for encoder in (ReuseEncoder(base), ReuseEncoder(base, plan="adaptive")):
        paper, everything = (encoder.plan_macs(plan, rule) for rule in ("paper", "all"))
        linear = 2 * linear_macs(196) + sum(map(linear_macs, (3, 100, 20)))
        assert sum(paper.values()) == pytest.approx(linear)
        assert everything.pop("attention") == pytest.approx(12 * 2 * 768 * (2 * 197 + 4 + 101 + 21) * 197)
        assert everything == pytest.approx(paper)
    assert sum(encoder.plan_macs(Plan.of("ICCC", []), "paper").values()) == linear_macs(196)
    assert sum(encoder.plan_macs(Plan.of("", []), "all").values()) == 0


def test_a_fixed_plan_costs_what_its_roles_do(base):
    encoder = ReuseEncoder(base, 3, 0.6)
    plan = Plan.of(encoder.roles(10), [torch.arange(encoder.num_kept)] * 7)
    assert encoder.plan_macs(plan, "all") == pytest.approx(encoder.macs(10, "all"))


def measured(encoder, pixels, plan, monkeypatch):
    """Multiply-accumulates seen from outside: of linear layers, and of attention."""
    linear, attention = [], []

    def attend(query, key, value, **options):
        batch, heads, queries, size = query.shape
        attention.append(batch * heads * queries * key.shape[2] * (size + value.shape[3]))
        return real(query, key, value, **options)

    real = F.scaled_dot_product_attention
    handles = [
        module.register_forward_hook(lambda m, inputs, output: linear.append(output.numel() * m.in_features))
        for module in encoder.model.vision.modules()
        if isinstance(module, nn.Linear)
    ]
    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", attend)
        encoder.encode_planned(pixels, plan)
    for handle in handles:
        handle.remove()
    return sum(linear), sum(attention)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_rule_all_is_what_runs(models, family, monkeypatch):
    """Group by group nothing is padded, and SigLIP's query is computed for every frame."""
    _, model = models(family)
    roles = "IPPIPIIPCPPP"
    pixels, _ = noise(model, len(roles))
    plan = uneven(model, roles)
    encoder = ReuseEncoder(model, batch_size=1)
    macs = encoder.plan_macs(plan, "all")
    linear, attention = measured(encoder, pixels, plan, monkeypatch)
    assert macs["attention"] == pytest.approx(attention, rel=1e-12)
    assert sum(macs.values()) == pytest.approx(linear + attention, rel=1e-12)


def test_one_pass_pads_the_queries_of_a_step_and_nothing_else(clip, monkeypatch):
    roles = "IPPIPIIPPPP"
    pixels, _ = noise(clip, len(roles))
    plan = Plan.of(roles, [torch.arange(count) for count in (3, 9, 5, 4, 2, 1, 7)])
    linear, attention = measured(ReuseEncoder(clip), pixels, plan, monkeypatch)
    macs = ReuseEncoder(clip).plan_macs(plan, "all")
    assert linear == pytest.approx(sum(macs.values()) - macs["attention"], rel=1e-12)
    # Four groups. First P-frames: 3, 5 and 4 patches, CLS with each; second: 9 and 2; then 1, then 7.
    queries = 4 * 26 + 3 * 6 + 2 * 10 + 2 + 8
    assert attention == 3 * 2 * 32 * queries * 26


@pytest.mark.parametrize("family", ["clip", "dinov2-registers"])
def test_rule_all_is_what_pytorch_counts(models, family):
    _, model = models(family)
    pixels, _ = noise(model, 14)
    encoder = ReuseEncoder(model, 4, 0.7)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        encoder.encode(pixels)
    assert flops(encoder, 14, rule="all").total == pytest.approx(counter.get_total_flops() / 2, rel=1e-12)


def test_the_state_is_the_keys_and_values_of_one_layer(base, models):
    assert ReuseEncoder(base).state_bytes == 2 * 197 * 768 * 4
    folder, model = models("dinov2-registers")
    assert ReuseEncoder(model).state_bytes == 2 * (1 + 3 + 16) * 32 * 4
    assert ReuseEncoder(load(folder, device="cpu", dtype="bfloat16")).state_bytes == 2 * 20 * 32 * 2


# --- settings --------------------------------------------------------------------------------------------


def test_settings_name_what_decides_the_features(clip):
    encoder = ReuseEncoder(clip, 3, 0.5, "motion", plan="cuts", seed=4, batch_size=7)
    assert encoder.settings == {
        "encoder": "reuse",
        "drop": 0.5,
        "plan": "cuts",
        "interleave": 3,
        "select": "motion",
        "seed": 4,
    }
    adaptive = ReuseEncoder(clip, plan="adaptive", tolerance=2).settings
    assert adaptive == {"encoder": "reuse", "drop": 0.85, "plan": "adaptive", "tolerance": 2.0}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, False),
        ({"select": "motion"}, True),
        ({"select": "motion", "plan": "cuts"}, True),
        ({"select": "motion", "interleave": 0}, False),
        ({"select": "motion", "drop": 0}, False),
        *[({"select": select}, False) for select in SELECT if select != "motion"],
        ({"plan": "adaptive"}, False),
    ],
)
def test_motion_is_needed_only_where_it_decides(clip, options, expected):
    encoder = ReuseEncoder(clip, **options)
    assert encoder.needs_motion is expected
    if not expected:
        pixels, motion = changing(clip, 4), noise(clip, 4)[1]
        assert torch.equal(encoder.encode(pixels, motion), encoder.encode(pixels))


def test_group_size_and_roles(clip):
    assert (ReuseEncoder(clip, 3).group_size, ReuseEncoder(clip, 3).roles(6)) == (4, "IPPPIP")
    assert ReuseEncoder(clip, 3, plan="cuts").group_size == 4
    assert ReuseEncoder(clip, 3, plan="adaptive").group_size == LONGEST_GROUP


@pytest.mark.parametrize("plan", ["cuts", "adaptive"])
def test_plans_that_depend_on_the_video_have_no_roles_or_cost_of_their_own(clip, plan):
    encoder = ReuseEncoder(clip, plan=plan)
    with pytest.raises(ValueError, match=f"with plan='{plan}' its roles depends? on the video; everyframe plan VIDEO"):
        encoder.roles(5)
    with pytest.raises(ValueError, match=f"with plan='{plan}' its cost depends on the video; everyframe plan VIDEO"):
        flops(encoder)


# --- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"drop": 1.0}, ValueError, r"drop must be in \[0, 1\), got 1.0; to keep every token use 0"),
        ({"drop": -0.1}, ValueError, r"drop must be in \[0, 1\), got -0.1"),
        ({"drop": float("nan")}, ValueError, r"drop must be in \[0, 1\), got nan"),
        ({"interleave": -1}, ValueError, "interleave must be 0 or more P-frames per I-frame, got -1"),
        ({"interleave": 2.0}, TypeError, r"interleave must be an int, got 2\.0"),
        ({"select": "flow"}, ValueError, "select must be one of change, motion, center, .*, got 'flow'"),
        ({"plan": "smart"}, ValueError, "plan must be one of fixed, cuts, adaptive, got 'smart'"),
        ({"plan": "adaptive", "select": "center"}, ValueError, "adaptive plan selects by change, got select='center'"),
        ({"tolerance": -1}, ValueError, r"tolerance must be a finite number >= 0, got -1\.0"),
        ({"tolerance": float("nan")}, ValueError, "tolerance must be a finite number >= 0, got nan"),
        ({"tolerance": float("inf")}, ValueError, "tolerance must be a finite number >= 0, got inf"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
    ],
)
def test_wrong_options_raise(clip, options, error, message):
    with pytest.raises(error, match=message):
        ReuseEncoder(clip, **options)


def test_wrong_model_raises():
    with pytest.raises(TypeError, match=r"model must be what everyframe\.load returns, got str"):
        ReuseEncoder("clip")


@pytest.mark.parametrize(
    ("pixels", "error", "message"),
    [
        (torch.zeros(4, 3, 32, 32), ValueError, r"pixels must be \[T, 3, 40, 40\] .* got \[4, 3, 32, 32\]"),
        (torch.zeros(3, 40, 40), ValueError, r"pixels must be .* got \[3, 40, 40\]"),
        (torch.zeros(4, 3, 40, 40, dtype=torch.uint8), ValueError, "pixels must be floating point, got torch.uint8"),
        ([[0.0]], TypeError, "pixels must be a tensor, got list"),
    ],
)
def test_wrong_pixels_raise(clip, pixels, error, message):
    with pytest.raises(error, match=message):
        ReuseEncoder(clip).encode(pixels)
    with pytest.raises(error, match=message):
        ReuseEncoder(clip).encode_planned(pixels, Plan.of("IIII", []))


@pytest.mark.parametrize("select", ["change", "motion"])
@pytest.mark.parametrize("shape", [(3, 40, 40), (4, 40, 39), (4, 1, 40, 40), (40, 40)])
def test_wrong_motion_raises(clip, shape, select):
    pixels, motion = noise(clip, 4)
    with pytest.raises(ValueError, match=r"motion must be \[4, 40, 40\], one map per frame, got \["):
        ReuseEncoder(clip, select=select).encode(pixels, torch.zeros(shape))
    with pytest.raises(TypeError, match=r"motion must be a tensor \[T, S, S\], got ndarray; use torch.from_numpy"):
        ReuseEncoder(clip, select=select).encode(pixels, motion.numpy())


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan.of("III", []), "the plan is for 3 frames, but there are 4"),
        (Plan.of("IIIII", []), "the plan is for 5 frames, but there are 4"),
        (Plan.of("PIII", [torch.tensor([0])]), "the plan must begin with an I-frame, got 'P'"),
        (Plan.of("CIII", []), "the plan must begin with an I-frame, got 'C'"),
        (Plan.of("IIIP", [torch.tensor([3, 25])]), "patches from 0 to 24, those of .*, got 3 to 25"),
        (Plan.of("IIIP", [torch.tensor([-1, 4])]), "patches from 0 to 24, those of .*, got -1 to 4"),
    ],
)
def test_wrong_plans_raise(clip, plan, message):
    with pytest.raises(ValueError, match=message):
        ReuseEncoder(clip).encode_planned(noise(clip, 4)[0], plan)
