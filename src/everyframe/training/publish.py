"""Put a finished tokenizer on the Hugging Face hub, where `ResidualViT(residual="owner/name")` finds it."""

from __future__ import annotations

from pathlib import Path

from everyframe.encoders.tokenizer import PUBLISHED_FILE
from everyframe.training.errors import TrainingError


def publish(folder: str | Path, repository: str, *, private: bool = False) -> str:
    """Upload what `distill` wrote to the hub repository "owner/name", made if it is not there; returns its address.

    Logging in is the hub client's: `hf auth login` or HF_TOKEN. Raises TrainingError when the folder holds no finished
    tokenizer or the hub refuses.
    """
    from huggingface_hub import HfApi

    if not (Path(folder) / PUBLISHED_FILE).is_file():
        raise TrainingError(f"{folder} holds no {PUBLISHED_FILE}: run everyframe distill to its end first")
    try:
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=[PUBLISHED_FILE, "tokenizer.json", "README.md", "log.csv"],
            commit_message="Residual tokenizer fitted with everyframe",
        )
    except Exception as error:  # the hub client lets through what its HTTP library and the system raise
        first_line = (str(error).strip().splitlines() or [""])[0]
        raise TrainingError(
            f"the tokenizer in {folder} is kept, but could not be put on the hub as {repository} "
            f"({type(error).__name__}: {first_line}): check the name, and log in with `hf auth login`"
        ) from error
    return f"{api.endpoint}/{repository}"
