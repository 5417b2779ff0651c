"""One process, or several under torchrun: the few things a training step asks of the others."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from everyframe.extras import require


class Ranks:
    """The processes of a run. Without torchrun there is one, and nothing else is needed.

    Several processes talk through Hugging Face Accelerate (gloo on CPUs, nccl on GPUs), which the extra "train"
    brings. Raises ImportError when it is missing.
    """

    def __init__(self, device: torch.device) -> None:
        self.count = number_of_processes()
        self.rank = 0
        self.node = int(os.environ.get("GROUP_RANK", "0"))
        self.first_of_node = int(os.environ.get("LOCAL_RANK", "0")) == 0
        self._accelerator: Any = None
        if self.count > 1:
            accelerate = require("accelerate", extra="train")
            self._accelerator = accelerate.Accelerator(cpu=device.type == "cpu")
            self.rank = self._accelerator.process_index

    @property
    def first(self) -> bool:
        """Is this the process that writes files and speaks?"""
        return self.rank == 0

    def part(self, batch: int) -> slice:
        """This process's rows of a batch. Raises ValueError unless they can be shared out equally."""
        if batch % self.count:
            more = -(-batch // self.count) * self.count
            raise ValueError(
                f"the batch ({batch} clips) must be a multiple of the {self.count} processes; use --batch {more}"
            )
        size = batch // self.count
        return slice(self.rank * size, (self.rank + 1) * size)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, in the order of the batch; no gradient passes."""
        return rows if self._accelerator is None else self._accelerator.gather(rows.contiguous())

    def gather_names(self, names: list[str]) -> list[str]:
        """The names of all processes, one process after the other."""
        if self._accelerator is None:
            return names
        gathered: list[str] = require("accelerate.utils", extra="train").gather_object(names)
        return gathered

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        return tensor if self._accelerator is None else self._accelerator.reduce(tensor, reduction="sum")

    def wait(self) -> None:
        """Until every process is here."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()

    def close(self) -> None:
        """End the process group, so that torchrun's processes leave quietly."""
        if self._accelerator is not None:
            self._accelerator.end_training()
            self._accelerator = None
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


def number_of_processes() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def own_device() -> str | None:
    """The GPU that torchrun meant for this process; None without torchrun or GPUs."""
    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if local is not None and torch.cuda.is_available() else None
