"""The residual tokenizer's layers, its files, and where they are looked for."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import checkpoints
from everyframe.backbone import Model, load
from everyframe.encoders import DenseEncoder, ResidualTokenizer, ResidualViT
from everyframe.pipeline import encode_video
from everyframe.synthetic import synthesize

Make = Callable[..., ResidualTokenizer]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.clip(tmp_path_factory.mktemp("clip"), tokenizer=False)


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(folder, device="cpu")


@pytest.fixture
def make(model: Model) -> Make:
    def tokenizer(layers: int = 1, hidden: int | None = None, **facts: object) -> ResidualTokenizer:
        torch.manual_seed(layers)
        return ResidualTokenizer(model.dim, model.vision.config.width, layers=layers, hidden=hidden, facts=facts)

    return tokenizer


def metadata(file: Path) -> dict[str, object]:
    with safe_open(file, framework="pt") as stored:
        return json.loads(stored.metadata()["everyframe"])


# --- layers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layers", "hidden"), [(1, None), (2, None), (3, 7)])
def test_forward_is_linear_layers_with_relu_between(make: Make, layers: int, hidden: int | None) -> None:
    tokenizer = make(layers, hidden)
    rows = np.random.default_rng(0).standard_normal((5, tokenizer.dim))
    values = rows
    state = {name: tensor.double().numpy() for name, tensor in tokenizer.layers.state_dict().items()}
    for layer in range(layers):
        values = values @ state[f"{layer}.weight"].T + state[f"{layer}.bias"]
        if layer < layers - 1:
            values = np.where(values > 0, values, 0)
    np.testing.assert_allclose(tokenizer(torch.from_numpy(rows).float()).detach().numpy(), values, atol=1e-5)
    assert values.shape == (5, tokenizer.width)
    sizes = [24, *[hidden or 32] * (layers - 1), 32]
    assert tokenizer.macs == sum(a * b for a, b in pairwise(sizes))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"hidden": 8}, "hidden is the width between 2 or more layers, at least 1; got 8 for 1"),
        ({"layers": 2, "hidden": 0}, "hidden is the width between 2 or more layers, at least 1; got 0 for 2"),
    ],
)
def test_bad_sizes_raise(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResidualTokenizer(4, 4, **options)  # type: ignore[arg-type]


def test_fingerprint_tells_weights_apart(make: Make) -> None:
    one, same, other = make(), make(), make()
    with torch.no_grad():
        other.layers[0].bias[3] += 1e-6
    assert one.fingerprint == same.fingerprint != other.fingerprint


# --- files -----------------------------------------------------------------------------------------------


def test_one_layer_is_stored_as_weight_and_bias(make: Make, model: Model, tmp_path: Path) -> None:
    make().save(tmp_path / "a.safetensors")
    stored = load_file(tmp_path / "a.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == {"weight": (32, 24), "bias": (32,)}


@pytest.mark.parametrize(("layers", "hidden"), [(1, None), (2, None), (2, 5), (4, 7)])
def test_files_round_trip(make: Make, model: Model, tmp_path: Path, layers: int, hidden: int | None) -> None:
    tokenizer = make(layers, hidden, weights_sha256=model.weights_sha256, drop=0.85, data={"clips": 3})
    tokenizer.save(tmp_path / "a.safetensors")
    again = ResidualTokenizer.load(tmp_path / "a.safetensors", model)
    assert again.facts == tokenizer.facts == metadata(tmp_path / "a.safetensors")
    assert again.layers.state_dict().keys() == tokenizer.layers.state_dict().keys()
    for name, tensor in tokenizer.layers.state_dict().items():
        assert torch.equal(again.layers.state_dict()[name], tensor)
    assert again.fingerprint == tokenizer.fingerprint


def test_a_file_of_weight_and_bias_alone_is_a_tokenizer(model: Model, tmp_path: Path) -> None:
    weight, bias = torch.randn(32, 24), torch.randn(32)
    save_file({"weight": weight, "bias": bias}, tmp_path / "bare.safetensors")
    tokenizer = ResidualTokenizer.load(tmp_path / "bare.safetensors", model)
    assert tokenizer.facts == {}
    assert torch.equal(tokenizer(torch.eye(24)), weight.T + bias)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is known of it, so nothing to warn of
        ResidualViT(model, 2, 0.4, residual=tmp_path / "bare.safetensors")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": (32, 24)}, "does not fit"),
        ({"weight": (24, 32), "bias": (24,)}, "does not fit"),
        ({"0.weight": (8, 24), "0.bias": (8,), "1.weight": (32, 9), "1.bias": (32,)}, "does not fit"),
        ({"0.weight": (8, 24), "0.bias": (8,), "2.weight": (32, 8), "2.bias": (32,)}, "does not fit"),
        ({"kernel": (32, 24)}, r"is not a residual tokenizer: it holds \['kernel'\], needed are \"weight\", \"bias\""),
        ({}, "does not fit"),
    ],
)
def test_other_tensors_are_refused(
    model: Model, tmp_path: Path, tensors: dict[str, tuple[int, ...]], message: str
) -> None:
    file = tmp_path / "odd.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, file)
    with pytest.raises(ValueError, match=message):
        ResidualTokenizer.load(file, model)


def test_a_damaged_file_is_refused(model: Model, make: Make, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    make().save(file)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"a\.safetensors is not a readable safetensors file"):
        ResidualTokenizer.load(file, model)


# --- whose it is -----------------------------------------------------------------------------------------


def test_another_models_tokenizer_of_the_same_shapes_is_refused(make: Make, model: Model, tmp_path: Path) -> None:
    other = load(checkpoints.clip(tmp_path / "other", seed=5, tokenizer=False), device="cpu")
    assert (other.dim, other.vision.config.width) == (model.dim, model.vision.config.width)
    tokenizer = make(weights_sha256=model.weights_sha256, model="tiny/first", drop=0.85)
    tokenizer.save(tmp_path / "a.safetensors")
    ResidualViT(model, residual=tmp_path / "a.safetensors")
    for residual in (tmp_path / "a.safetensors", tokenizer):
        with pytest.raises(ValueError, match=r"was fitted to other weights \(model tiny/first\) than those of .*other"):
            ResidualViT(other, residual=residual)


def test_another_drop_warns(make: Make, model: Model, tmp_path: Path) -> None:
    tokenizer = make(drop=0.5)
    tokenizer.save(tmp_path / "a.safetensors")
    for residual in (tokenizer, tmp_path / "a.safetensors"):
        with pytest.warns(UserWarning, match=r"was fitted for drop=0\.5 and is used with drop=0\.85"):
            ResidualViT(model, residual=residual)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ResidualViT(model, drop=0.5, residual=residual)


# --- where it is looked for ------------------------------------------------------------------------------


def test_folder_is_searched_for_either_name(make: Make, model: Model, tmp_path: Path) -> None:
    make(2, drop=0.85).save(tmp_path / "residual_tokenizer.safetensors")
    assert ResidualViT(model, residual=tmp_path).tokenizer.fingerprint == make(2).fingerprint  # type: ignore[union-attr]
    make(1, drop=0.85).save(tmp_path / "tokenizer.safetensors")  # what distill writes comes first
    assert ResidualViT(model, residual=str(tmp_path)).tokenizer.fingerprint == make(1).fingerprint  # type: ignore[union-attr]


def test_auto_finds_the_file_beside_the_weights(make: Make, tmp_path: Path) -> None:
    folder = checkpoints.clip(tmp_path / "clip", tokenizer=False)
    model = load(folder, device="cpu")
    with pytest.warns(UserWarning, match="no residual tokenizer comes with"):
        assert ResidualViT(model).tokenizer is None
    tokenizer = make(weights_sha256=model.weights_sha256, drop=0.85)
    tokenizer.save(folder / "residual_tokenizer.safetensors")
    again = load(folder, device="cpu")
    assert again.weights_sha256 == model.weights_sha256  # a tokenizer is no part of the model's weights
    encoder = ResidualViT(again)
    assert encoder.settings["residual"] == f"residual_tokenizer.safetensors:{tokenizer.fingerprint}"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.safetensors", r"residual tokenizer .*missing\.safetensors does not exist"),
        ("no/such/place", "residual tokenizer .*no/such/place does not exist"),
        (".", r"folder .* holds no residual tokenizer \(tokenizer\.safetensors\)"),
    ],
)
def test_a_missing_one_is_said(model: Model, tmp_path: Path, source: str, message: str) -> None:
    for path in (tmp_path / source, str(tmp_path / source)):
        with pytest.raises(FileNotFoundError, match=message):
            ResidualViT(model, residual=path)


def test_a_hub_repository_without_a_tokenizer_is_told_from_an_unreachable_hub(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    monkeypatch.setattr("everyframe.backbone.hub._probe", lambda name: None)
    for error, message in (
        (EntryNotFoundError("404"), r"^someone/else holds no tokenizer\.safetensors; name one made by .* --push-to$"),
        (LocalEntryNotFoundError("timed out"), "someone/else does not exist: .* the hub cannot be reached"),
    ):

        def download(*_: object, error: Exception = error, **__: object) -> str:
            raise error

        monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
        with pytest.raises(FileNotFoundError, match=message):
            ResidualViT(model, residual="someone/else")


def test_hub_id_is_found_in_the_cache_when_offline(
    make: Make, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HF_HOME and HF_HUB_OFFLINE are read when the client is imported; here it is, so what they set is set."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    snapshot = tmp_path / "hub" / "models--someone--token" / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    tokenizer = make(weights_sha256=model.weights_sha256, drop=0.85)
    tokenizer.save(snapshot / "tokenizer.safetensors")
    (tmp_path / "hub" / "models--someone--token" / "refs").mkdir()
    (tmp_path / "hub" / "models--someone--token" / "refs" / "main").write_text("c" * 40)
    found = ResidualViT(model, residual="someone/token").tokenizer
    assert found is not None and found.fingerprint == tokenizer.fingerprint
    with pytest.raises(
        FileNotFoundError, match=r"^residual tokenizer someone/else does not exist: .* is neither .*OFFLINE"
    ):
        ResidualViT(model, residual="someone/else")


# --- the one that ships ----------------------------------------------------------------------------------


def test_the_bundled_token_brings_p_features_closer_to_dense_ones(tmp_path: Path) -> None:
    """On combinations and videos that neither the model's nor the tokenizer's training showed."""
    model = load("bundled", device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast = ResidualViT(model)
    assert fast.tokenizer is not None
    assert fast.tokenizer.facts["weights_sha256"] == model.weights_sha256
    assert fast.tokenizer.facts["drop"] == fast.drop
    encoders = (DenseEncoder(model), fast, ResidualViT(model, residual=None))
    worlds = synthesize(tmp_path, videos=4, seconds=12, seed=970, fps=6, size=(192, 144), combinations="unseen")
    files = [tmp_path / f"{world.name}.mp4" for world in worlds]
    dense, with_token, without = (
        np.concatenate([encode_video(file, encoder).embeddings for file in files]) for encoder in encoders
    )
    gain = (with_token * dense).sum(1).mean() - (without * dense).sum(1).mean()
    assert gain > 0.05
