"""What all tests share to save time: one tree of commands, one light model, one server of processes."""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Iterator
from typing import Any

import pytest

import checkpoints
from everyframe.backbone import Model, load

# Left to itself Ray asks for a token where one lies in the home directory, which a local cluster of an earlier test
# leaves there; only what starts after a cluster would know of it, and processes of `forks` may have started before.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")


@pytest.fixture(scope="session", autouse=True)
def _one_command_tree() -> Iterator[None]:
    """Typer builds the tree of commands anew for every call of the application: nine tenths of a refused command."""
    import typer.main
    import typer.testing

    build = functools.cache(typer.main.get_command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", build)
        patch.setattr(typer.testing, "_get_command", build)
        yield


@pytest.fixture(scope="session")
def light(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """See `checkpoints.light`."""
    return load(checkpoints.light(tmp_path_factory.mktemp("light")), device="cpu")


@pytest.fixture(scope="session")
def forks() -> Any:
    """Starts processes that have imported everything already. There is one server, so its list serves all tests."""
    context = multiprocessing.get_context("forkserver")
    slow = ["everyframe.training", "everyframe.cli", "transformers.models.clip", "peft", "accelerate"]
    context.set_forkserver_preload([*slow, "pytest", "typer.testing"])
    return context
