"""The command line: each command is one call of the library. Nothing heavy is imported before it is needed."""

from everyframe.cli import encode, restore, plan, show_tokens, calibrate, find, audit, distill, evaluate, about, worlds  # noqa: F401, I001  (in the order that --help shows)
from everyframe.cli import evaluate_clips  # noqa: F401  (adds its commands to evaluate)
from everyframe.cli import evaluate_recognition  # noqa: F401
from everyframe.cli import evaluate_grounding  # noqa: F401
from everyframe.cli import evaluate_localization  # noqa: F401
from everyframe.cli import evaluate_description, describe  # noqa: F401
from everyframe.cli import finetune  # noqa: F401
from everyframe.cli import export  # noqa: F401
from everyframe.cli import index, archive  # noqa: F401
from everyframe.cli import serve  # noqa: F401
from everyframe.cli.app import app, main

__all__ = ["app", "main"]
