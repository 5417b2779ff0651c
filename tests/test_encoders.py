"""The encoders against `reference.residual`, a loop-based ResidualViT on transformers' own modules."""

import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import checkpoints
from everyframe.backbone import load
from everyframe.encoders import DenseEncoder, ResidualTokenizer, ResidualViT
from everyframe.tokens.drop import SELECTIONS
from reference import residual as reference

FAMILIES = {
    "clip": lambda path: checkpoints.clip(path, image_size=40, tokenizer=False),  # 5 x 5 patches, 4 kept
    "clip-gelu": lambda path: checkpoints.clip_vision(path),
    "clip-uneven": lambda path: checkpoints.clip(path, image_size=43, activation="gelu", tokenizer=False),
    "siglip": lambda path: checkpoints.siglip(path, image_size=40),
    "siglip-vision": checkpoints.siglip_vision,
    "siglip2": checkpoints.siglip2,
    "dinov2": checkpoints.dinov2,
    "dinov2-registers": lambda path: checkpoints.dinov2(path, registers=3),
}
# CLS; CLS and three registers; nothing.
PREFIX = {family: 1 if family.startswith(("clip", "dinov2")) else 0 for family in FAMILIES} | {"dinov2-registers": 4}


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


def frames(model, count, seed=0):
    """Preprocessed noise and a motion map with distinct values: [T, 3, S, S], [T, S, S]."""
    generator = torch.Generator().manual_seed(seed)
    side = model.image_size
    return (
        torch.randn(count, 3, side, side, generator=generator),
        torch.rand(count, side, side, generator=generator),
    )


def make_tokenizer(model, seed=0):
    tokenizer = ResidualTokenizer(model.dim, model.vision.config.width)
    generator = torch.Generator().manual_seed(seed)
    for parameter in tokenizer.parameters():
        parameter.data.normal_(std=1.0, generator=generator)
    return tokenizer


def pair(tokenizer):
    return tokenizer.layers[0].weight.detach(), tokenizer.layers[0].bias.detach()


