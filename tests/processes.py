"""Real processes that have imported everything already: ranks, as torchrun would start them, and commands."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def start_ranks(forks: Any, count: int, target: Callable[..., None], *arguments: Any) -> list[Any]:
    """Starts `count` processes that run `target(*arguments)`, each with its place among them in the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [forks.Process(target=_as_rank, args=(rank, count, port, target, arguments)) for rank in range(count)]
    for process in processes:
        process.start()
    return processes


def end_of_ranks(processes: list[Any], seconds: float = 120) -> list[int | None]:
    """Their exit codes, once all have ended; one that does not end in time is killed, and its code is None."""
    codes = []
    for process in processes:
        process.join(timeout=seconds)
        codes.append(process.exitcode)
        if process.exitcode is None:
            process.kill()
            process.join()
    return codes


def start_command(forks: Any, errors: Path, *arguments: object) -> Any:
    """Starts `everyframe ARGUMENTS`; the file `errors` takes its standard error, nothing its standard output."""
    process = forks.Process(target=_as_command, args=(str(errors), list(map(str, arguments))))
    process.start()
    return process


def _as_command(errors: str, arguments: list[str]) -> None:
    from everyframe import cli

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may ignore it
    sys.argv = ["everyframe", *arguments]
    cli.main()


def _as_rank(rank: int, count: int, port: int, target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in places.items()} | {"MASTER_ADDR": "127.0.0.1"}
    torch.set_num_threads(1)
    target(*arguments)
