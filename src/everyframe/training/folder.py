"""The folder of a run: whose run it is, its checkpoint, log.csv and failures.txt."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from everyframe.training.errors import TrainingError
from everyframe.training.ranks import Ranks

CHECKPOINT, LOG, FAILURES = "checkpoint.pt", "log.csv", "failures.txt"


class RunFolder:
    """What a run leaves behind, so that the same command goes on where it stopped.

    identity: everything that decides the result. first: whether this is the process that writes and speaks; only
    failures.txt is written by all.

    `held` is the state of the run that the folder holds, as it was given to `save`; None in a new folder. Raises
    TrainingError when that run is another one, or its checkpoint is damaged.
    """

    def __init__(self, path: Path, identity: dict[str, Any], *, first: bool, say: Callable[[str], None]) -> None:
        self.path, self._identity, self._first, self._say = path, identity, first, say
        self.held = self._read_checkpoint()
        self._failures = set(self.failures())
        self._said = 0

    def shared(self, ranks: Ranks, device: torch.device) -> dict[str, Any] | None:
        """What is held, once all processes have found the same. Raises TrainingError where they have not."""
        step = 0 if self.held is None else self.held["step"]
        steps = ranks.gather(torch.tensor([step], device=device)).tolist()
        if len(set(steps)) > 1:
            raise TrainingError(
                f"the processes found checkpoints of different steps ({', '.join(map(str, steps))}) in {self.path}: "
                "--out must be a folder that all nodes share"
            )
        return self.held

    def save(self, state: dict[str, Any]) -> None:
        """Write the checkpoint: whole or not at all."""
        if not self._first:
            return
        temporary = self.path / f"{CHECKPOINT}.tmp"
        torch.save({"identity": self._identity, **state}, temporary)
        os.replace(temporary, self.path / CHECKPOINT)

    def log(self, row: dict[str, float]) -> None:
        """Add a line to log.csv; that of step 0 begins it anew."""
        if not self._first:
            return
        file = self.path / LOG
        new = not file.is_file() or row["step"] == 0
        with file.open("w" if new else "a", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(row))
            if new:
                writer.writeheader()
            writer.writerow({name: f"{value:.6g}" for name, value in row.items()})

    def cut_log(self, step: int) -> None:
        """Drop the lines of steps that the checkpoint does not hold."""
        file = self.path / LOG
        if not self._first or not file.is_file():
            return
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines[1:] if int(line.partition(",")[0]) <= step]
        temporary = file.with_suffix(".tmp")
        temporary.write_text("".join([*lines[:1], *kept]), encoding="utf-8")
        os.replace(temporary, file)

    def failures(self) -> list[str]:
        """The lines of failures.txt, those of other processes too."""
        file = self.path / FAILURES
        return sorted(set(file.read_text(encoding="utf-8").splitlines())) if file.is_file() else []

    def failed(self, message: str, *, aloud: bool = True) -> None:
        """A clip cannot be read: write down why, once, and say so the first few times."""
        message = " ".join(message.split())
        if message in self._failures:
            return
        with (self.path / FAILURES).open("a", encoding="utf-8") as stream:
            stream.write(message + "\n")
        self._failures.add(message)
        self._said += aloud
        if aloud and self._said <= 5:
            self._say(f"left out: {message}" + (" (more are listed in failures.txt only)" if self._said == 5 else ""))

    def _read_checkpoint(self) -> dict[str, Any] | None:
        file = self.path / CHECKPOINT
        if not file.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
            held = state["identity"]
        except Exception as error:  # torch, zip and pickle each have their own
            reason = (str(error).strip().splitlines() or [""])[0]
            raise TrainingError(
                f"{file} is not a whole checkpoint of a run ({type(error).__name__}: {reason}); remove it to start anew"
            ) from error
        now = self._identity
        other = [f"{name} {held.get(name)!r}, now {now[name]!r}" for name in now if held.get(name) != now[name]]
        if other:
            raise TrainingError(
                f"{self.path} holds a run with other settings ({'; '.join(other)}): choose another folder, "
                "or remove it to start anew"
            )
        return state
