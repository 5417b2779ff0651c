"""The command line: each command is one call of the library. Nothing heavy is imported before it is needed."""

from everyframe.cli import encode, restore, plan, calibrate, find, audit, distill, evaluate, about, worlds  # noqa: F401, I001  (in the order that --help shows)
from everyframe.cli.app import app, main

__all__ = ["app", "main"]
