"""How a library of an older format becomes one of the present format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# From format k to k + 1, given the LanceDB connection. A step may be repeated after a kill, so it must bear that:
# the number in `about` is raised in a commit of its own, after the step.
MIGRATIONS: dict[int, Callable[[Any], None]] = {}
