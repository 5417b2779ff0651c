"""The one guard for optional packages: a missing one is named together with the extra that brings it."""

from importlib import import_module
from types import ModuleType


def require(module: str, *, extra: str) -> ModuleType:
    """Import `module`, or raise ImportError that names the extra to install."""
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"{package} is needed for this and is not installed: pip install 'everyframe[{extra}]'"
        ) from error