def assert_near(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


# --- the reference ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_tokenizer", [False, True], ids=["free", "tokenizer"])
@pytest.mark.parametrize("interleave", [0, 1, 2, 5])
@pytest.mark.parametrize("select", ["uniform", "center", "motion", "residual"])
def test_residual_vit_equals_the_reference(models, select, interleave, with_tokenizer):
    folder, model = models("clip")
    pixels, motion = frames(model, 10)  # no multiple of 3 or 6
    tokenizer = make_tokenizer(model) if with_tokenizer else None
    encoder = ResidualViT(model, interleave, 0.85, select, tokenizer)
    expected = reference.encode(
        folder,
        pixels,
        interleave=interleave,
        drop=0.85,
        select=select,
        motion=motion,
        tokenizer=pair(tokenizer) if tokenizer else None,
    )
    assert encoder.num_kept == 4
    assert_near(encoder.encode(pixels, motion), expected)


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize(("drop", "select"), [(0.85, "motion"), (0.4, "center"), (0.0, "uniform")])
def test_every_family_equals_the_reference(models, family, drop, select):
    folder, model = models(family)
    pixels, motion = frames(model, 5, seed=1)
    tokenizer = make_tokenizer(model, seed=1)
    encoder = ResidualViT(model, 2, drop, select, tokenizer)
    options = {"interleave": 2, "drop": drop, "select": select, "motion": motion, "tokenizer": pair(tokenizer)}
    assert_near(encoder.encode(pixels, motion), reference.encode(folder, pixels, **options))


@pytest.mark.parametrize("family", list(FAMILIES))
def test_sequence_is_prefix_then_residual_token_then_kept_patches(models, family, monkeypatch):
    _, model = models(family)
    vision = model.vision
    pixels, motion = frames(model, 2)
    tokenizer = make_tokenizer(model)
    encoder = ResidualViT(model, 1, 0.7, "motion", tokenizer)
    sequences = []
    pre = vision.pre
    monkeypatch.setattr(vision, "pre", lambda tokens: sequences.append(tokens) or pre(tokens))
    features = encoder.encode(pixels, motion)
    intra, reduced = sequences
    prefix = PREFIX[family]
    assert intra.shape[1] == prefix + vision.num_patches
    assert reduced.shape[1] == prefix + 1 + encoder.num_kept
    kept = encoder.kept_indices(pixels, motion, torch.tensor([1]))[0]
    everything = vision.embed(vision.patchify(pixels[1:]))[0]
    assert torch.equal(reduced[0, :prefix], vision.prefix_tokens)
    assert_near(reduced[0, prefix], tokenizer.layers[0].weight @ features[0] + tokenizer.layers[0].bias)
    assert_near(reduced[0, prefix + 1 :], everything[kept])
    assert_near(features.norm(dim=1), torch.ones(2), atol=1e-6)


# --- identities ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", list(FAMILIES))
def test_keeping_everything_without_a_token_is_the_dense_encoder(models, family):
    _, model = models(family)
    pixels, _ = frames(model, 4)
    dense = DenseEncoder(model).encode(pixels)
    assert_near(dense.norm(dim=1), torch.ones(4), atol=1e-6)
    for select in SELECTIONS:
        assert_near(ResidualViT(model, 2, 0.0, select, None).encode(pixels), dense)


def test_interleave_0_is_the_dense_encoder(clip):
    pixels, _ = frames(clip, 5)
    encoder = ResidualViT(clip, 0, 0.85, "random", make_tokenizer(clip))
    assert torch.equal(encoder.encode(pixels), DenseEncoder(clip).encode(pixels))


def test_i_frames_are_the_dense_encoders(clip):
    pixels, _ = frames(clip, 8)
    reduced = ResidualViT(clip, 2, 0.85, "center", make_tokenizer(clip)).encode(pixels)
    dense = DenseEncoder(clip).encode(pixels)
    assert_near(reduced[[0, 3, 6]], dense[[0, 3, 6]], atol=1e-6)
    for frame in (1, 2, 4, 5, 7):
        assert float((reduced[frame] - dense[frame]).abs().max()) > 1e-3


@pytest.mark.parametrize("select", SELECTIONS)
def test_results_do_not_depend_on_batch_size(clip, select):
    pixels, motion = frames(clip, 23)
    tokenizer = make_tokenizer(clip)
    whole = ResidualViT(clip, 2, 0.85, select, tokenizer, batch_size=64).encode(pixels, motion)
    for batch_size in (1, 3):
        small = ResidualViT(clip, 2, 0.85, select, tokenizer, batch_size=batch_size)
        assert_near(small.encode(pixels, motion), whole)
    assert_near(DenseEncoder(clip, batch_size=2).encode(pixels), DenseEncoder(clip, batch_size=64).encode(pixels))


@pytest.mark.parametrize("with_motion", [True, False], ids=["motion", "no motion"])
@pytest.mark.parametrize("select", SELECTIONS)
def test_encoding_in_chunks_is_encoding_the_whole(clip, select, with_motion):
    pixels, motion = frames(clip, 12)
    if not with_motion:
        motion = None
    elif select == "motion":
        motion[:, 8:] = 0  # ties, to be broken alike
    encoder = ResidualViT(clip, 2, 0.85, select, make_tokenizer(clip), seed=3)
    whole = encoder.encode(pixels, motion)
    for start, end in ((0, 6), (6, 12), (3, 9)):
        part = encoder.encode(pixels[start:end], None if motion is None else motion[start:end], first_frame=start)
        assert_near(part, whole[start:end])


@pytest.mark.parametrize("select", ["motion", "random"])
def test_encode_p_gives_the_p_frames_of_encode(clip, select):
    pixels, motion = frames(clip, 8)
    encoder = ResidualViT(clip, 2, 0.6, select, make_tokenizer(clip), batch_size=1)
    whole = encoder.encode(pixels, motion, first_frame=3)
    rows = torch.tensor([1, 4, 5, 7])
    own = encoder.encode_p(pixels, motion, rows, whole[rows // 3 * 3], first_frame=3)
    assert_near(own, whole[rows])
    assert encoder.encode_p(pixels, motion, rows[:0], whole[:0]).shape == (0, clip.dim)


@pytest.mark.parametrize("select", ["random", "motion"])
def test_seed_and_frame_number_decide_random_choices(clip, select):
    pixels, _ = frames(clip, 3)
    still = torch.zeros(3, clip.image_size, clip.image_size)
    encode = ResidualViT(clip, 2, 0.85, select, None, seed=1).encode
    assert torch.equal(encode(pixels, still), encode(pixels, still))
    rows = torch.tensor([1, 2])
    choices = [
        ResidualViT(clip, 2, 0.85, select, None, seed=seed).kept_indices(pixels, still, rows, first_frame)
        for seed, first_frame in ((1, 0), (2, 0), (1, 3), (1, 3000))
    ]
    distinct = {tuple(row) for choice in choices for row in choice.tolist()}
    assert len(distinct) == 8


def test_a_group_does_not_see_the_others(clip):
    pixels, motion = frames(clip, 9)
    encoder = ResidualViT(clip, 2, 0.85, "residual", make_tokenizer(clip))
    before = encoder.encode(pixels, motion)
    order = [2, 0, 1, 3, 4, 5, 8, 7, 6]
    after = encoder.encode(pixels[order], motion[order])
    assert_near(after[3:6], before[3:6], atol=1e-6)
    assert float((after[[1, 2, 7]] - before[[1, 2, 7]]).abs().max()) > 1e-3


@pytest.mark.parametrize("family", ["clip", "siglip", "siglip2", "dinov2-registers"])
def test_pixels_of_dropped_patches_do_not_matter(models, family):
    _, model = models(family)
    pixels, motion = frames(model, 3)
    encoder = ResidualViT(model, 2, 0.6, "motion", make_tokenizer(model))
    before = encoder.encode(pixels, motion)
    kept = set(encoder.kept_indices(pixels, motion, torch.tensor([2]))[0].tolist())
    grid, side = model.vision.grid, model.vision.config.patch_size
    for patch in range(grid * grid):
        top, left = patch // grid * side, patch % grid * side
        changed = pixels.clone()
        changed[2, :, top : top + side, left : left + side] += 3.0
        after = encoder.encode(changed, motion)
        assert torch.equal(after[2], before[2]) == (patch not in kept)
        assert torch.equal(after[:2], before[:2])


def test_a_p_frame_depends_on_its_i_frame_through_the_residual_token_alone(clip):
    pixels, motion = frames(clip, 3)
    other = pixels.clone()
    other[0] = -other[0]
    free = ResidualViT(clip, 2, 0.85, "motion", None)
    assert torch.equal(free.encode(other, motion)[1:], free.encode(pixels, motion)[1:])
    told = ResidualViT(clip, 2, 0.85, "motion", make_tokenizer(clip))
    assert float((told.encode(other, motion)[1:] - told.encode(pixels, motion)[1:]).abs().amax(1).min()) > 1e-3


def test_motion_selects_the_moving_patches(clip):
    pixels, _ = frames(clip, 3)
    motion = torch.zeros(3, 40, 40)
    motion[1, 8:24, 16:32] = 1.0  # patches (1, 2), (1, 3), (2, 2), (2, 3) of 5 x 5
    motion[2, 39, 39] = 0.5  # the last patch; ties fill the rest
    kept = ResidualViT(clip, 2, 0.85, "motion", None).kept_indices(pixels, motion, torch.tensor([1, 2]))
    assert kept[0].tolist() == [7, 8, 12, 13]
    assert kept[1, -1] == 24


def test_without_motion_maps_the_frame_residual_takes_their_place(clip):
    pixels, _ = frames(clip, 6)
    motion = ResidualViT(clip, 2, 0.85, "motion", None)
    residual = ResidualViT(clip, 2, 0.85, "residual", None)
    assert torch.equal(motion.encode(pixels), residual.encode(pixels))
    zeros = torch.zeros(6, 40, 40)
    assert torch.equal(residual.encode(pixels, zeros), residual.encode(pixels))  # "residual" ignores maps
    assert not torch.equal(motion.encode(pixels, zeros), motion.encode(pixels))


# --- precision, devices, empty input ---------------------------------------------------------------------


@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2"])
def test_bfloat16_is_near_float32(models, family):
    folder, model = models(family)
    half = load(folder, device="cpu", dtype="bfloat16")
    pixels, motion = frames(model, 7)
    for encoders in (
        [ResidualViT(each, 2, 0.85, "motion", make_tokenizer(model)) for each in (model, half)],
        [DenseEncoder(each) for each in (model, half)],
    ):
        exact, rough = (encoder.encode(pixels, motion) for encoder in encoders)
        assert rough.dtype == torch.float32
        assert not torch.equal(rough, exact)
        assert float((exact * rough).sum(1).min()) > 0.995
    assert encoders[1].encode(pixels.bfloat16()).shape == exact.shape


@pytest.mark.parametrize("select", SELECTIONS)
def test_no_frames_give_no_features(clip, select):
    pixels, motion = frames(clip, 0)
    for encoder in (ResidualViT(clip, 2, 0.85, select, None), DenseEncoder(clip)):
        assert encoder.encode(pixels, motion).shape == (0, 24)
        assert encoder.roles(0) == ""


# --- roles and settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interleave", "num_frames", "expected"),
    [(0, 4, "IIII"), (1, 5, "IPIPI"), (2, 7, "IPPIPPI"), (5, 3, "IPP"), (2, 3, "IPP")],
)
def test_roles(clip, interleave, num_frames, expected):
    encoder = ResidualViT(clip, interleave, residual=None)
    assert encoder.roles(num_frames) == expected
    assert encoder.group_size == interleave + 1
    assert DenseEncoder(clip).roles(num_frames) == "I" * num_frames


def test_roles_of_a_negative_count_raise(clip):
    with pytest.raises(ValueError, match="num_frames must be 0 or more, got -1"):
        DenseEncoder(clip).roles(-1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"interleave": 0}, False),
        ({"drop": 0}, False),
        *[({"select": select}, False) for select in SELECTIONS if select != "motion"],
    ],
)
def test_motion_is_needed_only_where_it_decides(clip, options, expected):
    assert ResidualViT(clip, **options, residual=None).needs_motion is expected
    assert DenseEncoder(clip).needs_motion is False


