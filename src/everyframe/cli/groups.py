"""Groups of options that several commands share, as dataclasses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints

KEYWORD = inspect.Parameter.KEYWORD_ONLY


def option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """The command as Typer is to see it: in place of each parameter that is a dataclass an option for each field of it.

    Fields that are dataclasses themselves are treated alike. The command gets the dataclasses. Options come in the
    order of the parameters and fields; their names must differ.
    """
    own = inspect.signature(command, eval_str=True).parameters
    groups = {name: parameter.annotation for name, parameter in own.items() if is_dataclass(parameter.annotation)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in own.items():
        parameters += _flat(groups[name]) if name in groups else [parameter.replace(kind=KEYWORD)]

    @wraps(command)
    def wrapper(**values: Any) -> None:
        made = {name: _made(group, values) for name, group in groups.items()}
        command(**made, **values)

    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper


def _flat(group: Any) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        if is_dataclass(hints[field.name]):
            yield from _flat(hints[field.name])
        else:
            yield inspect.Parameter(field.name, KEYWORD, default=field.default, annotation=hints[field.name])


def _made(group: Any, values: dict[str, Any]) -> Any:
    """The group of its options, which are taken from `values`."""
    hints = get_type_hints(group, include_extras=True)
    return group(
        **{
            field.name: _made(hints[field.name], values) if is_dataclass(hints[field.name]) else values.pop(field.name)
            for field in fields(group)
        }
    )
