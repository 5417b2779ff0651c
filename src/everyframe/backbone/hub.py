"""Finding a model's folder: the one that ships with the package, a local one, or a Hugging Face hub id."""

import hashlib
import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

BUNDLED = "bundled"

_CONFIG_FILES = ["config.json", "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"]
TOKENIZER_FILES = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
]
_SAFETENSORS = ["model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"]
_TORCH = ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class ModelError(ValueError):
    """A model cannot be found, read or used as asked. The message says what to do about it."""


def find_folder(name: str | Path, *, config_only: bool = False) -> Path:
    """The local folder of a model in Hugging Face format.

    `name` is "bundled", a folder, or a hub id such as "openai/clip-vit-base-patch16". A hub id is fetched
    with `huggingface_hub`, so its cache, its HF_HOME and HF_HUB_OFFLINE, and its access tokens are those of
    that library; with `config_only` the weights are not fetched. An existing folder wins over a hub id of the
    same name. Raises ModelError when there is no such model.
    """
    if name == BUNDLED:
        folder = Path(str(resources.files("everyframe") / "assets" / BUNDLED))
        if not (folder / "config.json").is_file():
            raise ModelError(
                'the model "bundled" is missing from this installation of everyframe: reinstall the package, '
                "or give a hub id or a folder"
            )
        return folder
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ModelError(f"{name} is a file: give the folder that holds config.json and the weights")
    if isinstance(name, Path) or not _HUB_ID.fullmatch(name) or ".." in name:
        raise ModelError(f'{name} is neither "bundled", nor a folder that exists, nor a hub id (owner/name)')
    return _download(name, config_only)


def _download(name: str, config_only: bool) -> Path:
    unreachable = _probe(name)
    wanted, offline = _CONFIG_FILES + TOKENIZER_FILES, unreachable is not None
    try:
        if config_only:
            return _snapshot(name, _CONFIG_FILES, offline=offline)
        folder = _snapshot(name, wanted + _SAFETENSORS, offline=offline)
        if not any(folder.glob("*.safetensors")):
            folder = _snapshot(name, wanted + _TORCH, offline=offline)
    except Exception as error:  # the hub client lets through what its HTTP library and the system raise
        raise _explain(name, unreachable or error) from (unreachable or error)
    return folder


def find_tokenizer(name: str | Path) -> Path:
    """The folder of a model's tokenizer: a local one, or a hub id of which only the tokenizer's files are fetched.

    Raises ModelError as `find_folder` does.
    """
    if Path(name).expanduser().is_dir() or isinstance(name, Path) or not _HUB_ID.fullmatch(name):
        return find_folder(name)
    unreachable = _probe(name)
    try:
        return _snapshot(name, [*_CONFIG_FILES, *TOKENIZER_FILES, "vocab.txt"], offline=unreachable is not None)
    except Exception as error:  # as in _download
        raise _explain(name, unreachable or error) from (unreachable or error)


def find_file(name: str, file: str) -> Path:
    """One file of a hub repository, from the hub or its cache.

    Raises FileNotFoundError when the hub says that the repository has no such file, ModelError when neither hub nor
    cache can give it.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    unreachable = _probe(name)
    try:
        return Path(hf_hub_download(name, file, local_files_only=unreachable is not None))
    except Exception as error:  # as in _download
        # A LocalEntryNotFoundError is one too, but says that the hub could not be asked.
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise FileNotFoundError(f"{name} holds no {file}") from error
        raise _explain(name, unreachable or error) from (unreachable or error)


def _probe(name: str) -> Exception | None:
    """Ask the hub for the model, within HF_HUB_ETAG_TIMEOUT seconds (10 by default): None, or why it cannot
    be had.

    `snapshot_download` itself would wait for an answer without a limit.
    """
    from huggingface_hub import HfApi, constants

    try:
        HfApi().model_info(name, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # whatever it is, the cache may still hold the model; if not, it is the reason
        return error
    return None


def _snapshot(name: str, patterns: list[str], *, offline: bool) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=offline))


def _explain(name: str, error: Exception) -> ModelError:
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return ModelError(
            f"{name} is gated on the hub: accept its terms on its page and log in with `hf auth login`, "
            "or give a local folder"
        )
    if isinstance(error, RepositoryNotFoundError):
        return ModelError(
            f"{name} is not on the hub, or is private and you are not logged in: check the id, or give a local folder"
        )
    if isinstance(error, OfflineModeIsEnabled):
        return ModelError(
            f"{name} is neither a local folder nor in the hub cache, and HF_HUB_OFFLINE forbids to fetch it: "
            "unset that, or give a local folder"
        )
    first_line = (str(error).strip().splitlines() or [""])[0]
    return ModelError(
        f"{name} is neither a local folder nor in the hub cache, and the hub cannot be reached "
        f"({type(error).__name__}: {first_line}): check the network, or give a local folder"
    )


def weights_files(folder: Path) -> list[Path]:
    """The weights in a model folder, in name order: safetensors if there are any, else PyTorch files.

    Raises ModelError when there are none, or when an index names a shard that is missing.
    """
    for single, index in (_SAFETENSORS[:2], _TORCH[:2]):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return _shards(folder / index)
    raise ModelError(
        f"{folder} holds no weights: expected {_SAFETENSORS[0]} or {_TORCH[0]}, or an index file of either"
    )


def _shards(index: Path) -> list[Path]:
    import json

    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index} is not an index of weight shards: {error}") from error
    missing = sorted(name for name in names if not (index.parent / name).is_file())
    if missing:
        raise ModelError(f"{index} names shards that are not there: {', '.join(missing)}")
    return [index.parent / name for name in sorted(names)]


def sha256(files: Iterable[Path]) -> str:
    """SHA-256 of the files' bytes, one after the other; for one file, what `sha256sum` prints."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