def test_settings_name_what_decides_the_features(clip, tmp_path):
    assert DenseEncoder(clip).settings == {"encoder": "dense"}
    encoder = ResidualViT(clip, 3, 0.5, "center", None, seed=4, batch_size=7)
    assert encoder.settings == {
        "encoder": "residual",
        "interleave": 3,
        "drop": 0.5,
        "select": "center",
        "residual": None,
        "seed": 4,
    }
    one, other = make_tokenizer(clip, 1), make_tokenizer(clip, 2)
    names = {ResidualViT(clip, residual=tokenizer).settings["residual"] for tokenizer in (one, other)}
    assert len(names) == 2  # or features of one tokenizer would pass for those of another
    one.save(tmp_path / "one.safetensors")
    name = ResidualViT(clip, residual=tmp_path / "one.safetensors").settings["residual"]
    assert name == f"one.safetensors:{one.fingerprint}"
    assert ResidualViT(clip, residual=one).settings["residual"] == f"given:{one.fingerprint}"


# --- the residual tokenizer ------------------------------------------------------------------------------


def test_tokenizer_survives_a_file(clip, tmp_path):
    tokenizer = make_tokenizer(clip)
    file = tmp_path / "tokenizer.safetensors"
    tokenizer.save(file)
    stored = load_file(file)
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == {"weight": (32, 24), "bias": (32,)}
    again = ResidualTokenizer.load(file, clip)
    pixels, motion = frames(clip, 4)
    given = ResidualViT(clip, residual=tokenizer).encode(pixels, motion)
    for residual in (again, file, str(file)):
        assert torch.equal(ResidualViT(clip, residual=residual).encode(pixels, motion), given)
    assert not torch.allclose(ResidualViT(clip, residual=None).encode(pixels, motion), given, atol=1e-3)


