"""Put a finished tokenizer on the Hugging Face hub, where `ResidualViT(residual="owner/name")` finds it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from everyframe.encoders.tokenizer import PUBLISHED_FILE
from everyframe.training.card import CARD, FACTS, model_card
from everyframe.training.errors import TrainingError


def check_repository(repository: str) -> None:
    """Raise TrainingError unless this may be the name of a hub repository, before anything is done for it."""
    if not re.fullmatch(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}", repository, re.ASCII):
        raise TrainingError(f"a hub repository is written owner/name, got {repository!r}")


def publish(folder: str | Path, repository: str, *, private: bool = False) -> str:
    """Upload what `distill` wrote to the hub repository "owner/name", made if it is not there; returns its address.

    The model card is written anew, with the repository in its code; one that was edited by hand stays as it is.
    private: make a new repository private. Logging in is the hub client's: `hf auth login` or HF_TOKEN.

    Raises TrainingError when the folder holds no finished tokenizer or the hub refuses.
    """
    from huggingface_hub import HfApi

    check_repository(repository)
    if not (Path(folder) / PUBLISHED_FILE).is_file():
        raise TrainingError(f"{folder} holds no {PUBLISHED_FILE}: run everyframe distill to its end first")
    _name_in_card(Path(folder), repository)
    try:
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=[PUBLISHED_FILE, FACTS, CARD, "log.csv"],
            commit_message="Residual tokenizer fitted with everyframe",
        )
    except Exception as error:  # the hub client lets through what its HTTP library and the system raise
        first_line = (str(error).strip().splitlines() or [""])[0]
        raise TrainingError(
            f"the tokenizer in {folder} is kept, but could not be put on the hub as {repository} "
            f"({type(error).__name__}: {first_line}): check the name, and log in with `hf auth login`"
        ) from error
    return f"{api.endpoint}/{repository}"


def _name_in_card(folder: Path, repository: str) -> None:
    card, facts = folder / CARD, folder / FACTS
    if not (card.is_file() and facts.is_file()):
        return
    written = card.read_text(encoding="utf-8")
    named = re.search(r'residual="([^"/\s]+/[^"/\s]+)"', written)  # by an earlier publish
    known = json.loads(facts.read_text(encoding="utf-8"))
    if written == model_card(known, named and named[1]):
        card.write_text(model_card(known, repository), encoding="utf-8")
