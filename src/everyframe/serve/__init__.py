"""The archive in a browser: an HTTP API and a page. Needs the extra "serve"."""

from __future__ import annotations

from collections.abc import Callable

from everyframe.serve.encoding import ENCODERS
from everyframe.serve.settings import Limits, Settings, parse_size

__all__ = ["ENCODERS", "Limits", "Settings", "parse_size", "serve"]


def serve(settings: Settings, *, started: Callable[[str], None] = print) -> None:
    """Serve a library until Ctrl-C or SIGTERM; `started` is called with the address once it answers.

    Raises ImportError where a package of the extra is missing, LibraryError for a folder that is no library, OSError
    where the port cannot be had.
    """
    from everyframe.extras import require

    for module in ("fastapi", "uvicorn", "python_multipart", "lancedb"):
        require(module, extra="serve")
    from everyframe.serve.server import run

    run(settings, started=started)
