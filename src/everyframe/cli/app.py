"""The Typer application, and what becomes of errors."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated, Any

import typer

from everyframe import console

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Features of every frame of a video for the price of a few: encode, search, ground.",
)


def main() -> None:
    """Entry point: user errors become one line on standard error and exit code 1; Ctrl-C exits with 130."""
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    # Threads that wait shall sleep: spinning, beside other busy processes, they slow each other down severalfold, and
    # alone they gain little. OpenMP reads it when torch is loaded, and only then.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        app()
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != 130:  # 130 is what Typer makes of Ctrl-C
            raise
        console.say("everyframe: interrupted; finished files are kept", style="red", error=True)
        sys.exit(130)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        # torch's out-of-memory errors are RuntimeErrors; any other one is a bug, and its traceback is wanted.
        if isinstance(error, RuntimeError):
            if "out of memory" not in str(error) and "not enough memory" not in str(error):
                raise
            error = RuntimeError(
                "the device ran out of memory; use a smaller model, another --device or, where this command has them, "
                "a smaller --batch-size or --dtype bfloat16"
            )
        console.say(f"everyframe: {error}", style="red", error=True)
        sys.exit(1)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        from everyframe.version import package_version

        print(package_version())
        raise typer.Exit


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    if category is UserWarning:  # ours; the rest is libraries talking to developers
        console.say(f"warning: {message}", style="yellow", error=True)