def test_tokenizer_file_in_half_precision_is_read(clip, tmp_path):
    weight, bias = pair(make_tokenizer(clip))
    save_file({"weight": weight.half(), "bias": bias.half()}, tmp_path / "half.safetensors")
    tokenizer = ResidualTokenizer.load(tmp_path / "half.safetensors", clip)
    assert tokenizer.layers[0].weight.dtype == torch.float32
    assert torch.equal(tokenizer.layers[0].weight, weight.half().float())


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, "residual tokenizer .*tokenizer.safetensors does not exist"),
        (b"not safetensors at all", ValueError, "tokenizer.safetensors is not a readable safetensors file"),
        (
            {"weight": (32, 23), "bias": (32,)},
            ValueError,
            r"does not fit .* it holds .*\(32, 23\).* needed .*\(32, 24\)",
        ),
        ({"weight": (24, 32), "bias": (24,)}, ValueError, "does not fit"),
        ({"weight": (32, 24)}, ValueError, "does not fit"),
        ({"weight": (32, 24), "bias": (32,), "extra": (1,)}, ValueError, "is not a residual tokenizer: it holds"),
    ],
)
def test_bad_tokenizer_files_raise(clip, tmp_path, content, error, message):
    file = tmp_path / "tokenizer.safetensors"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        save_file({name: torch.zeros(shape) for name, shape in content.items()}, file)
    with pytest.raises(error, match=message):
        ResidualViT(clip, residual=file)


def test_tokenizer_of_another_model_raises(clip):
    with pytest.raises(ValueError, match=r"weight is \[32, 23\], .* needs \[32, 24\]"):
        ResidualViT(clip, residual=ResidualTokenizer(23, 32))


