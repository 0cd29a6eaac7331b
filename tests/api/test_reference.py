"""The reference pages about the API say what the API does."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from api import problems
from api.app import bare_app
from api.auth import PUBLIC_PATHS
from api.openapi import PLACE, openapi_text
from core.errors import GigafactoryError
from core.job import FailureKind

REFERENCE = PLACE.parent
OTHER_ERRORS = ("workers.stack_start", "workers.temporal_server")
"""Modules that define expected errors of their own."""


def rows(page: str) -> Iterator[tuple[str, ...]]:
    """Yield the cells of every table row of a page."""
    for line in (REFERENCE / page).read_text().splitlines():
        if line.startswith("|") and not line.startswith("|---"):
            yield tuple(cell.strip() for cell in line.strip("|").split("|"))


def error_classes(root: type[GigafactoryError] = GigafactoryError) -> Iterator[type[GigafactoryError]]:
    """Yield every class of expected errors."""
    yield root
    for child in root.__subclasses__():
        yield from error_classes(child)


def test_openapi_document_is_the_one_in_the_reference() -> None:
    """`docs/reference/openapi.json` is what this version serves; `python -P -m api.openapi` writes it."""
    assert PLACE.read_text() == openapi_text(), "run `python -P -m api.openapi` and look at the difference"


def test_every_error_code_is_documented_with_status_fault_and_retry() -> None:
    """Each code that a program may meet stands in the reference, with the truth about it."""
    documented = {cells[0].strip("`"): cells[1:] for cells in rows("errors.md") if len(cells) != 3}
    for name in OTHER_ERRORS:
        importlib.import_module(name)
    for cls in error_classes():
        assert cls.code in documented, cls
        if cls.__module__ == "core.errors":
            known = (str(cls.status), cls.fault, "yes" if cls.retryable else "no")
            assert documented[cls.code][:3] == known, cls
    for status, (code, fault, _) in problems.HTTP_CODES.items():
        assert documented[code][:3] == (str(status), fault, "no")


def test_every_documented_code_exists() -> None:
    """No code is documented that nothing can answer."""
    in_code = {cls.code for cls in error_classes()} | {code for code, _, _ in problems.HTTP_CODES.values()}
    documented = {cells[0].strip("`") for cells in rows("errors.md") if len(cells) == 5 and cells[1].isdigit()}
    assert documented <= in_code


@pytest.mark.parametrize("kind", FailureKind)
def test_every_kind_of_failure_is_documented(kind: FailureKind) -> None:
    """Each outcome that an attempt can have stands in the reference."""
    assert any(cells[0] == f"`{kind}`" for cells in rows("errors.md"))


def test_every_path_is_documented_with_who_may_use_it() -> None:
    """The table of paths is complete, names nothing else, and says whose token opens each path."""
    documented = {cells[0].strip("`"): cells[1] for cells in rows("api.md") if re.match(r"`(GET|POST|PUT) ", cells[0])}
    served = {
        f"{method.upper()} {path}" for path, methods in bare_app().openapi()["paths"].items() for method in methods
    }
    assert set(documented) == served | {"GET /fleet/openapi.json"}
    assert {path for path, who in documented.items() if who == "anyone"} == {f"GET {path}" for path in PUBLIC_PATHS}


def test_every_operation_says_what_it_does_and_how_it_fails() -> None:
    """Each operation has a description and the problem document as its default answer."""
    for path, methods in bare_app().openapi()["paths"].items():
        for method, operation in methods.items():
            assert operation.get("description"), (method, path)
            assert list(operation["responses"]["default"]["content"]) == [problems.MEDIA_TYPE], (method, path)
            assert "422" not in operation["responses"], (method, path)


def test_links_of_the_pages_lead_somewhere() -> None:
    """Relative links of the API's, the command line's and the errors' page point to pages that exist."""
    for page in ("api.md", "cli.md", "errors.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (REFERENCE / page).read_text()):
            assert (REFERENCE / target).exists(), (page, target)


def test_reference_lies_where_the_writer_puts_it() -> None:
    """The place is in the checkout's reference."""
    assert Path(__file__).resolve().parents[2] / "docs" / "reference" / "openapi.json" == PLACE
