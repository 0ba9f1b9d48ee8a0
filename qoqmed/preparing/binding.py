"""`{read: NAME, ..}` of a spec -> one of our functions with its keyword arguments, checked by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from string import Formatter
from typing import Any

from qoqmed.errors import DataError, Problem, near

TYPES: Mapping[str, tuple[tuple[type, ...], str]] = {  # of a parameter -> of its value, and what messages call it
    "Mapping": ((dict,), "mapping"),
    "Sequence": ((list,), "list"),
    "str": ((str,), "text (in quotes where it looks like a number)"),
    "float": ((int, float), "number"),
    "int": ((int,), "whole number"),
    "bool": ((bool,), "true or false"),
}


def bound(known: Mapping[str, Callable[..., Any]], node: Mapping[str, Any], where: str, *given: Any) -> Any:
    """Calls the function that `node` names with `given` and the node's other keys. Raises DataError."""
    name = str(node.get("read", "")) if isinstance(node, dict) else ""
    if name not in known:
        expected = f"read: one of {', '.join(known)}"
        raise DataError(Problem("no such reader", where, repr(name), expected, near(name, list(known))))
    function, arguments = known[name], {key: value for key, value in node.items() if key != "read"}
    parameters = list(inspect.signature(function).parameters.values())[len(given) :]
    names = [parameter.name for parameter in parameters]
    problems = [
        Problem(f"{name} takes no {key!r}", where, mend=near(key, names)) for key in arguments if key not in names
    ]
    needed = [parameter.name for parameter in parameters if parameter.default is inspect.Parameter.empty]
    problems += [Problem(f"{name} needs {key!r}", where) for key in needed if key not in arguments]
    for parameter in parameters:
        value = arguments.get(parameter.name)
        wanted = TYPES.get(str(parameter.annotation).removesuffix(" | None").partition("[")[0])
        if value is not None and wanted is not None and type(value) not in wanted[0]:
            problems.append(Problem(f"{parameter.name!r} is no {wanted[1]}", where, repr(value)[:80]))
    if problems:
        raise DataError(problems)
    return function(*given, **arguments)


def cell(row: Mapping[str, str], column: str, where: str) -> str:
    """A column of a row. Raises DataError where the table has no such column: the layout is another one."""
    if column not in row:
        known = list(row)
        mend = near(column, known) or "is this the folder as it was published? see the spec's layout"
        raise DataError(Problem(f"no column {column!r}", where, expected=", ".join(known)[:200], mend=mend))
    return row[column]


def columns(templates: Iterable[str], where: str) -> list[str]:
    """The columns that templates fill in. Raises DataError for a template that is malformed."""
    found: dict[str, None] = {}
    for template in templates:
        try:  # only parsing tells
            found |= dict.fromkeys(name for _, name, _, _ in Formatter().parse(template) if name is not None)
        except ValueError as error:
            raise DataError(Problem(f"the template is malformed: {error}", where, template)) from error
    return list(found)


def filled(template: str, row: Mapping[str, str], where: str) -> str:
    """`{column}` (also `{column:.2}`, as Python formats texts) -> the row's text. Raises DataError as `cell` does."""
    try:  # the template alone knows which columns it wants
        return template.format_map(row)
    except KeyError as missing:
        return cell(row, str(missing.args[0]), where)
    except (ValueError, IndexError, AttributeError) as error:
        raise DataError(Problem(f"the template is malformed: {error}", where, template)) from error
