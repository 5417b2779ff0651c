"""Fitting the residual tokenizer: clips from videos, losses, the training loop, what it is worth held out."""

from everyframe.training.data import Clip, Clips, open_clips
from everyframe.training.distillation import Distilled, Recipe, distill
from everyframe.training.errors import TrainingError
from everyframe.training.prompts import prompt_bank
from everyframe.training.publish import check_repository, publish
from everyframe.training.ranks import own_device

__all__ = [
    "Clip",
    "Clips",
    "Distilled",
    "Recipe",
    "TrainingError",
    "check_repository",
    "distill",
    "open_clips",
    "own_device",
    "prompt_bank",
    "publish",
]
