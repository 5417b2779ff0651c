"""Pictures of tokens against colours and masses found patch by patch; encode and plan with token merging."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import checkpoints
import everyframe as ef
import video_checkpoints
from everyframe.backbone import skeleton, video_skeleton
from everyframe.cli import app
from everyframe.cli.encoder import parse_reduce
from everyframe.encoders import Plan
from everyframe.pipeline import read_window
from everyframe.token_pictures import draw_tokens, usual_clips, usual_schedule
from everyframe.token_pictures import patches as arithmetic
from everyframe.token_pictures.figure import compose, lay_out
from everyframe.training.adapters import Tuning
from everyframe.training.export import save_tempme
from everyframe.video import sample_clip, second_frames, write_video

COLOURS = np.array([[200, 40, 40], [40, 180, 60], [50, 70, 210], [230, 200, 60]], np.uint8)


@pytest.fixture(scope="module")
def model() -> ef.Model:
    return ef.load("bundled", device="cpu")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of four quarters of one colour each, in which a white square moves to the right."""
    frames = []
    for number in range(12):
        quarters = COLOURS.reshape(2, 2, 3).repeat(64, axis=0).repeat(64, axis=1).copy()
        quarters[24:40, 8 + 8 * number : 24 + 8 * number] = 255
        frames.append(quarters)
    file = tmp_path_factory.mktemp("clip") / "quarters.mp4"
    write_video(file, frames, fps=6, crf=0, pixel_format="yuv444p")
    return file


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("clip") / "still.mp4"
    quarters = COLOURS.reshape(2, 2, 3).repeat(64, axis=0).repeat(64, axis=1)
    write_video(file, [quarters] * 12, fps=6, crf=0, pixel_format="yuv444p")
    return file


@pytest.fixture(scope="module")
def videomae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 frames, 2 to a token, 4 x 4 patches."""
    return video_checkpoints.videomae(tmp_path_factory.mktemp("videomae"))


def run(*arguments: object) -> str:
    """Standard output; an error of the user's is raised, as `main` gets it."""
    result = CliRunner().invoke(app, [str(word) for word in arguments])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def show(video: Path, out: Path, *options: object) -> tuple[dict, np.ndarray]:
    facts = json.loads(run("show-tokens", video, "--out", out, "--json", *options))
    (file,) = facts["files"]
    return facts, np.asarray(Image.open(file).convert("RGB"))


def patch_centre(picture: np.ndarray, frame: int, row: int, y: int, x: int, *, count: int, rows: int, grid: int):
    """The colour in the middle of a patch of a figure."""
    size = round(196 / grid)
    top, left = lay_out(count, rows, grid * size).corner(frame, row)
    return picture[top + y * size + size // 2, left + x * size + size // 2].astype(int)


# --- arithmetic ------------------------------------------------------------------------------------------


def test_owners_of_patches_by_hand() -> None:
    """Two frames, a CLS token and 2 x 2 patches each; three tokens of each are left."""
    sources = torch.tensor([[0, 1, 2, 1, -1], [0, 2, 2, 2, 1]])
    owners = arithmetic.patch_owners(sources, 3, grid=2, prefix=1)
    assert owners.tolist() == [[[1, 2], [1, -1]], [[5, 5], [5, 4]]]
    # One sequence over two steps in time, as a video transformer has it.
    clip = arithmetic.patch_owners(torch.tensor([[0, 1, 2, 1, 0, 3, 2, 2]]), 4, grid=2, prefix=0)
    assert clip.tolist() == [[[0, 1], [2, 1]], [[0, 3], [2, 2]]]
    # The same, frame by frame, each with a token in front.
    frames = arithmetic.patch_owners(torch.tensor([[9, 0, 1, 2, 1, 9, 0, 3, 2, 2]]), 10, grid=2, prefix=1)
    assert frames.tolist() == clip.tolist()


def test_colours_masses_and_sizes_by_hand() -> None:
    owners = np.array([[[0, 1], [0, -1]], [[0, 3], [1, 1]]])
    means = np.array([[[30, 0, 9], [10, 10, 10]], [[60, 3, 9], [1, 1, 1]]])
    means = np.stack([means, means + np.array([90, 0, 0])])
    colours = arithmetic.token_colours(means, owners)
    zero, one = [(30 + 60 + 120) / 3, 1, 9], [(10 + 150 + 91) / 3, (10 + 3 + 1) / 3, (10 + 9 + 1) / 3]
    expected = [[[zero, one], [zero, [255] * 3]], [[zero, [100, 10, 10]], [one, one]]]
    np.testing.assert_allclose(colours, expected, rtol=1e-12)
    assert arithmetic.patches_per_token(owners).tolist() == [[[3, 3], [3, 0]], [[3, 1], [3, 3]]]
    masses = np.array([1.5, 3.0, 7.0, 1.0])
    assert arithmetic.mass_per_patch(owners, masses).tolist() == [[[0.5, 1], [0.5, 0]], [[0.5, 1], [1, 1]]]


def test_mean_colours_of_patches_and_tubes() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 7, 7, 3), np.uint8)
    means = arithmetic.patch_means(frames, 2, 3, tubelet=2)
    assert means.shape == (2, 2, 2, 3)
    np.testing.assert_allclose(means[1, 0, 1], frames[2:4, 0:3, 3:6].mean(axis=(0, 1, 2)))


