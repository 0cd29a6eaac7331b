"""The API against its own description: made-up requests of every operation, good ones and bad ones.

Checked are: no server error, only documented status codes, media types and shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api.app import bare_app
from tests.api_process import ApiProcess, running_api

schema = schemathesis.openapi.from_dict(bare_app().openapi())
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    """Return an API process."""
    with running_api(tmp_path_factory.mktemp("api") / "home") as running:
        yield running


@schema.parametrize()
@settings(
    max_examples=12,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)
def test_operation_keeps_to_its_description(case: Case[Any], api: ApiProcess) -> None:
    """Whatever is sent, the answer is one that the description has."""
    for_machines = ("/report", "/artifacts", "/death", "/heartbeat")
    machine = case.path.startswith("/fleet/attempts") or case.path.endswith(for_machines)
    machine |= (case.path, case.method) == ("/fleet/factories", "POST")
    side = api.of_factory("brisk-otter") if machine else "token"
    case.headers.pop("authorization", None)
    shown = a_token(api) if case.path.endswith("/tokens/self/rotate") else api.token(side)
    answer = case.call(base_url=api.url, headers={"Authorization": f"Bearer {shown}"}, timeout=120)
    if answer.status_code == 503 and case.path.endswith(("/actions", "/recover")):
        return  # no Temporal here, and that is documented
    case.validate_response(answer, checks=CHECKS)


def a_token(api: ApiProcess) -> str:
    """Return a token that may be used up: a replaced one would open nothing for all cases that come after."""
    secret: str = api.call("POST", "/fleet/tokens", json={"name": "spare", "roles": ["admin"]}).json()["secret"]
    return secret
