"""Two-sided reuse: P-frames that take patches from the next I-frame, against `reference.reuse` and cases by hand."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import checkpoints
import everyframe as ef
from everyframe.backbone import Model, load
from everyframe.backbone.vit import VisionConfig, VisionTransformer
from everyframe.cost import frame_macs
from everyframe.encoders import DenseEncoder, Plan, ReuseEncoder
from everyframe.encoders.packed import packed_features
from everyframe.encoders.planner import NOISE, PLANS, Planner, Policy
from everyframe.encoders.reuse import SELECT
from everyframe.pipeline import Sampling, encode_recipe, encode_videos, read_window
from everyframe.pipeline.decoding import read_chunks
from everyframe.tokens.drop import random_indices
from everyframe.video import write_video
from reference import reuse as reference

FAMILIES = {
    "clip": lambda path: checkpoints.clip(path, image_size=40, tokenizer=False),
    "siglip": lambda path: checkpoints.siglip(path, image_size=40),
    "dinov2-registers": lambda path: checkpoints.dinov2(path, registers=3),
}
PATCH, GRID = 8, 5
SIDE, PATCHES = PATCH * GRID + 3, GRID**2  # three rows and columns belong to no patch
BLOCK = {"width": 4, "heads": 1, "mlp_width": 4, "activation": "gelu", "norm_eps": 1e-6}
VISION = VisionTransformer(VisionConfig(**BLOCK, depth=1, dim=4, patch_size=PATCH, image_size=SIDE))
ROLES = "IPPPIIPCPPIPPPPPPPPICCIPIPPCIPPI"


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
def clip(models) -> Model:
    return models("clip")[1]


def noise(model, count, seed=0):
    side = model.image_size
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def drifting(model, count, seed=0):
    """Pictures on their way to others: every 4 frames, each patch goes to its next content at a moment of its own."""
    stations = noise(model, count // 4 + 2, seed)
    generator = torch.Generator().manual_seed(seed)
    size, grid = model.vision.config.patch_size, model.vision.grid
    frames = stations[[frame // 4 for frame in range(count)]]
    for frame in range(count):
        for patch in torch.randperm(grid**2, generator=generator)[: frame % 4 * grid].tolist():
            rows, columns = (slice(size * place, size * (place + 1)) for place in divmod(patch, grid))
            frames[frame, :, rows, columns] = stations[frame // 4 + 1, :, rows, columns]
    return frames + 0.02 * noise(model, count, seed + 1)


def uneven(model, roles, seed=0):
    """P-frames that refresh from one patch to all, and are lent from none to all where an I-frame follows."""
    patches = model.vision.num_patches
    generator = torch.Generator().manual_seed(seed)
    frames = [frame for frame, role in enumerate(roles) if role == "P"]
    some = [1, patches, *torch.randint(2, patches, (len(frames),), generator=generator).tolist()]
    more = [3, 1, patches, *torch.randint(1, patches, (len(frames),), generator=generator).tolist()]
    kept, lent = [], []
    for frame, refreshed, taken in zip(frames, some, more, strict=False):
        kept.append(random_indices(patches, refreshed, frames=[frame], seed=seed)[0])
        lent.append(random_indices(patches, taken, frames=[frame], seed=seed + 1)[0][: taken * ("I" in roles[frame:])])
    return Plan.of(roles, kept, lent)


def plan_of(roles, *patches):
    """From lists of lists."""
    return Plan.of(roles, *([torch.tensor(each, dtype=torch.int64) for each in part] for part in patches))


def patches_of(plan):
    frames = [frame for frame, role in enumerate(plan.roles) if role == "P"]
    return [plan.kept(frame).tolist() for frame in frames], [plan.lent_by(frame).tolist() for frame in frames]


def assert_near(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def assert_same(actual, expected):
    assert actual.roles == expected.roles
    for name in ("counts", "indices", "lent_counts", "lent"):
        assert torch.equal(getattr(actual, name), getattr(expected, name)), name


# --- the engine ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("roles", ["IPPIPIIPPPPIP", "ICPCCPIPCIICPI"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_lent_patches_equal_the_reference(models, family, roles):
    folder, model = models(family)
    pixels = noise(model, len(roles), seed=len(roles))
    plan = uneven(model, roles, seed=1)
    kept, lent = patches_of(plan)
    expected = reference.encode(folder, pixels, roles, kept, lent)
    features = ReuseEncoder(model).encode_planned(pixels, plan)
    assert_near(features, expected)
    without = ReuseEncoder(model).encode_planned(pixels, Plan(roles, plan.counts, plan.indices))
    moved = (without - features).abs().amax(1) > 1e-4
    assert bool(moved.any()) and not bool(moved[[role == "I" for role in roles]].any())


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("plan", ["fixed", "adaptive"])
def test_from_pixels_to_features_equals_the_reference(models, family, plan):
    folder, model = models(family)
    pixels = drifting(model, 10)
    encoder = ReuseEncoder(model, 3, 0.85, plan=plan, tolerance=0.5, two_sided=True)
    options = {"patch_size": model.vision.config.patch_size, "count": encoder.num_kept, "adaptive": plan == "adaptive"}
    roles, _, _ = reference.plan_by_change(pixels, **options, interleave=3, tolerance=0.5)
    roles, kept, lent = reference.two_sided(pixels, roles, **options)
    assert any(lent) and roles.count("I") > 1
    assert_near(encoder.encode(pixels), reference.encode(folder, pixels, roles, kept, lent))


def test_what_is_lent_stays_until_the_next_i_frame_and_what_is_refreshed_replaces_it(clip):
    """Frame 1 takes patches 3 and 8; frame 2 refreshes 8. Which pixels do frames see?"""
    plan = plan_of("IPPIPI", [[1], [8], [2]], [[3, 8], [], []])
    pixels = noise(clip, 6)
    encoder = ReuseEncoder(clip)
    before = encoder.encode_planned(pixels, plan)
    seen = []
    for frame in range(6):
        other = pixels.clone()
        other[frame, :, :PATCH, 3 * PATCH : 4 * PATCH] += 2.0  # patch 3
        moved = (encoder.encode_planned(other, plan) - before).abs().amax(1) > 1e-5
        seen.append(moved.nonzero().flatten().tolist())
    # Of I-frame 0 patch 3 is not looked at any more, but its other patches looked at it.
    assert seen == [[0, 1, 2], [], [], [1, 2, 3, 4], [], [5]]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_results_do_not_depend_on_the_passes(models, family):
    _, model = models(family)
    pixels, plan = noise(model, len(ROLES)), uneven(model, ROLES)
    whole = packed_features(model, pixels, plan)
    for batch_size in (1, 3, 64):
        for two_sided in (True, False):  # the plan decides, not the encoder that runs it
            encoder = ReuseEncoder(model, batch_size=batch_size, two_sided=two_sided)
            assert_near(encoder.encode_planned(pixels, plan), whole)
    starts = [frame for frame, role in enumerate(ROLES) if role == "I"]
    for groups in (1, 2, 3):
        cuts = [*starts[:-1:groups], starts[-1]]
        parts = [packed_features(model, pixels[a : b + 1], plan[a : b + 1])[:-1] for a, b in pairwise(cuts)]
        assert_near(torch.cat([*parts, whole[-1:]]), whole)


@pytest.mark.parametrize("plan", PLANS)
def test_results_do_not_depend_on_batch_size(clip, plan):
    pixels = drifting(clip, 23)
    options = {"plan": plan, "tolerance": 0.5, "two_sided": True}
    whole, *others = (ReuseEncoder(clip, 2, 0.7, **options, batch_size=size).encode(pixels) for size in (64, 1, 3))
    made = ReuseEncoder(clip, 2, 0.7, **options).planner().add(pixels)
    assert made.roles.count("I") > 3 and made.is_two_sided
    for other in others:
        assert_near(other, whole)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", list(FAMILIES))
def test_refreshing_everything_and_a_still_video_are_the_dense_encoder(models, family, plan):
    _, model = models(family)
    # Under "adaptive" everything is what changed: in noise that is everything.
    for pixels, drop in ((noise(model, 9), 0.0), (noise(model, 1).repeat(9, 1, 1, 1), 0.8)):
        encoder = ReuseEncoder(model, 2, drop, plan=plan, two_sided=True)
        assert_near(encoder.encode(pixels), DenseEncoder(model).encode(pixels))
    if plan != "adaptive":
        pixels = drifting(model, 9)
        encoder = ReuseEncoder(model, 2, 0.0, plan=plan, two_sided=True)
        assert_near(encoder.encode(pixels), DenseEncoder(model).encode(pixels))


def test_the_last_group_has_one_side(clip):
    pixels = drifting(clip, 11)  # IPPPIPPPIPP
    one, two = (ReuseEncoder(clip, 3, two_sided=two_sided).encode(pixels) for two_sided in (False, True))
    assert_near(one[8:], two[8:])
    assert float((one - two)[:8].abs().max()) > 1e-2


@pytest.mark.parametrize("family", ["clip", "dinov2-registers"])
def test_rule_all_is_what_pytorch_counts(models, family):
    """Also of I-frames that a pass looks ahead to; one that ends the plan gets no pass of its own."""
    _, model = models(family)
    pixels = drifting(model, 13)
    counted = {}
    for batch_size in (1, 2, 64):
        encoder = ReuseEncoder(model, 3, 0.7, two_sided=True, batch_size=batch_size)
        planner = encoder.planner()
        plan = planner.add(pixels) + planner.finish()
        assert plan.roles == "IPPPIPPPIPPPI" and all(plan[a : a + 4].is_two_sided for a in (0, 4, 8))
        counter = FlopCounterMode(display=False)
        with counter, sdpa_kernel(SDPBackend.MATH):
            encoder.encode_planned(pixels, plan)
        counted[batch_size] = counter.get_total_flops() / 2
        assert sum(encoder.plan_macs(plan, "all").values()) == pytest.approx(counted[batch_size], rel=1e-12)
    config, tokens = model.vision.config, model.vision.num_patches + model.vision.num_prefix
    full = sum(frame_macs(config, "all", patches=model.vision.num_patches, tokens=tokens).values())
    assert counted[1] - counted[64] == pytest.approx(2 * full)  # passes end before frames 4 and 8


# --- the planner -----------------------------------------------------------------------------------------


def planner(plan="fixed", num_kept=1, *, interleave=5, tolerance=1.0, two_sided=True, seed=0, first_frame=0):
    policy = Policy(
        plan=plan,
        interleave=interleave,
        select="change",
        num_kept=num_kept,
        tolerance=tolerance,
        seed=seed,
        two_sided=two_sided,
    )
    return Planner(VISION, policy, first_frame)


def whole_plan(pixels, *args, **options):
    own = planner(*args, **options)
    return own.add(pixels) + own.finish()


def still(count, seed=0):
    coarse = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic").repeat(count, 1, 1, 1)


def shift(pixels, patch, offset):
    top, left = patch // GRID * PATCH, patch % GRID * PATCH
    pixels[..., top : top + PATCH, left : left + PATCH] += offset


def shots():
    """Steps and flickers of 6 patches a frame, a little noise, and another picture from frame 15 on."""
    generator = torch.Generator().manual_seed(5)
    pixels = torch.cat((still(15, 1), still(13, 2)))
    for frame in range(28):
        for place, patch in enumerate(torch.randperm(PATCHES, generator=generator)[:6].tolist()):
            last = frame + 2 if place < 2 else 28
            shift(pixels[frame:last], patch, float(torch.randn((), generator=generator)) * 0.5)
    return pixels + 0.05 * torch.randn(pixels.shape, generator=generator)


CASES = [("fixed", 3, 1.0), ("cuts", 3, 1.0), *[("adaptive", count, 0.2) for count in (2, 8)], ("adaptive", 25, 0.5)]


@pytest.mark.parametrize(("plan", "count", "tolerance"), CASES)
def test_plans_equal_the_reference(plan, count, tolerance):
    pixels, options = shots(), {"patch_size": PATCH, "count": count, "adaptive": plan == "adaptive"}
    cuts = () if plan == "fixed" else (15,)
    roles, _, left_out = reference.plan_by_change(pixels, **options, interleave=4, tolerance=tolerance, cuts=cuts)
    roles, kept, lent = reference.two_sided(pixels, roles, **options)
    own = planner(plan, count, interleave=4, tolerance=tolerance)
    made = own.add(pixels) + own.finish()
    assert made.roles == roles
    assert patches_of(made) == (kept, lent)
    assert own.left_out == pytest.approx(left_out, abs=1e-5)
    assert sum(map(len, lent)) > 3 or count == PATCHES  # all that changed is refreshed


@pytest.mark.parametrize(("plan", "count", "tolerance"), CASES)
def test_i_frames_and_what_is_left_out_are_those_of_one_side(plan, count, tolerance):
    pixels, options = shots(), {"interleave": 4, "tolerance": tolerance}
    one, two = (planner(plan, count, **options, two_sided=two_sided) for two_sided in (False, True))
    single, both = one.add(pixels), two.add(pixels) + two.finish()
    assert [role == "I" for role in both.roles] == [role == "I" for role in single.roles]
    assert one.left_out == two.left_out
    assert not single.is_two_sided and (both.is_two_sided or count == PATCHES)
    last = both.roles.rindex("I")
    assert_same(both[last:], single[last:])
    assert one.finish().roles == ""


@pytest.mark.parametrize(("plan", "count", "tolerance"), CASES)
def test_plans_do_not_depend_on_the_calls(plan, count, tolerance):
    pixels, options = shots(), {"interleave": 4, "tolerance": tolerance}
    expected = whole_plan(pixels, plan, count, **options)
    for split in ([1] * 28, [7, 21], [2, 0, 3, 0, 23], [16, 12]):
        own, made, first = planner(plan, count, **options), Plan.of("", []), 0
        for size in split:
            made += own.add(pixels[first : first + size])
            first += size
            seen = expected.roles[:first]
            assert made.roles == seen[: seen.rfind("I") + 1]  # decided is what the last I-frame closes, and it
        assert_same(made + own.finish(), expected)
        assert own.finish().roles == ""


def test_parts_from_an_i_frame_on_continue_the_plan():
    pixels = still(18)  # ties alone: the frame's number breaks them
    expected = whole_plan(pixels, num_kept=3)
    assert not expected.is_two_sided
    assert_same(whole_plan(pixels[6:], num_kept=3, first_frame=6), expected[6:])
    assert_same(planner(num_kept=3, two_sided=False).add(pixels), expected)


def watched(count):
    """A still picture but for patch 20, which changes most of what is within noise: what is refreshed if nothing is."""
    pixels = still(count)
    for frame in range(count):
        shift(pixels[frame], 20, 0.01 * (frame % 6))
    return pixels


def test_a_patch_is_lent_from_when_it_is_what_it_will_be(monkeypatch):
    monkeypatch.setattr("everyframe.encoders.planner.LONGEST_GROUP", 6)
    pixels = watched(7)
    shift(pixels[3:], 13, 1.0)  # is in frame 3 what it is in the I-frame 6
    shift(pixels[2], 4, 0.5)  # comes and goes: refreshed in frame 2, and in frame 3 as it will be
    made = whole_plan(pixels)
    assert made.roles == "IPPPPPI"
    assert patches_of(made) == ([[20], [4], [20], [20], [20]], [[], [], [4, 13], [], []])
    made = whole_plan(pixels, "adaptive", tolerance=100.0)
    assert made.roles == "ICPPCCI"  # what is lent needs a frame that looks, which refreshes one patch at least
    assert patches_of(made) == ([[4], [20]], [[], [4, 13]])
    single = planner("adaptive", tolerance=100.0, two_sided=False).add(pixels)
    assert single.roles == "ICPPPCI" and patches_of(single)[0] == [[4], [13], [4]]


def test_what_is_nearer_but_not_the_same_is_lent_and_then_refreshed():
    pixels = watched(7)
    shift(pixels[2:6], 7, 0.8)
    shift(pixels[6], 7, 1.0)
    shift(pixels[2], 9, 2.0)
    made = whole_plan(pixels)
    # Frame 2 has room for 9 only; frame 3 refreshes 7, of which 0.2 are missing, and takes back 9.
    assert patches_of(made) == ([[20], [9], [7], [20], [20]], [[], [7], [9], [], []])
    # With room for two what would be lent is refreshed at once.
    assert patches_of(whole_plan(pixels, num_kept=2))[1] == [[], [], [9], [], []]
    assert patches_of(whole_plan(pixels, num_kept=2))[0][1] == [7, 9]


def test_what_is_as_far_or_farther_is_not_lent():
    pixels = watched(7)
    shift(pixels[2:6], 7, 0.5)
    shift(pixels[6], 7, 1.001)  # 0.501 away
    assert patches_of(whole_plan(pixels)) == ([[20], [7], [20], [20], [20]], [[]] * 5)
    shift(pixels[6], 7, -0.002)  # 0.499 away, but refreshed at once
    shift(pixels[2:6], 8, 1.2)  # unless another comes first
    assert patches_of(whole_plan(pixels))[1] == [[], [7], [], [], []]


def test_noise_is_not_lent():
    level = NOISE**0.5
    for share, lent in ((0.95, []), (1.05, [11])):
        pixels = still(7)
        shift(pixels[1:], 11, share * level)
        shift(pixels[1], 2, 0.9)
        assert patches_of(whole_plan(pixels))[1][0] == lent


def test_a_cut_lends_nothing_that_is_not_there():
    pixels = torch.cat((still(5, 1), still(6, 2)))
    for patch in range(0, 25, 3):
        shift(pixels[2:5], patch, -0.3)
    made = whole_plan(pixels, "cuts", 20)
    assert made.roles == "IPPPPIPPPPP"
    lent = made.lent_by(2).tolist()
    now, before, after = (reference.cells(image, PATCH) for image in (pixels[2], pixels[0], pixels[5]))
    for patch in lent:
        assert reference.squared_change(now[patch], after[patch]) < reference.squared_change(now[patch], before[patch])
    assert not made[5:].is_two_sided


# --- plans -----------------------------------------------------------------------------------------------


@pytest.fixture
def mixed() -> Plan:
    return plan_of("IPCPIICPPI", [[1, 4], [0], [2, 3, 9], [5]], [[7], [], [0, 8], [6]])


def test_a_plan_knows_what_is_lent(mixed):
    assert mixed.lent_counts.tolist() == [0, 1, 0, 0, 0, 0, 0, 2, 1, 0]
    assert mixed.lent.tolist() == [7, 0, 8, 6]
    assert mixed.lent_offsets == [0, 0, 1, 1, 1, 1, 1, 1, 3, 4, 4]
    assert [mixed.lent_by(frame).tolist() for frame in (0, 1, 2, 3, 7, 8, 9)] == [[], [7], [], [], [0, 8], [6], []]
    assert mixed.is_two_sided and not mixed[2:7].is_two_sided
    nothing = Plan.of("IPI", [torch.tensor([1])])
    assert nothing.lent_counts.tolist() == [0, 0, 0] and len(nothing.lent) == 0 and not nothing.is_two_sided


@pytest.mark.parametrize("cut", range(11))
def test_parts_of_a_plan_add_up(mixed, cut):
    first, second = mixed[:cut], mixed[cut:]
    assert_same(first + second, mixed)
    assert_same(mixed[cut : cut + 2] + mixed[cut + 2 :], second)
    assert second.lent.tolist() == [patch for frame in range(cut, 10) for patch in mixed.lent_by(frame).tolist()]
    without = Plan.of("IP", [torch.tensor([3])])
    assert_same((without + mixed)[2:], mixed)
    assert_same((mixed + without)[10:], without)


@pytest.mark.parametrize(
    ("counts", "lent", "message"),
    [
        ([0, 1], [1], "one lent count per frame and as many lent patches, got 2 counts for 3 frames"),
        ([0, 2, 0], [1], "got 3 counts for 3 frames and 1 patches for 2"),
        ([0, 0, 0], [1], "got 3 counts for 3 frames and 1 patches for 0"),
        ([1, 0, 0], [1], r"only P-frames take patches .* got roles 'IPC' with lent counts \[1, 0, 0\]"),
        ([0, 0, 1], [1], r"only P-frames take patches .* got roles 'IPC' with lent counts \[0, 0, 1\]"),
    ],
)
def test_wrong_lent_counts_raise(counts, lent, message):
    with pytest.raises(ValueError, match=message):
        Plan("IPC", torch.tensor([0, 1, 0]), torch.tensor([4]), torch.tensor(counts), torch.tensor(lent))


def test_too_few_or_many_lent_patches_raise():
    for count in (0, 1, 3):
        with pytest.raises(ValueError, match=f"the patches of its 2 P-frames, got {count} tensors"):
            plan_of("IPPI", [[1], [2]], [[3]] * count)


def test_wrong_plans_raise(clip):
    pixels = noise(clip, 4)
    with pytest.raises(ValueError, match="last group takes patches from the I-frame after it, but there are only 4"):
        ReuseEncoder(clip).encode_planned(pixels, plan_of("IPPP", [[1]] * 3, [[], [1], []]))
    for patches, got in (([3, 25], "3 to 25"), ([-1, 4], "-1 to 4")):
        plan = plan_of("IPPI", [[1]] * 2, [patches, [4]])
        with pytest.raises(ValueError, match=f"the plan must lend patches from 0 to 24, those of .*, got {got}"):
            ReuseEncoder(clip).encode_planned(pixels, plan)


def test_two_sided_plans_select_by_change(clip):
    for select in SELECT:
        if select != "change":
            with pytest.raises(ValueError, match=f"two_sided .* selects by change, got select='{select}'"):
                ReuseEncoder(clip, select=select, two_sided=True)


# --- the pipeline ----------------------------------------------------------------------------------------

FPS, FRAMES = 6, 39
ENCODERS = {
    "fixed": lambda model, **more: ReuseEncoder(model, 2, two_sided=True, **more),
    "cuts": lambda model, **more: ReuseEncoder(model, 2, plan="cuts", two_sided=True, **more),
    "adaptive": lambda model, **more: ReuseEncoder(model, plan="adaptive", tolerance=0.3, two_sided=True, **more),
}


@pytest.fixture(scope="module")
def jumps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6.5 s of a square that jumps before frames 2, 5, 8, ...: in groups of 3 the last frame is as the next one."""
    file = tmp_path_factory.mktemp("two sided") / "jumps.mp4"
    rng = np.random.default_rng(0)
    place = np.kron(rng.integers(60, 120, (8, 10, 3)), np.ones((16, 16, 1))).astype(np.uint8)

    def frames():
        for index in range(FRAMES):
            image, (top, left) = place.copy(), divmod((index + 1) // 3 * 5 % 12, 4)
            image[32 * top : 32 * top + 48, 32 * left : 32 * left + 48] = (250, 20, 160)
            yield image

    write_video(file, frames(), fps=FPS, crf=10)
    return file


@pytest.mark.parametrize("name", list(ENCODERS))
def test_features_are_those_of_the_whole_video(clip, jumps, name):
    window = read_window(jumps, clip, fps=FPS, motion=False)
    encoder = ENCODERS[name](clip)
    whole, own = encoder.encode(window.pixels).numpy(), encoder.planner()
    plan = own.add(window.pixels) + own.finish()
    assert plan.is_two_sided
    for size in (2, 8):
        encoder = ENCODERS[name](clip, batch_size=size)
        *chunks, _ = read_chunks(jumps, encoder, Sampling(fps=FPS))
        assert len(chunks) > 1
        first = 0
        for place, chunk in enumerate(chunks):
            frames = slice(first, first + len(chunk.times) + (place + 1 < len(chunks)))
            assert_same(chunk.plan, plan[frames])
            assert torch.equal(chunk.pixels, window.pixels[frames])
            assert chunk.plan.roles[0] == "I" and (chunk.plan.roles[-1] == "I" or chunk is chunks[-1])
            assert len(chunk.times) <= 3 * size or chunk.plan.roles.count("I") == 2
            first += len(chunk.times)
        feats = ef.encode_video(jumps, encoder, fps=FPS)
        np.testing.assert_array_equal(feats.times, window.times)
        np.testing.assert_allclose(feats.embeddings, whole, atol=1e-5)
        assert feats.roles == plan.roles


@pytest.mark.parametrize(
    ("batch_size", "ahead"),
    [
        (64, 0),  # one chunk, one pass
        (8, 1 + 1),  # chunks of 24 and 15 frames; a pass of 8 x 26 tokens holds 5 groups of 26 + 5 + 5
        (2, 6 + 6),  # six chunks of 6 frames and one of 3; every group has a pass
    ],
)
def test_settings_count_the_i_frames_that_are_looked_at(clip, jumps, batch_size, ahead):
    window, encoder = read_window(jumps, clip, fps=FPS, motion=False), ENCODERS["fixed"](clip, batch_size=batch_size)
    plan = encoder.planner().add(window.pixels)
    assert all(plan[first : first + 3].is_two_sided for first in range(0, 36, 3))
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        settings = ef.encode_video(jumps, encoder, fps=FPS).settings
    config = clip.vision.config
    full = sum(frame_macs(config, "all", patches=25, tokens=26).values())
    reduced = sum(frame_macs(config, "all", patches=4, tokens=5, keys=26).values())
    macs = (13 + ahead) * full + 26 * reduced
    assert settings["gflops_per_frame"] * 1e9 * FRAMES == pytest.approx(macs, rel=1e-5)
    assert settings["gflops_share"] == pytest.approx(macs / FRAMES / full, rel=1e-5)
    assert counter.get_total_flops() / 2 == pytest.approx(macs)


def test_settings_say_two_sided_only_where_it_is(clip, jumps, tmp_path):
    for plan in PLANS:
        one, two = (ReuseEncoder(clip, plan=plan, two_sided=two_sided) for two_sided in (False, True))
        assert "two_sided" not in one.settings and two.settings == {**one.settings, "two_sided": True}
        assert (one.looks_ahead, two.looks_ahead) == (False, True)

    def status(two_sided: bool) -> str:
        encoder = ReuseEncoder(clip, two_sided=two_sided)
        return next(encode_videos([(jumps, tmp_path / "x.npz")], encoder, sampling=Sampling(fps=1))).status

    asked = (False, True, True, False)
    assert [status(two_sided) for two_sided in asked] == ["done", "done", "skipped", "done"]


def test_a_recipe_cannot_look_ahead(clip, jumps, tmp_path):
    encoder = ENCODERS["adaptive"](clip)
    with pytest.raises(ValueError, match="a recipe's chunks stand alone and cannot look ahead; use two_sided=False"):
        encode_recipe(jumps, encoder, fps=FPS)
    output = tmp_path / "x.recipe.npz"
    with pytest.raises(ValueError, match="use two_sided=False"):
        encode_videos([(jumps, output)], encoder, sampling=Sampling(fps=FPS), recipe=True)
    assert not output.exists()


def test_two_sides_are_nearer_to_dense_where_something_jumps():
    model = ef.load("bundled", device="cpu")
    rng = np.random.default_rng(0)
    place = np.kron(rng.integers(40, 120, (7, 7, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    frames = np.repeat(place[None], 13, 0)
    for frame, image in enumerate(frames):
        left = 0 if frame < 3 else 48 if frame < 8 else 16
        image[24:80, left : left + 56] = (240, 200, 30)
    pixels = model.preprocess(frames)
    dense = DenseEncoder(model).encode(pixels)
    one, two = (ReuseEncoder(model, 5, two_sided=two_sided).encode(pixels) for two_sided in (False, True))
    after = [3, 4, 5, 8, 9, 10, 11]
    losses = [float((1 - (features * dense).sum(1))[after].mean()) for features in (one, two)]
    assert losses[1] < 0.5 * losses[0] and losses[0] > 1e-3
