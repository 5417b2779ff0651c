"""The command line run in the process of the tests, as a process of its own would run it.

A process spends most of its time importing torch. Tests use this wherever the process itself is not the point.
"""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import warnings

import pytest

from everyframe import cli


def everyframe(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Exit code, standard output and standard error of `everyframe`, warnings and errors as users see them."""
    given, out, err = list(map(str, arguments)), io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["everyframe", *given])
        patch.setenv("COLUMNS", "80")
        warnings.simplefilter("default")
        with pytest.raises(SystemExit) as end:
            cli.main()
    code = end.value.code
    return subprocess.CompletedProcess(
        given, code if isinstance(code, int) else int(code is not None), out.getvalue(), err.getvalue()
    )