def test_what_a_plan_computes() -> None:
    plan = Plan.of("IPC", [torch.tensor([1, 2])])
    assert arithmetic.computed_patches(plan, 2).tolist() == [
        [[True] * 2] * 2,
        [[False, True], [True, False]],
        [[False] * 2] * 2,
    ]


def test_lines_lie_between_patches_of_different_tokens() -> None:
    size = arithmetic.cell_size(2)
    colours = np.full((1, 2, 2, 3), 200.0)
    colours[0, 1] = 10
    picture = arithmetic.draw_merged(colours, np.array([[[0, 0], [1, 2]]]))
    assert picture.shape == (1, 2 * size, 2 * size, 3)
    expected = np.full((2 * size, 2 * size), 200)
    expected[size:] = 10
    line = np.zeros((2 * size, 2 * size), bool)
    line[size] = True  # the first row below
    line[size:, size] = True  # between 1 and 2 alone
    assert (picture[0][~line] == expected[~line][:, None]).all()
    assert (picture[0][line] == arithmetic._LIGHT).all()
    light = arithmetic.draw_merged(colours + 40, np.array([[[0, 3], [1, 2]]]))[0]
    assert (light[:size, size] == arithmetic._DARK).all()


def test_heat_is_viridis() -> None:
    import matplotlib

    values = np.linspace(0, 1, 101)
    found = arithmetic.heat_colours(values)
    np.testing.assert_allclose(found, 255 * matplotlib.colormaps["viridis"](values)[:, :3], atol=5)
    assert (np.diff(found @ [0.2126, 0.7152, 0.0722]) > 0).all()
    frames = np.full((1, 196, 196, 3), 100, np.uint8)
    drawn = arithmetic.draw_heat(frames, np.array([[[0.0, 1.0]] * 2]))
    np.testing.assert_allclose(drawn[0, 5, 5], 0.72 * np.array([0x44, 0x01, 0x54]) + 28, atol=0.5)
    np.testing.assert_allclose(drawn[0, 5, -5], 0.72 * np.array([0xFD, 0xE7, 0x25]) + 28, atol=0.5)


@pytest.mark.parametrize(
    ("count", "columns", "bands"), [(1, 1, 1), (6, 6, 1), (7, 4, 2), (12, 6, 2), (13, 5, 3), (16, 6, 3), (32, 6, 6)]
)
def test_pictures_have_places_of_their_own(count: int, columns: int, bands: int) -> None:
    layout = lay_out(count, 3, 20)
    assert (layout.columns, layout.bands) == (columns, bands)
    rows = [np.full((count, 20, 20, 3), row, np.uint8) for row in range(3)]
    canvas = compose(rows, layout)
    assert canvas.shape == (*layout.size, 3)
    for row in range(3):
        assert (canvas == row).all(axis=2).sum() == count * 400  # none is covered or cut
    assert [layout.corner(frame, 0)[0] for frame in range(count)] == sorted(
        layout.corner(f, 0)[0] for f in range(count)
    )


def test_the_usual_schedule_merges_half(model: ef.Model) -> None:
    assert usual_schedule("vidtldr", model) == usual_schedule("tome", model) == [24] * 4
    base = video_skeleton("umt-b")  # 2,352 patches, 12 blocks
    assert (usual_schedule("vidtldr", base), usual_schedule("tome", base)) == ([294] * 4, [98] * 12)


# --- from the command line -------------------------------------------------------------------------------


