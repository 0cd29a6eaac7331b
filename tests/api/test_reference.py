"""The reference pages about the API say what the API does."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from fastapi.routing import APIRoute

from api import problems
from api.app import bare_app, served_routes
from api.auth import PUBLIC_PATHS, permissions_of
from api.openapi import PLACE, openapi_text
from core.errors import GigafactoryError
from core.job import FailureKind
from core.roles import ROLE_PERMISSIONS, Permission, Role
from core.tokens import OLD_PERSON_PREFIX, PERSON_PREFIX, PREFIXES

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


def test_every_path_is_documented_with_the_permission_that_it_needs() -> None:
    """The table of paths is complete, names nothing else, and says what opens each path."""
    documented = {cells[0].strip("`"): cells[1] for cells in rows("api.md") if re.match(r"`(GET|POST|PUT) ", cells[0])}
    served = {
        f"{method} {route.path.replace(':path}', '}')}": in_words(permissions_of(route))
        for route in served_routes()
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    }
    assert documented == served
    assert {path for path, needs in documented.items() if needs == "anyone"} == {f"GET {path}" for path in PUBLIC_PATHS}


def in_words(permissions: Iterable[Permission]) -> str:
    """Return permissions as the pages write them."""
    return ", ".join(f"`{permission}`" for permission in sorted(permissions)) or "anyone"


def test_every_role_is_documented_with_its_permissions() -> None:
    """The table of roles says what each has; a viewer's are told once."""
    looks = ROLE_PERMISSIONS[Role.VIEWER]
    documented = {cells[0].strip("`"): cells[1] for cells in rows("tokens.md") if cells[0].strip("`") in list(Role)}
    assert set(documented) == set(Role)
    for role, granted in ROLE_PERMISSIONS.items():
        told = {Permission(name) for name in re.findall(r"`([a-z.]+)`", documented[role])}
        inherited = looks if "those of a viewer" in documented[role] else frozenset()
        assert told | inherited == granted, role
        assert not told & inherited, role


def test_every_permission_and_prefix_is_documented() -> None:
    """What each permission opens and whose each prefix is stands in the reference, and nothing that does not exist."""
    first = {cells[0].strip("`") for cells in rows("tokens.md")}
    assert {name for name in first if re.fullmatch(r"[a-z]+\.[a-z]+", name)} == set(Permission)
    assert {name for name in first if name.endswith("_")} == {PERSON_PREFIX, OLD_PERSON_PREFIX, *PREFIXES.values()}


def test_every_operation_says_what_it_does_and_how_it_fails() -> None:
    """Each operation has a description and the problem document as its default answer."""
    for path, methods in bare_app().openapi()["paths"].items():
        for method, operation in methods.items():
            assert operation.get("description"), (method, path)
            assert list(operation["responses"]["default"]["content"]) == [problems.MEDIA_TYPE], (method, path)
            assert "422" not in operation["responses"], (method, path)


def test_links_of_the_pages_lead_somewhere() -> None:
    """Relative links of these pages point to pages that exist."""
    for page in ("api.md", "cli.md", "errors.md", "tokens.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (REFERENCE / page).read_text()):
            assert (REFERENCE / target).exists(), (page, target)


def test_reference_lies_where_the_writer_puts_it() -> None:
    """The place is in the checkout's reference."""
    assert Path(__file__).resolve().parents[2] / "docs" / "reference" / "openapi.json" == PLACE
