"""From pydantic's errors to `FieldProblem`s: path, value, what was expected, nearest spelling, line. *Pure.*"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from core.errors import FieldProblem
from core.field_types import listed, nearest

LONGEST_VALUE = 200
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*@")


def field_names(model: type[BaseModel]) -> tuple[str, ...]:
    """Return the names of a model's fields as they are written in files."""
    return tuple(info.alias or name for name, info in model.model_fields.items())


Sections = Mapping[str, type[BaseModel]]


def field_problems(
    error: ValidationError, model: type[BaseModel], sections: Sections, lines: Mapping[str, int], *, reference: str
) -> list[FieldProblem]:
    """Return one problem for each mistake that pydantic found in `model`.

    Args:
        error: What pydantic found.
        model: The model at the top.
        sections: Its fields that have fields themselves.
        lines: Line of each path, empty where there is no file.
        reference: The document that describes the model's fields.

    """
    return [_problem(item, model, sections, lines, reference) for item in error.errors(include_url=False)]


def _problem(
    item: ErrorDetails, model: type[BaseModel], sections: Sections, lines: Mapping[str, int], reference: str
) -> FieldProblem:
    location = item["loc"]
    path = path_of(location)
    line = line_of(path, lines)
    context = item.get("ctx", {})
    if item["type"] == "extra_forbidden":
        options = field_names(model if len(location) == 1 else sections[str(location[0])])
        expected = f"a field that {reference} describes" if len(location) == 1 else listed(options)
        near = nearest(str(location[-1]), options)
        return FieldProblem(path, "is an unknown field", shown(item["input"]), expected, near, line)
    if item["type"] == "missing":
        return FieldProblem(path, "is missing", line=line)
    if item["type"] == "field":
        return FieldProblem(
            path, context["problem"], shown(item["input"]), context["expected"], context["suggestion"], line
        )
    expected = listed(f"`{name}`" for name in field_names(sections[str(location[0])])) if _is_section(item) else ""
    message = "is no mapping" if _is_section(item) else item["msg"][:1].lower() + item["msg"][1:]
    return FieldProblem(path, message, shown(item["input"]), expected and f"a mapping with {expected}", line=line)


def _is_section(item: ErrorDetails) -> bool:
    return item["type"] in {"model_type", "model_attributes_type"}


def path_of(location: Iterable[int | str]) -> str:
    """Return a location as people write it: `retry.on[1]`; what is wrong with a name is said of the name's place."""
    path = ""
    for part in location:
        if part == "[key]":
            continue
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def line_of(path: str, lines: Mapping[str, int]) -> int | None:
    """Return the line of `path`, or of what holds it; None when there is no file."""
    while path:
        if path in lines:
            return lines[path]
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return None


def shown(value: object) -> object:
    """Return `value` as it may be repeated to its author and to a log: short, JSON, without URL credentials."""
    if value is None or isinstance(value, bool | int):
        return value
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    text = _CREDENTIALS.sub("***@", text)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"


def merged(*groups: Iterable[FieldProblem]) -> tuple[FieldProblem, ...]:
    """Return all problems by line, without those that follow from one of an earlier group at the same path."""
    kept: list[FieldProblem] = []
    for group in groups:
        known = {problem.path for problem in kept}
        kept += [problem for problem in group if problem.path not in known]
    return tuple(sorted(kept, key=lambda problem: (problem.line or 0, problem.path)))


def render_problem(problem: FieldProblem) -> str:
    """Return one problem as a line for people: where, what is wrong, what was expected, what may be meant."""
    where = f"line {problem.line}: {problem.path}" if problem.line else problem.path
    value = "" if problem.value in (None, "") else f": `{problem.value}`"
    expected = f"; expected {problem.expected}" if problem.expected else ""
    suggestion = f"; did you mean `{problem.suggestion}`?" if problem.suggestion else ""
    return f"{where} {problem.message}{value}{expected}{suggestion}"