def expected_merging(encoder, pixels, seen, tubelet=1, frame_tokens=None):
    """Mean colours, masses per patch and sizes, token by token: lists of [g, g] per step in time."""
    found = encoder.tokens(pixels)
    grid, size = encoder.model.vision.grid, encoder.model.vision.config.patch_size
    prefix = encoder.model.vision.num_prefix
    members: dict = {}
    for row, sources in enumerate(found.sources.tolist()):
        for place, token in enumerate(sources):
            step, patch = divmod(place, prefix + grid * grid)
            if patch >= prefix:
                step += row * (len(sources) // (prefix + grid * grid))
                members.setdefault((row, token), []).append((step, *divmod(patch - prefix, grid)))
    steps = len(seen) // tubelet
    colours, mass, sizes = (
        np.zeros((steps, grid, grid, 3)),
        np.zeros((steps, grid, grid)),
        np.zeros((steps, grid, grid)),
    )
    for (row, token), places in members.items():
        pixels_of = [
            seen[step * tubelet : (step + 1) * tubelet, y * size : (y + 1) * size, x * size : (x + 1) * size]
            for step, y, x in places
        ]
        for place in places:
            colours[place] = np.stack(pixels_of).reshape(-1, 3).mean(axis=0)
            mass[place] = float(found.masses[row, token]) / len(places)
            sizes[place] = len(places)
    return colours, mass, sizes


def as_bytes(model, pixels: torch.Tensor) -> np.ndarray:
    settings = model.preprocess_settings
    mean, std = (torch.tensor(settings[name]).view(3, 1, 1) for name in ("mean", "std"))
    return ((pixels * std + mean) / settings["rescale"]).round().byte().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("kind", ["vidtldr", "tome"])
def test_merging_of_an_image_model_is_drawn(model: ef.Model, video: Path, tmp_path: Path, kind: str) -> None:
    facts, picture = show(video, tmp_path, "--model", "bundled", "--encoder", kind, "--fps", 2)
    assert facts["files"] == [str(tmp_path / f"quarters-{kind}.png")]
    assert (facts["tokens_before"], facts["tokens_after"], facts["tokens_per"]) == (196, 100, "frame")
    assert facts["settings"] == {"encoder": kind, "reduce": [24] * 4}
    np.testing.assert_allclose(facts["times"], [0, 0.5, 1, 1.5])
    window = read_window(video, model, fps=2)
    seen = as_bytes(model, window.pixels)
    make = {"vidtldr": ef.VidTLDR, "tome": ef.ToMe}[kind]
    colours, mass, sizes = expected_merging(make(model, [24] * 4), window.pixels, seen)
    assert facts["largest_token"] == sizes.max() > 4
    assert (mass == 1).all() == (kind == "tome")  # in ToMe nothing is lost
    heat = mass if kind == "vidtldr" else np.log(sizes) / np.log(sizes.max())
    where = {"count": 4, "rows": 3, "grid": 14}
    flat = 0
    for frame in range(4):
        for y, x in np.ndindex(14, 14):
            np.testing.assert_allclose(patch_centre(picture, frame, 1, y, x, **where), colours[frame, y, x], atol=1)
            cell = seen[frame, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
            if (cell == cell[0, 0]).all():  # elsewhere the grey below depends on how frames are enlarged
                flat += 1
                tinted = 0.72 * arithmetic.heat_colours(heat[frame, y, x]) + 0.28 * cell.mean()
                np.testing.assert_allclose(patch_centre(picture, frame, 2, y, x, **where), tinted, atol=1.5)
        for quarter, (y, x) in enumerate([(1, 1), (1, 12), (12, 1), (12, 12)]):
            np.testing.assert_allclose(patch_centre(picture, frame, 0, y, x, **where), COLOURS[quarter], atol=4)
    assert flat > 400


TEMPME = {"r": 4, "clips": {1: 2, 2: 2, 3: 2}, "remove_cross": 30, "remove_intra": 10}
TEMPME_WORDS = [
    "--encoder",
    "tempme",
    "--r",
    "4",
    "--clips",
    "1:2,2:2,3:2",
    "--remove-cross",
    "30",
    "--remove-intra",
    "10",
]


def of_several(sources: list[int], grid: int, prefix: int = 1) -> tuple[dict[int, list], dict[int, int]]:
    """Patches (frame, y, x) of each token and how many frames they are in, token by token."""
    members: dict[int, list] = {}
    for place, token in enumerate(sources):
        frame, patch = divmod(place, prefix + grid * grid)
        if patch >= prefix:
            members.setdefault(token, []).append((frame, *divmod(patch - prefix, grid)))
    return members, {token: len({frame for frame, _, _ in places}) for token, places in members.items()}


def test_merging_across_frames_is_drawn(model: ef.Model, video: Path, tmp_path: Path) -> None:
    facts, picture = show(video, tmp_path, "--model", "bundled", *TEMPME_WORDS)
    assert facts["files"] == [str(tmp_path / "quarters-tempme.png")]
    clip = sample_clip(video, 8, choose=lambda n, count: second_frames(n, count, fps=6))
    assert facts["times"] == clip.times.tolist() and facts["frames"] == 8
    pixels = model.preprocess(clip.frames)
    encoder = ef.TempMe(model, **TEMPME)
    assert facts["settings"] == encoder.settings
    found = encoder.tokens(pixels[None])
    members, spans = of_several(found.sources[0].tolist(), 14)
    assert facts["tokens_before"] == 8 * 196 and facts["tokens_per"] == "video"
    assert facts["tokens_after"] == len(members) == found.tokens.shape[1] - 8  # all but the CLS token of each frame
    assert facts["tokens_after"] == encoder.counts(8)[-1].after - 8
    assert facts["tokens_of_several_frames"] == sum(span > 1 for span in spans.values()) > 50
    assert facts["most_frames_of_a_token"] == max(spans.values()) > 2
    assert facts["largest_token"] == max(map(len, members.values()))
    seen = as_bytes(model, pixels)
    where = {"count": 8, "rows": 3, "grid": 14}
    for token, places in members.items():
        cells = [seen[frame, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8] for frame, y, x in places]
        colour = np.stack(cells).reshape(-1, 3).mean(axis=0)
        heat = 0.72 * arithmetic.heat_colours((spans[token] - 1) / 7)
        for cell, (frame, y, x) in zip(cells, places, strict=True):
            np.testing.assert_allclose(patch_centre(picture, frame, 1, y, x, **where), colour, atol=1)
            if (cell == cell[0, 0]).all():
                tinted = heat + 0.28 * cell.mean()
                np.testing.assert_allclose(patch_centre(picture, frame, 2, y, x, **where), tinted, atol=1.5)


def test_frames_per_token_by_hand() -> None:
    owners = np.array([[[0, 1], [0, -1]], [[0, 3], [1, 4]], [[0, 3], [5, 5]]])
    assert arithmetic.frames_per_token(owners).tolist() == [[[3, 2], [3, 0]], [[3, 2], [2, 1]], [[3, 2], [1, 1]]]


def test_lines_around_tokens_of_several_frames() -> None:
    """One token of both frames, in a line of one colour; all else as without it."""
    owners = np.array([[[0, 0], [1, 2]], [[3, 0], [3, 0]]])
    colours = np.full((2, 2, 2, 3), 120.0)
    plain, joined = arithmetic.draw_merged(colours, owners), arithmetic.draw_joined(colours, owners)
    size, changed = arithmetic.cell_size(2), (plain != joined).any(axis=3)
    inside = np.zeros_like(changed)
    for frame, region in ((0, np.s_[:size, :]), (1, np.s_[:, size:])):
        part = np.zeros(changed.shape[1:], bool)
        part[region] = True
        inside[frame] = part
        core = part.copy()
        rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
        core[[*rows[:2], *rows[-2:]]] = False
        core[:, [*columns[:2], *columns[-2:]]] = False
        assert (joined[frame][part & ~core] == arithmetic._OUTLINES[0]).all()
        np.testing.assert_array_equal(joined[frame][core], plain[frame][core])
    assert not (changed & ~inside).any()
    # As many lines as there are colours for, around the largest.
    many = np.arange(16).reshape(1, 4, 4).repeat(2, axis=0)
    many[0, 3, 3] = 14
    drawn = arithmetic.draw_joined(np.full((2, 4, 4, 3), 120.0), many)
    for colour in arithmetic._OUTLINES:
        assert (drawn == colour).all(axis=3).any()
    corner = 3 * arithmetic.cell_size(4)
    assert (drawn[:, -1, corner - 1] == arithmetic._OUTLINES[0]).all()  # 14, the largest


def test_tempme_without_a_schedule_merges_as_published(model: ef.Model) -> None:
    for size, preset in (("ViT-B/32", "msrvtt-b32"), ("ViT-B/16", "msrvtt-b16")):
        assert usual_clips(skeleton(size)) == ef.TempMe.preset(preset)
    assert usual_clips(model) == {"r": 10, "clips": {1: 2, 2: 2, 3: 3}, "remove_cross": 40, "remove_intra": 20}
    shallow = usual_clips(skeleton("ViT-L/14"))
    assert list(shallow["clips"]) == [16, 17, 18] and shallow["r"] == 6


@pytest.mark.parametrize("family", ["siglip", "umt"])
def test_tempme_of_models_without_cls_is_drawn(video: Path, tmp_path: Path, family: str) -> None:
    if family == "siglip":
        loaded = ef.load(checkpoints.siglip(tmp_path / "siglip"), device="cpu")
        clip = sample_clip(video, 4, choose=lambda n, count: second_frames(n, count, fps=6))
    else:
        file = video_checkpoints.umt(tmp_path / "umt.pth", "vision")
        loaded = ef.load_video(file, heads=4, frames=4, image_size=32, device="cpu")
        clip = sample_clip(video, 4)
    encoder = ef.TempMe(loaded, r=1, clips={1: 4}, remove_cross=30, remove_intra=20)
    drawn = draw_tokens(video, encoder, frames=None if family == "umt" else 4)
    found = encoder.tokens(loaded.preprocess(clip.frames)[None])
    members, spans = of_several(found.sources[0].tolist(), loaded.vision.grid, prefix=0)
    assert drawn.facts["tokens_after"] == len(members) == found.tokens.shape[1]
    assert drawn.facts["most_frames_of_a_token"] == max(spans.values())


def test_tempme_that_joins_nothing_shows_sizes(model: ef.Model, video: Path) -> None:
    drawn = draw_tokens(video, ef.TempMe(model, r=24, clips={}), frames=2)
    tome = ef.ToMe(model, [24] * 4).tokens(
        model.preprocess(sample_clip(video, 2, choose=lambda n, c: second_frames(n, c, fps=6)).frames)
    )
    assert drawn.facts["tokens_after"] == 2 * 100 and drawn.facts["most_frames_of_a_token"] == 1
    assert drawn.facts["largest_token"] == tome.masses.max()


def test_show_tokens_reads_what_finetune_wrote(model: ef.Model, video: Path, tmp_path: Path) -> None:
    positions = {1: torch.randn(6, 128, generator=torch.Generator().manual_seed(0))}
    schedule = {"r": 2, "clips": {1: 2}, "remove_cross": 20, "remove_intra": 10}
    save_tempme(tmp_path / "tuned", Tuning(model, "full"), positions, schedule, {"recipe": {"frames": 6}})
    facts, _ = show(video, tmp_path, "--model", tmp_path / "tuned", "--encoder", "tempme")
    assert facts["frames"] == 6 and "positions" in facts["settings"]
    with pytest.raises(ValueError, match="has its own schedule; leave out --preset"):
        run("show-tokens", video, "--model", tmp_path / "tuned", "--encoder", "tempme", "--r", 3, "--out", tmp_path)


def test_a_video_shorter_than_its_frames_is_drawn_with_a_warning(model: ef.Model, video: Path) -> None:
    encoder = ef.TempMe(model, **{**TEMPME, "clips": {1: 2}})
    with pytest.warns(UserWarning, match=r"quarters\.mp4 shows 3 frames, fewer than 4: some are drawn twice"):
        drawn = draw_tokens(video, encoder, frames=4, start=1.5)
    assert len(drawn.facts["times"]) == 4 and len(set(drawn.facts["times"])) == 3


@pytest.mark.parametrize("kind", ["videomae", "umt", "vifi"])
def test_merging_of_video_models_is_drawn(video: Path, videomae: Path, tmp_path: Path, kind: str) -> None:
    """Two frames to a token; one; frame by frame with a CLS token."""
    if kind == "videomae":
        name, options = videomae, {}
    elif kind == "umt":
        name, options = (
            video_checkpoints.umt(tmp_path / "umt.pth", "vision"),
            {"heads": 4, "frames": 4, "image_size": 32},
        )
    else:
        name = video_checkpoints.vifi(tmp_path / "vifi.pth")
        options = {"heads": 4, "frames": 3, "tokenizer": checkpoints.clip(tmp_path / "clip", width=32)}
        loaded = ef.load_video(name, **video_checkpoints.VIFI, tokenizer=options["tokenizer"], device="cpu")
    if kind != "vifi":
        loaded = ef.load_video(name, **options, device="cpu")
        words = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", value)]
        facts, picture = show(video, tmp_path, "--video-model", name, "--reduce", "5,3", "--start", 0.5, *words)
        assert facts["settings"] == {"encoder": "vidtldr", "reduce": [5, 3]}
    else:
        drawn = draw_tokens(video, ef.VidTLDR(loaded, [5, 3]), start=0.5)
        facts, picture = drawn.facts, drawn.picture
    clip = sample_clip(video, loaded.frames, start=0.5)
    assert facts["times"] == clip.times.tolist()
    pixels = loaded.preprocess(clip.frames)
    seen = as_bytes(loaded, pixels)
    tubelet = 2 if kind == "videomae" else 1
    colours, mass, _ = expected_merging(ef.VidTLDR(loaded, [5, 3]), pixels[None], seen, tubelet)
    patches = loaded.vision.num_patches
    assert (facts["tokens_before"], facts["tokens_after"]) == (patches, patches - 8)
    assert facts["tokens_per"] == ("frame" if kind == "vifi" else "clip")
    grid = loaded.vision.grid
    where = {"count": loaded.frames, "rows": 3, "grid": grid}
    for frame in range(loaded.frames):
        for y, x in np.ndindex(grid, grid):
            found = patch_centre(picture, frame, 1, y, x, **where)
            np.testing.assert_allclose(found, colours[frame // tubelet, y, x], atol=1)
    assert mass.min() < 0.9 and mass.max() == pytest.approx(1)


def test_p_frames_show_what_is_kept(model: ef.Model, video: Path, tmp_path: Path) -> None:
    options = ["--encoder", "residual", "--interleave", 2, "--drop", 0.9, "--select", "center", "--frames", 5]
    facts, picture = show(video, tmp_path, "--model", "bundled", "--fps", 6, *options)
    assert facts["plan"] == "IPPIP" and facts["roles"] == {"I": 2, "P": 3, "C": 0}
    assert facts["tokens_after"] == 2 * 196 + 3 * 20 and facts["tokens_before"] == 5 * 196
    kept = set(
        ef.ResidualViT(model, 2, 0.9, "center", None).kept_indices(torch.empty(1), None, torch.tensor([0]))[0].tolist()
    )
    where = {"count": 5, "rows": 2, "grid": 14}
    for frame in (0, 1):
        for y, x in np.ndindex(14, 14):
            share = 1 if frame == 0 or 14 * y + x in kept else 0.25
            full = patch_centre(picture, frame, 0, y, x, **where)
            np.testing.assert_allclose(patch_centre(picture, frame, 1, y, x, **where), share * full, atol=1)


def test_copies_are_dark(still: Path, tmp_path: Path) -> None:
    facts, picture = show(still, tmp_path, "--model", "bundled", "--encoder", "reuse", "--frames", 3)
    assert facts["plan"] == "ICC" and facts["tokens_after"] == 196
    where = {"count": 3, "rows": 2, "grid": 14}
    full = patch_centre(picture, 2, 0, 1, 1, **where)
    np.testing.assert_allclose(patch_centre(picture, 0, 1, 1, 1, **where), full, atol=1)
    np.testing.assert_allclose(patch_centre(picture, 2, 1, 1, 1, **where), 0.25 * full, atol=1)


def test_show_tokens_says_what_it_did(video: Path, tmp_path: Path) -> None:
    said = run("show-tokens", video, "--model", "bundled", "--frames", 2, "--out", tmp_path)
    assert said == (
        f"{tmp_path / 'quarters-vidtldr.png'}: 196 patches of a frame become 100 tokens (51%); in the blocks go "
        "24, 24, 24, 24\n"
    )
    said = run("show-tokens", video, "--model", "bundled", "--encoder", "residual", "--frames", 2, "--out", tmp_path)
    assert said.endswith("quarters-residual.png: 225 of 392 patches computed (57%), frames IP\n")
    said = run("show-tokens", video, "--model", "bundled", "--encoder", "tempme", "--out", tmp_path)
    found = re.search(
        r"quarters-tempme.png: 2352 patches of 12 frames become (\d+) tokens \(10%\), (\d+) of several", said
    )
    assert found is not None and int(found[1]) > int(found[2]) > 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--encoder dense", "--encoder must be one of tome, vidtldr, tempme, residual, reuse, got 'dense'"),
        ("--encoder tempme --reduce 8x", "--reduce has no meaning with --encoder tempme: --preset, or --r and --clips"),
        ("--encoder tempme --drop 0.5", "--drop has no meaning with --encoder tempme"),
        (
            "--encoder tempme --fps 2",
            "--fps has no meaning with --encoder tempme: its frames are spread over the video",
        ),
        (
            "--encoder tempme --video-model VIDEOMAE",
            "--encoder tempme has no meaning with --video-model: it",
        ),
        ("--encoder tempme --heads 4", "--heads has no meaning without --video-model"),
        ("--encoder tempme --model bundled --preset msrvtt-b33", "there is no preset 'msrvtt-b33'"),
        ("--encoder tempme --model bundled --preset msrvtt-b32", "clips names block 8, but bundled has 4"),
        ("--encoder tempme --model bundled --preset msrvtt-b32 --r 3", "--preset says all of the schedule"),
        ("--encoder tempme --model bundled --clips 1-2", "--clips must be layer:clips pairs with each layer once"),
        ("--encoder tempme --model bundled --clips 1:2,2:2 --frames 6", "the video has 6 frames, which clips="),
        ("--encoder tempme --model bundled --remove-cross 30", "--remove-cross and --remove-intra belong to --clips"),
        ("--r 3", "--r has no meaning with --encoder vidtldr: only tempme joins frames"),
        ("--encoder reuse --remove-intra 3", "--remove-intra has no meaning with --encoder reuse: only tempme joins"),
        ("--reduce 8x --preset umt-b/msrvtt-qa", "--reduce and --preset both say how many tokens go"),
        ("--encoder tome --preset umt-b/msrvtt-qa", "--preset has no meaning with --encoder tome"),
        ("--preset umt-b/msrvtt-qa", "--preset umt-b/msrvtt-qa is for a UMT model; name its file by --video-model"),
        (
            "--preset umt-b/msrvtt-qa --video-model VIDEOMAE",
            "is for umt-b with 12 frames (12 blocks of width 768, 2352",
        ),
        ("--preset umt-c/qa --video-model VIDEOMAE", "there is no preset 'umt-c/qa'; known are umt-b/msrvtt-retrieval"),
        (
            "--encoder reuse --reduce 8x",
            "--reduce has no meaning with --encoder reuse: only --encoder tome and vidtldr",
        ),
        ("--drop 0.5", "--drop has no meaning with --encoder vidtldr: it merges patches and drops none"),
        ("--encoder tome --plan fixed", "--plan has no meaning with --encoder tome: every frame is an I-frame"),
        ("--encoder residual --tolerance 1", "--tolerance has no meaning with --encoder residual"),
        ("--encoder reuse --video-model VIDEOMAE", "--encoder reuse has no meaning with --video-model: it reads frame"),
        ("--model bundled --video-model VIDEOMAE", "--model and --video-model both name the model"),
        ("--video-model VIDEOMAE --fps 2", "--fps has no meaning with --video-model: a clip's frames are spread"),
        ("--video-model VIDEOMAE --frames 5", "frames=5 cannot be used with"),
        ("--heads 4", "--heads has no meaning without --video-model"),
        (
            "--reduce 8,",
            "--reduce must be numbers separated by commas, such as 600,200,100, or 8x for 8 in every block",
        ),
        ("--model bundled --reduce 1,1,1,1,1", "reduce has 5 entries, but the model has 4 blocks"),
        ("--model bundled --frames 0", "frames must be at least 1, got 0"),
        ("--model bundled --start 50", "no frame from 50 s on; the video ends at 2.00 s"),
        ("--model bundled --fps 0", "fps must be > 0, got 0"),
        ("--model gone/folder/x", "gone/folder/x"),
    ],
)
def test_show_tokens_says_what_is_wrong(
    video: Path, videomae: Path, tmp_path: Path, options: str, message: str
) -> None:
    words = [str(videomae) if word == "VIDEOMAE" else word for word in options.split()]
    with pytest.raises(ValueError, match=re.escape(message)):
        run("show-tokens", video, "--out", tmp_path / "out", *words)
    assert not list(tmp_path.rglob("*.png"))


def test_show_tokens_needs_a_video_and_an_encoder_it_knows(model: ef.Model, video: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape("gone.mp4: no such file or folder")):
        run("show-tokens", "gone.mp4", "--model", "bundled", "--out", tmp_path)
    with pytest.raises(
        TypeError, match="encoder must be a VidTLDR, ToMe, TempMe, ResidualViT or ReuseEncoder, got DenseEncoder"
    ):
        draw_tokens(video, ef.DenseEncoder(model))  # type: ignore[arg-type]


# --- encode and plan with merging ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "depth", "numbers"),
    [
        ("600,200,100", 12, [600, 200, 100]),
        ("8x", 4, [8, 8, 8, 8]),
        ("8x3, 4", 12, [8, 8, 8, 4]),
        ("0.25x", 2, [0.25, 0.25]),
        ("16", 4, [16]),
        ("0", 4, [0]),
    ],
)
def test_schedules_are_read(text: str, depth: int, numbers: list) -> None:
    assert parse_reduce(text).of(depth) == numbers


@pytest.mark.parametrize("text", ["", "a", "-3", "8x,4", "8,,4", "x", "8 4", "1e3"])
def test_what_is_no_schedule_raises(text: str) -> None:
    with pytest.raises(ValueError, match="--reduce must be numbers separated by commas"):
        parse_reduce(text)


@pytest.mark.parametrize(
    ("options", "make", "reduce"),
    [
        ("--encoder tome --reduce 16,16,16", ef.ToMe, [16, 16, 16]),
        ("--encoder tome --reduce 8x", ef.ToMe, [8] * 4),
        ("--reduce 24,0.25", ef.VidTLDR, [24, 0.25]),
    ],
)
def test_encode_merges_as_the_library_does(
    model: ef.Model, video: Path, tmp_path: Path, options: str, make: type, reduce: list
) -> None:
    command = ["encode", video, "--model", "bundled", "--out", tmp_path, "--json"]
    assert json.loads(run(*command, *options.split()))["done"] == 1
    feats = ef.VideoFeatures.load(tmp_path / "quarters.npz")
    again = ef.encode_video(video, make(model, reduce))
    np.testing.assert_array_equal(feats.embeddings, again.embeddings)
    assert feats.settings["reduce"] == reduce and feats.settings["encoder"] == make.name
    dense = ef.encode_video(video, ef.DenseEncoder(model)).embeddings
    assert not np.array_equal(feats.embeddings, dense)
    assert (feats.embeddings * dense).sum(axis=1).min() > 0.5
    assert json.loads(run(*command, *options.split()))["skipped"] == 1
    assert json.loads(run(*command, "--encoder", make.name, "--reduce", "3"))["done"] == 1


def test_plan_tells_the_cost_of_merging(model: ef.Model, video: Path) -> None:
    command = ["plan", video, "--model", "bundled", "--encoder", "vidtldr", "--reduce", "24x"]
    facts = json.loads(run(*command, "--json"))
    assert facts["plan"] == "I" * facts["frames"] and facts["predicted_fidelity"] is None
    encoder = ef.VidTLDR(model, [24] * 4)
    for rule in ("paper", "all"):
        assert facts["gflops_per_frame"][rule] == pytest.approx(sum(encoder.macs(1, rule).values()) / 1e9)
        assert 0.5 < facts["gflops_share"][rule] < 0.95
    said = " ".join(run(*command).split())
    assert "vid-TLDR, tokens that go in each block: 24, 24, 24, 24" in said
    assert "tokens per frame 197 before the first block, 101 after the last" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--encoder tome", "--encoder tome needs --reduce, how many tokens go in each block: 24,24,24, or 8x for 8"),
        ("--encoder tome --reduce 8;8", "--reduce must be numbers separated by commas, such as 600,200,100"),
        (
            "--encoder tome --reduce 8x --interleave 2",
            "--interleave has no meaning with --encoder tome: every frame is",
        ),
        ("--reduce 8x --drop 0.5", "--drop has no meaning with --reduce: it merges patches and drops none"),
        ("--encoder vidtldr --reduce 8x --select motion", "--select has no meaning with --encoder vidtldr: which"),
        ("--reduce 8x --plan fixed", "--plan has no meaning with --reduce: every frame is an I-frame"),
        ("--reduce 8x --tolerance 1", "--tolerance has no meaning with --reduce: only --plan adaptive has one"),
        ("--encoder tome --reduce 8x --fidelity 0.9", "--fidelity has no meaning with --encoder tome: only --encoder"),
        ("--reduce 8x --two-sided", "--two-sided has no meaning with --reduce: only --encoder reuse looks ahead"),
        ("--reduce 8x --residual auto", "--reduce has no meaning with --residual: only --encoder tome and vidtldr"),
        (
            "--encoder dense --reduce 8x",
            "--reduce has no meaning with --encoder dense: only --encoder tome and vidtldr",
        ),
        (
            "--encoder reuse --reduce 8x",
            "--reduce has no meaning with --encoder reuse: only --encoder tome and vidtldr",
        ),
    ],
)
@pytest.mark.parametrize("command", ["encode", "plan"])
def test_merging_refuses_what_has_no_meaning(video: Path, command: str, options: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        run(command, video, "--model", "no/such/model", *options.split())


def test_merging_has_no_recipes(video: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--recipe has no meaning with --encoder vidtldr: a recipe keeps"):
        run("encode", video, "--reduce", "8x", "--recipe", "--out", tmp_path)