def test_auto_without_a_file_warns_and_goes_without(models):
    folder, model = models("clip")
    with pytest.warns(UserWarning, match=f"no residual tokenizer comes with {folder}.*residual=None"):
        encoder = ResidualViT(model)
    assert encoder.tokenizer is None
    assert encoder.settings["residual"] is None


def test_auto_finds_the_file_beside_the_weights(tmp_path):
    model = load(checkpoints.clip_vision(tmp_path), device="cpu")
    tokenizer = make_tokenizer(model)
    tokenizer.save(tmp_path / "residual_tokenizer.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder = ResidualViT(model, residual="auto")
    pixels, motion = frames(model, 3)
    assert torch.equal(encoder.encode(pixels, motion), ResidualViT(model, residual=tokenizer).encode(pixels, motion))


@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2"])
def test_gradients_reach_the_tokenizer_and_nothing_else(models, family):
    _, model = models(family)
    pixels, motion = frames(model, 3)
    tokenizer = make_tokenizer(model)
    encoder = ResidualViT(model, 2, 0.85, "motion", tokenizer)
    rows = torch.tensor([1, 2])
    source = DenseEncoder(model).encode(pixels[:1]).expand(2, -1)
    target = DenseEncoder(model).encode(pixels[1:])
    indices = encoder.kept_indices(pixels, motion, rows)

    def loss() -> Tensor:
        return ((encoder.p_features(pixels[rows], source, indices) - target) ** 2).sum()

    loss().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    bias, weight = tokenizer.layers[0].bias, tokenizer.layers[0].weight
    assert float(weight.grad.abs().max()) > 1e-4
    for parameter, place in ((bias, (5,)), (bias, (17,)), (weight, (3, 7))):
        step, slopes = 1e-2, []
        for sign in (1, -1):
            with torch.no_grad():
                parameter[place] += sign * step
                slopes.append(sign * float(loss()))
                parameter[place] -= sign * step
        assert sum(slopes) / (2 * step) == pytest.approx(float(parameter.grad[place]), rel=0.05, abs=2e-4)
    assert not encoder.encode(pixels, motion).requires_grad


# --- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"drop": 1.0}, ValueError, r"drop must be in \[0, 1\), got 1.0; to keep every token use 0"),
        ({"drop": -0.1}, ValueError, r"drop must be in \[0, 1\)"),
        ({"drop": float("nan")}, ValueError, r"drop must be in \[0, 1\), got nan"),
        ({"interleave": -1}, ValueError, "interleave must be 0 or more P-frames per I-frame, got -1"),
        ({"interleave": True}, TypeError, "interleave must be an int, got True"),
        ({"interleave": 2.0}, TypeError, r"interleave must be an int, got 2\.0"),
        ({"select": "flow"}, ValueError, "motion, center, uniform, random, residual, got 'flow'"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
    ],
)
def test_wrong_options_raise(clip, options, error, message):
    with pytest.raises(error, match=message):
        ResidualViT(clip, **{"residual": None, **options})


def test_dense_batch_size_of_0_raises(clip):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        DenseEncoder(clip, batch_size=0)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((4, 3, 32, 32), torch.float32, r"pixels must be \[T, 3, 40, 40\] .* got \[4, 3, 32, 32\]; model.preprocess"),
        ((3, 40, 40), torch.float32, r"got \[3, 40, 40\]"),
        ((4, 40, 40, 3), torch.float32, r"got \[4, 40, 40, 3\]"),
        ((4, 3, 40, 40), torch.uint8, r"floating point, got torch.uint8; use model.preprocess\(frames\)"),
    ],
)
def test_wrong_pixels_raise(clip, shape, dtype, message):
    for encoder in (ResidualViT(clip, residual=None), DenseEncoder(clip)):
        with pytest.raises(ValueError, match=message):
            encoder.encode(torch.zeros(shape, dtype=dtype))


@pytest.mark.parametrize("shape", [(3, 40, 40), (4, 40, 39), (4, 1, 40, 40), (40, 40)])
def test_wrong_motion_raises(clip, shape):
    pixels, _ = frames(clip, 4)
    with pytest.raises(ValueError, match=r"motion must be \[4, 40, 40\], one map per frame, got \["):
        ResidualViT(clip, residual=None).encode(pixels, torch.zeros(shape))


def test_first_frame_inside_a_group_raises(clip):
    pixels, motion = frames(clip, 4)
    with pytest.raises(ValueError, match="first_frame must be a multiple of 3, got 4"):
        ResidualViT(clip, 2, residual=None).encode(pixels, motion, first_frame=4)
