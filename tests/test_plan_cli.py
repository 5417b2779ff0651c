"""How the command line chooses encoders, and plan, calibrate, restore: on real files, with the bundled model."""

import base64
import json
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import av
import numpy as np
import pytest
from typer.testing import CliRunner

import everyframe as ef
from everyframe.cli import app
from everyframe.encoders.calibration import Calibration, Point
from everyframe.encoders.planner import NOISE, STALE, debts
from everyframe.preview import preview_video
from everyframe.synthetic import synthesize
from everyframe.timeline import plan_line, plan_picture, spread_out
from everyframe.tokens.change import patch_cells
from everyframe.video import sample_frames

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def model() -> ef.Model:
    return ef.load("bundled", device="cpu")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Six seconds each of a lecture and of fast cuts."""
    files = {}
    for style in ("lecture", "cuts"):
        folder = tmp_path_factory.mktemp(style)
        (video,) = synthesize(folder, videos=1, seconds=6, fps=12, size=(128, 96), seed=3, style=style)
        files[style] = (folder / f"{video.name}.mp4").rename(folder / f"{style}.mp4")
    return files


def run(*arguments: object, model: str = "bundled") -> tuple[int, str]:
    """Exit code and standard output; an error of the user's is raised, as `main` gets it."""
    words = [str(word) for word in arguments]
    if "--model" not in words and words[0] != "restore":
        words += ["--model", model]
    result = CliRunner().invoke(app, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def plan_json(*arguments: object) -> dict:
    code, out = run("plan", *arguments, "--json")
    assert code == 0
    return json.loads(out)


# --- which encoder ---------------------------------------------------------------------------------------

TOKEN = object()  # some residual tokenizer
ADAPTIVE = {"encoder": "reuse", "plan": "adaptive", "tolerance": 1.0, "drop": 0.85}
RESIDUAL = {"encoder": "residual", "interleave": 2, "drop": 0.85, "select": "motion", "residual": TOKEN}


def reuse(plan: str, interleave: int = 5, select: str = "change") -> dict:
    return {"encoder": "reuse", "plan": plan, "interleave": interleave, "select": select, "drop": 0.85}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", ADAPTIVE),
        ("--plan adaptive --select change", ADAPTIVE),
        ("--encoder reuse --tolerance 0.5 --drop 0.7", {**ADAPTIVE, "tolerance": 0.5, "drop": 0.7}),
        ("--interleave 3", reuse("fixed", 3)),
        ("--select motion", reuse("fixed", select="motion")),
        ("--plan fixed", reuse("fixed")),
        ("--plan cuts --interleave 7", reuse("cuts", 7)),
        ("--encoder residual", RESIDUAL),
        ("--residual none", {**RESIDUAL, "residual": None}),
        ("--residual auto --interleave 1 --select center", {**RESIDUAL, "interleave": 1, "select": "center"}),
        ("--encoder residual --plan cuts", {**RESIDUAL, "plan": "cuts"}),
        ("--encoder dense", {"encoder": "dense"}),
    ],
)
def test_options_choose_the_encoder(videos: dict, tmp_path: Path, options: str, expected: dict) -> None:
    assert run("encode", videos["cuts"], "--end", 0.5, "--out", tmp_path, "--quiet", *options.split()) == (0, "")
    settings = ef.VideoFeatures.load(tmp_path / "cuts.npz").settings
    chosen = {name: settings[name] for name in expected}
    if expected.get("residual") is TOKEN:
        assert chosen.pop("residual").startswith("residual_tokenizer.safetensors:")
    assert chosen == {name: value for name, value in expected.items() if value is not TOKEN}
    others = {"plan", "tolerance", "interleave", "select", "residual"} - set(expected)
    assert not others & set(settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--encoder reuse --residual auto", "--residual has no meaning with --encoder reuse: only --encoder residual"),
        ("--plan adaptive --interleave 2", "--interleave has no meaning with --plan adaptive: it sets I-frames where"),
        ("--plan adaptive --select motion", "--select has no meaning with --plan adaptive: it computes the patches"),
        ("--plan fixed --tolerance 1", "--tolerance has no meaning with --plan fixed: only --plan adaptive has one"),
        ("--plan cuts --tolerance 1", "--tolerance has no meaning with --plan cuts"),
        ("--interleave 2 --tolerance 1", "--tolerance has no meaning with --interleave: only --plan adaptive"),
        ("--select motion --fidelity 0.9", "--fidelity has no meaning with --select motion: only --encoder reuse"),
        ("--fidelity 0.9 --tolerance 1", "--tolerance has no meaning with --fidelity: the calibration says"),
        ("--fidelity 0.9 --drop 0.5", "--drop has no meaning with --fidelity: the calibration says"),
        ("--fidelity 0.9 --plan fixed", "--fidelity has no meaning with --plan fixed"),
        ("--fidelity 0.9 --encoder dense", "--fidelity has no meaning with --encoder dense"),
        ("--fidelity 0.9 --residual none", "--fidelity has no meaning with --residual: only --encoder reuse"),
        ("--encoder residual --tolerance 1", "--tolerance has no meaning with --encoder residual"),
        ("--encoder residual --plan adaptive", "--plan adaptive has no meaning with --encoder residual: only"),
        ("--encoder dense --plan fixed", "--plan has no meaning with --encoder dense: every frame is an I-frame"),
        ("--encoder dense --drop 0.5", "--drop has no meaning with --encoder dense"),
        ("--encoder all", "--encoder must be one of reuse, residual, dense, tome, vidtldr, got 'all'"),
        ("--plan always", "--plan must be fixed, cuts or adaptive, got 'always'"),
    ],
)
@pytest.mark.parametrize("command", ["encode", "plan", "ground"])
def test_contradictions_are_told_before_a_model_is_loaded(
    videos: dict, command: str, options: str, message: str
) -> None:
    words = [command, videos["cuts"], *(["a red circle"] if command == "ground" else []), *options.split()]
    with pytest.raises(ValueError, match=re.escape(message)):
        run(*words, model="no/such/model")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", "--calibration", "auto"], "--calibration has no meaning without --fidelity"),
        (["encode", "--recipe", "--format", "npy"], "--format has no meaning with --recipe"),
        (["plan", "--plan", "fixed", "--calibration", "auto"], "--calibration has no meaning here: it predicts what"),
        (["plan", "--plot", "plan.png"], "--plot must end in .svg, got plan.png"),
        (["plan", "--calibration", "CALIBRATION", "--model", "gone/folder/x"], "gone/folder/x"),
        (["plan", "--fps", "0"], "fps must be > 0, got 0"),
        (["plan", "--tolerance", "-1"], "tolerance must be a finite number >= 0, got -1"),
        (["plan", "--fidelity", "1.5", "--calibration", "CALIBRATION"], "fidelity must lie between 0 and 1, got 1.5"),
        (["plan", "--fidelity", "0.999", "--calibration", "CALIBRATION"], "above the 0.9900 that the calibration"),
        (["plan", "--calibration", "gone.json"], "gone.json cannot be read (No such file or directory)"),
        (["encode", "--fidelity", "0.9", "--calibration", "CUT"], "is not a calibration (not JSON)"),
        (["encode", "--fidelity", "0.9", "--calibration", "FOREIGN"], "whose weights are not those of bundled"),
        (["encode", "--fidelity", "0.9", "--model", "FOLDER"], "a fidelity needs a calibration, and none comes with"),
        (["calibrate", "--out", "."], "--out must be a file such as calibration.json, but . is a folder"),
        (["calibrate", "--tolerance", "1"], "two different tolerances > 0"),
        (["calibrate", "--seconds", "0"], "sample_seconds must be finite and > 0, got 0"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    model: ef.Model,
    videos: dict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "FOLDER"
    assert model.folder is not None
    shutil.copytree(model.folder, folder, ignore=shutil.ignore_patterns("calibration.json"))
    calibration(model).save("CALIBRATION")
    text = Path("CALIBRATION").read_text()
    Path("CUT").write_text(text[: len(text) // 2])
    Path("FOREIGN").write_text(text.replace(model.weights_sha256, "0" * 64))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError) as raised:
        run(arguments[0], videos["cuts"], *arguments[1:])
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert [file for file in sorted(tmp_path.iterdir()) if file not in before] in ([], [tmp_path / "features"])


def calibration(model: ef.Model, weights: tuple[float, float] = (0.1, 0.02)) -> Calibration:
    points = tuple(
        Point(drop=0.85, tolerance=tolerance, fidelity=fidelity, fidelity_p5=0.8, cost=0.3)
        for tolerance, fidelity in ((0.1, 0.99), (1.0, 0.95), (4.0, 0.9))
    )
    facts = {"model": model.name, "weights_sha256": model.weights_sha256, "fps": 3.0, "videos": 1, "frames": 9}
    return Calibration(points=points, weights=weights, facts=facts)


# --- plan ------------------------------------------------------------------------------------------------


def naive_plan(model: ef.Model, video: Path, tolerance: float, most: int) -> tuple[str, list[int], list[float]]:
    """The adaptive rule once more, frame by frame, without shots: roles, patches refreshed, change left out."""
    frames = np.stack([sample.pixels for sample in sample_frames(video, 3.0)])
    cells = patch_cells(model.preprocess(frames), model.vision.config.patch_size).double()
    shown, first, debt = cells[0].clone(), cells[0], 0.0
    roles, counts, left_out = "I", [0], [0.0]
    for now in cells[1:]:
        change = ((now - shown) ** 2).mean(1)
        order = change.argsort(descending=True)[: min(most, int((change > NOISE).sum()))]
        left = change.sqrt()
        left[order] = 0
        left = left + STALE * ((shown - first) ** 2).mean(1).sqrt()
        debt += float(left.mean())
        if debt > tolerance:
            shown, first, debt = now.clone(), now, 0.0
            roles, counts, left_out = roles + "I", [*counts, 0], [*left_out, 0.0]
            continue
        shown[order] = now[order]
        roles += "P" if len(order) else "C"
        counts.append(len(order))
        left_out.append(float(left.mean()))
    return roles, counts, left_out


def hand_macs(model: ef.Model, tokens: float, patches: float, rule: str) -> float:
    """Multiply-accumulates of one frame: linear layers, and with "all" attention to every token."""
    config, full = model.vision.config, model.vision.num_prefix + model.vision.num_patches
    width = config.width
    linear = tokens * config.depth * (4 * width**2 + 2 * width * config.mlp_width)
    linear += patches * 3 * config.patch_size**2 * width + width * config.dim
    return linear + (2 * config.depth * tokens * full * width if rule == "all" else 0)


def test_plan_counts_what_an_independent_plan_counts(model: ef.Model, videos: dict, tmp_path: Path) -> None:
    calibration(model).save(tmp_path / "calibration.json")
    options = ["--tolerance", 0.15, "--drop", 0.9, "--calibration", tmp_path / "calibration.json"]
    facts = plan_json(videos["lecture"], *options)
    roles, counts, left_out = naive_plan(model, videos["lecture"], 0.15, most=20)  # 10 % of 196
    assert facts["plan"] == roles and set(roles) == set("IPC") and facts["cuts"] == [] and max(counts) == 20
    assert facts["frames"] == 18 and facts["roles"] == {role: roles.count(role) for role in "IPC"}
    patches = [196 if role == "I" else count for role, count in zip(roles, counts, strict=True)]
    assert facts["share_computed"] == pytest.approx(np.mean(patches) / 196)
    assert facts["share_computed_of_p"] == pytest.approx(np.mean([n for n in counts if n]) / 196)
    for rule in ("paper", "all"):
        dense = hand_macs(model, 197, 196, rule)
        total = sum(hand_macs(model, 1 + n, n, rule) for n in patches if n)
        assert facts["gflops_per_frame"][rule] == pytest.approx(total / 18 / 1e9)
        assert facts["gflops_share"][rule] == pytest.approx(total / 18 / dense)
    since, losses = 0.0, []
    for role, left in zip(roles, left_out, strict=True):
        since = 0.0 if role == "I" else since + left
        losses.append(0.1 * left + 0.02 * since)
    assert facts["predicted_fidelity"] == pytest.approx(1 - np.mean(losses), abs=1e-6)
    assert facts["planning_ms_per_frame"] > 0 and facts["reading_ms_per_frame"] > 0


def test_plan_is_the_plan_of_encode(videos: dict, tmp_path: Path) -> None:
    for options in ([], ["--plan", "cuts"], ["--residual", "none"], ["--encoder", "dense"]):
        run("encode", videos["cuts"], "--out", tmp_path, "--quiet", *options)
        feats = ef.VideoFeatures.load(tmp_path / "cuts.npz")
        facts = plan_json(videos["cuts"], *options)
        assert facts["plan"] == feats.roles
        assert facts["gflops_per_frame"]["all"] == pytest.approx(feats.settings["gflops_per_frame"], rel=1e-5)
        assert facts["gflops_share"]["all"] == pytest.approx(feats.settings["gflops_share"], rel=1e-5)
        assert facts["cuts"] and all(feats.roles[i] == "I" for i in _rows(feats, facts["cuts"]) if not options)
    part = plan_json(videos["cuts"], "--start", 2, "--end", 4, "--fps", 6)
    assert part["frames"] == 12 and (part["start_seconds"], part["end_seconds"]) == pytest.approx((2, 4))


@pytest.mark.parametrize("plan", ["adaptive", "cuts"])
def test_a_preview_waits_for_plans_that_look_ahead(model: ef.Model, videos: dict, plan: str) -> None:
    encoder = ef.ReuseEncoder(model, plan=plan, two_sided=True)
    seen = preview_video(videos["cuts"], encoder, pictures=True)
    feats = ef.encode_video(videos["cuts"], encoder)
    assert seen.plan.roles == feats.roles and len(seen.times) == feats.num_frames
    assert [time for time, _ in seen.pictures] == feats.times[[role == "I" for role in feats.roles]].tolist()


def _rows(feats: ef.VideoFeatures, times: list[float]) -> list[int]:
    return [int(np.flatnonzero(feats.times == time)[0]) for time in times]


def test_plan_needs_no_weights(videos: dict) -> None:
    facts = plan_json(videos["lecture"], "--model", "ViT-B/32")
    assert facts["frames"] == 18 and facts["model"] == "ViT-B/32" and facts["predicted_fidelity"] is None
    assert plan_json(videos["lecture"], "--model", "ViT-B/32", "--encoder", "dense")["gflops_share"]["all"] == 1


def test_plan_says_it_in_words(videos: dict, tmp_path: Path) -> None:
    code, out = run("plan", videos["lecture"], "--plot", tmp_path / "plan.svg")
    facts = plan_json(videos["lecture"])
    counts = facts["roles"]
    assert code == 0
    assert f"18, 0:00:00.0 to 0:00:06.0: {counts['I']} I, {counts['P']} P, {counts['C']} copied" in out
    line = next(line for line in out.splitlines() if len(line) == 18 and line.startswith("I"))
    assert line.translate(str.maketrans("p·.", "PCC")) == facts["plan"]
    assert f"{100 * facts['gflops_share']['all']:.1f} % of dense" in out
    assert str(tmp_path / "plan.svg") in out


def test_plan_draws_every_frame(videos: dict, tmp_path: Path) -> None:
    facts = plan_json(videos["cuts"], "--plot", tmp_path / "plan.svg")
    text = (tmp_path / "plan.svg").read_text()
    assert len(text) < 300_000
    root = ET.fromstring(text)
    (bars,) = (group for group in root.iter(f"{SVG}g") if group.get("class") == "bars")
    assert [bar.get("class") for bar in bars] == list(facts["plan"])
    tall = [float(bar.get("height", 0)) for bar in bars]
    top = max(tall)
    assert np.mean(tall) / top == pytest.approx(facts["share_computed"], abs=0.01)
    marks = [path for path in root.iter(f"{SVG}path") if path.get("class") == "cutline"]
    assert len(marks) == len(facts["cuts"]) > 0
    images = list(root.iter(f"{SVG}image"))
    assert 0 < len(images) <= 12
    for image in images:
        (tmp_path / "one.jpg").write_bytes(base64.b64decode(image.get("href").partition(",")[2]))
        with av.open(str(tmp_path / "one.jpg")) as picture:
            assert next(picture.decode(video=0)).width == 112


def test_a_picture_of_a_long_video_keeps_the_shares() -> None:
    rng = np.random.default_rng(0)
    roles = "".join(rng.choice(list("IPC"), 4321, p=[0.1, 0.5, 0.4]))
    shares = [{"I": 1.0, "P": 0.25, "C": 0.0}[role] for role in roles]
    times = [frame / 3 for frame in range(4321)]
    text = plan_picture(times, 4321 / 3, roles, shares, title="<&>", debt=[0.5] * 4321, tolerance=1.0)
    assert len(text) < 300_000
    root = ET.fromstring(text)
    (bars,) = (group for group in root.iter(f"{SVG}g") if group.get("class") == "bars")
    places = {bar.get("x") or bar.get("cx") for bar in bars}
    assert 1000 < len(places) <= 1100
    drawn = {role: sum(float(bar.get("height", 0)) for bar in bars if bar.get("class") == role) for role in "IP"}
    assert drawn["P"] / drawn["I"] == pytest.approx(0.25 * roles.count("P") / roles.count("I"), rel=0.03)
    assert any("a bar is 4 frames" in (text.text or "") for text in root.iter(f"{SVG}text"))


@pytest.mark.parametrize(
    ("roles", "width", "ascii_only", "line"),
    [
        ("IPPCI", 5, False, "Ipp·I"),
        ("IPPCI", 80, True, "Ipp.I"),
        ("IIIICCCCIIPPCCCC", 4, False, "█▁▅▁"),  # P at 0.1: (1 + 1 + 0.1 + 0.1) / 4
        ("IIIICCCCIIPPCCCC", 4, True, "#_=_"),
        ("IIICCCIC", 3, False, "█▁▅"),  # the last block holds two frames
    ],
)
def test_plan_line(roles: str, width: int, ascii_only: bool, line: str) -> None:
    shares = [{"I": 1.0, "P": 0.1, "C": 0.0}[role] for role in roles]
    assert plan_line(roles, shares, width, ascii_only=ascii_only)[0] == line


def test_debts_and_thumbnails() -> None:
    assert debts("IPPIC", [0, 1, 2, 0, 0.5]) == [0, 1, 3, 0, 0.5]
    # Parts [0, 2), [2, 4), [4, 6): the nearest to 1, nothing, the nearest to 5.
    assert spread_out([0, 0.8, 1.9, 4.1, 5.2], 0, 6, most=3) == [1, None, 4]


# --- calibrate -------------------------------------------------------------------------------------------


def test_calibrate_measures_and_encode_uses_it(model: ef.Model, videos: dict, tmp_path: Path) -> None:
    out = tmp_path / "calibration.json"
    grid = ["--drop", 0.95, "--tolerance", 0.1, "--tolerance", 2]
    code, printed = run("calibrate", *videos.values(), tmp_path / "gone.mp4", *grid, "--out", out, "--json")
    report = json.loads(printed)
    assert code == 1 and "gone.mp4" in report["failures"][0]
    assert report["facts"]["videos"] == 2 and report["facts"]["frames"] == 36
    written = Calibration.load(out, model)
    assert [vars(point) for point in written.points] == report["points"]
    assert [(point.drop, point.tolerance) for point in written.points] == [(0.95, 0.1), (0.95, 2.0)]
    for point in written.points:
        encoder = ef.ReuseEncoder(model, drop=0.95, plan="adaptive", tolerance=point.tolerance)
        cosines = np.concatenate([_cosines(model, encoder, video) for video in videos.values()])
        assert point.fidelity == pytest.approx(cosines.mean(), abs=1e-4)
        assert point.fidelity_p5 == pytest.approx(np.percentile(cosines, 5), abs=1e-4)
    near, far = written.points
    assert near.fidelity > far.fidelity
    for name, choice in report["choices"].items():
        if float(name) > near.fidelity:
            assert choice is None
        else:
            assert far.cost <= choice["cost"] <= near.cost or choice["cost"] == min(near.cost, far.cost)

    wanted = (near.fidelity + far.fidelity) / 2
    options = ["--fidelity", wanted, "--calibration", out]
    assert run("encode", videos["cuts"], *options, "--out", tmp_path, "--quiet") == (0, "")
    feats = ef.VideoFeatures.load(tmp_path / "cuts.npz")
    assert feats.settings["drop"] == 0.95
    assert feats.settings["tolerance"] == pytest.approx(0.2**0.5, abs=1e-3)  # half way, on a logarithmic scale
    facts = plan_json(videos["cuts"], *options)
    assert facts["plan"] == feats.roles and 0 < facts["predicted_fidelity"] < 1
    found = json.loads(run("ground", videos["cuts"], "a red circle", *options, "--json")[1])
    assert found == json.loads(run("ground", tmp_path / "cuts.npz", "a red circle", "--json")[1])


def _cosines(model: ef.Model, encoder: ef.ReuseEncoder, video: Path) -> np.ndarray:
    own, dense = (ef.encode_video(video, reader).embeddings for reader in (encoder, ef.DenseEncoder(model)))
    return (own * dense).sum(1)


def test_calibrate_says_what_to_do_with_it(videos: dict, tmp_path: Path) -> None:
    out = tmp_path / "own videos.json"
    grid = ["--drop", 0.95, "--tolerance", 0.1, "--tolerance", 2, "--seconds", 3]
    code, printed = run("calibrate", videos["cuts"], *grid, "--out", out)
    assert code == 0
    command = next(line for line in printed.splitlines() if line.startswith("use it: everyframe encode "))
    assert "--model bundled --fps 3 --fidelity 0.9" in command and command.endswith(f"--calibration '{out}'")
    assert re.search(r"0\.95 +0\.1 +[01]\.\d{4} +[01]\.\d{4} +\d+\.\d", printed)
    assert "what --fidelity takes" in printed
    with pytest.raises(ValueError, match=r"gone\.mp4: no such file or folder"):
        run("plan", tmp_path / "gone.mp4", model="no/such/model")
    with pytest.raises(ef.VideoError, match="gone"):
        run("calibrate", tmp_path / "gone.mp4", "--out", tmp_path / "none.json")
    assert not (tmp_path / "none.json").exists()


# --- recipes ---------------------------------------------------------------------------------------------


def test_recipes_restore_to_the_features(videos: dict, tmp_path: Path) -> None:
    source = shutil.copy(videos["cuts"], tmp_path / "talk.mp4")
    run("encode", source, "--out", tmp_path / "whole", "--quiet")
    assert run("encode", source, "--recipe", "--out", tmp_path / "recipes", "--quiet") == (0, "")
    recipe = tmp_path / "recipes" / "talk.recipe.npz"
    assert recipe.stat().st_size < (tmp_path / "whole" / "talk.npz").stat().st_size
    facts = json.loads(CliRunner().invoke(app, ["info", str(recipe), "--json"]).stdout)
    assert facts["frames"] == 18 and facts["kept"] == facts["roles"]["I"] and facts["encoder"]["plan"] == "adaptive"
    code, out = run("encode", source, "--recipe", "--out", tmp_path / "recipes", "--json")
    assert json.loads(out)["skipped"] == 1
    whole = ef.VideoFeatures.load(tmp_path / "whole" / "talk.npz")

    code, out = run("restore", tmp_path / "recipes", "--out", tmp_path / "again", "--format", "npy")
    assert code == 0 and f"{tmp_path / 'again' / 'talk.npy'}: 18 frames" in out
    again = ef.VideoFeatures.load(tmp_path / "again" / "talk.npy")
    assert again.roles == whole.roles
    np.testing.assert_allclose(again.embeddings, whole.embeddings, atol=1e-6)

    moved = source.rename(tmp_path / "moved.mp4")
    code, out = run("restore", recipe, "--out", tmp_path / "lost", "--json")
    (row,) = json.loads(out)
    assert code == 1 and row["output"] is None and "talk.mp4 does not exist" in row["error"]
    part = ["--video", moved, "--start", 2, "--end", 4, "--out", tmp_path / "part"]
    assert run("restore", recipe, *part, "--quiet") == (0, "")
    some = ef.VideoFeatures.load(tmp_path / "part" / "talk.npz")
    assert some.num_frames == 6
    np.testing.assert_allclose(some.embeddings, whole.embeddings[6:12], atol=1e-6)


def test_restore_leaves_other_files_alone_and_goes_on(videos: dict, tmp_path: Path) -> None:
    for style, video in videos.items():
        run("encode", video, "--recipe", "--residual", "none", "--end", 1, "--out", tmp_path / "r", "--quiet")
        assert (tmp_path / "r" / f"{style}.recipe.npz").exists()
    out = tmp_path / "out"
    out.mkdir()
    np.savez(out / "cuts.npz", mine=np.ones(3))
    mine = (out / "cuts.npz").read_bytes()
    code, printed = run("restore", tmp_path / "r", "--out", out, "--json")
    rows = {Path(row["recipe"]).name: row for row in json.loads(printed)}
    assert code == 1 and (out / "cuts.npz").read_bytes() == mine
    assert "it is not overwritten: choose another --out" in rows["cuts.recipe.npz"]["error"]
    assert rows["lecture.recipe.npz"]["frames"] == 3 and rows["lecture.recipe.npz"]["error"] is None
    (tmp_path / "s").mkdir()
    shutil.copy(tmp_path / "r" / "cuts.recipe.npz", tmp_path / "s" / "lecture.recipe.npz")
    code, printed = run("restore", tmp_path / "s", "--out", out, "--json")
    assert code == 1 and "holds the features of" in json.loads(printed)[0]["error"]
    with pytest.raises(ValueError, match="holds no recipe"):
        run("restore", out, "--out", out)
    with pytest.raises(ValueError, match="--video names the video of one recipe, but there are 2"):
        run("restore", tmp_path / "r", "--video", videos["cuts"])
    with pytest.raises(ValueError, match="would both become"):
        run("restore", tmp_path / "r", tmp_path / "s")


def test_a_part_restored_is_no_whole_video(model: ef.Model, videos: dict, tmp_path: Path) -> None:
    video, features = videos["lecture"], tmp_path / "features"
    run("encode", video, "--model", "bundled", "--recipe", "--out", tmp_path, "--quiet")
    (recipe,) = tmp_path.glob("*.recipe.npz")
    run("restore", recipe, "--end", "2", "--out", features, "--quiet")
    (part,) = features.glob("*.npz")
    assert ef.VideoFeatures.load(part).times[-1] < 2
    run("encode", video, "--model", "bundled", "--out", features, "--quiet")  # not skipped
    assert ef.VideoFeatures.load(part).num_frames == 18
    assert run("restore", recipe, "--end", "2", "--out", features, "--quiet")[0] == 1
    assert ef.VideoFeatures.load(part).num_frames == 18


def test_a_calibration_of_another_rate_is_used_with_a_warning(videos: dict, tmp_path: Path, monkeypatch) -> None:
    for fps, warned in ((1, True), (3, False)):
        said: list[str] = []
        monkeypatch.setattr("everyframe.console.say", lambda text, said=said, **options: said.append(text))
        run("encode", videos["lecture"], "--fidelity", 0.97, "--fps", fps, "--out", tmp_path)
        assert any("measured at 3 frames per second, not at 1" in text for text in said) is warned


def test_the_cheapest_point_that_reaches_a_fidelity_is_chosen(model: ef.Model) -> None:
    points = [
        Point(drop=0.5, tolerance=1.0, fidelity=0.99, fidelity_p5=0.9, cost=0.4),
        Point(drop=0.5, tolerance=2.0, fidelity=0.96, fidelity_p5=0.9, cost=0.35),
        Point(drop=0.9, tolerance=1.0, fidelity=0.985, fidelity_p5=0.9, cost=0.2),  # wholly above what is asked
        Point(drop=0.9, tolerance=2.0, fidelity=0.986, fidelity_p5=0.9, cost=0.15),
    ]
    assert Calibration(points=tuple(points), weights=(0.0, 0.0)).choose(0.97) == (0.9, 2.0)
