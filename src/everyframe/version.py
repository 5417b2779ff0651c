"""The version that provenance records."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def package_version() -> str:
    """The installed version of everyframe."""
    try:
        return version("everyframe")
    except PackageNotFoundError:
        return "unknown"
