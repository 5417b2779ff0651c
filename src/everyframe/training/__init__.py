"""Fitting: the residual tokenizer to a model (`distill`), and CLIP models to captioned videos (`finetune`)."""

from everyframe.training.data import Clip, Clips, open_clips
from everyframe.training.distillation import Distilled, Recipe, distill
from everyframe.training.errors import TrainingError
from everyframe.training.export import load_tempme
from everyframe.training.finetune import finetune
from everyframe.training.finetune_recipe import FineTuned, FinetuneRecipe
from everyframe.training.pairs import Pair
from everyframe.training.prompts import prompt_bank
from everyframe.training.publish import check_repository, publish
from everyframe.training.ranks import own_device

__all__ = [
    "Clip",
    "Clips",
    "Distilled",
    "FineTuned",
    "FinetuneRecipe",
    "Pair",
    "Recipe",
    "TrainingError",
    "check_repository",
    "distill",
    "finetune",
    "load_tempme",
    "open_clips",
    "own_device",
    "prompt_bank",
    "publish",
]
