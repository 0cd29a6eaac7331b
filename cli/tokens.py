"""`gf token …` and `gf enroll-token`: making, listing, rotating, revoking. *Does I/O: HTTP, the terminal, token files.*

A secret is shown once, when it is made; a token whose file lies in this home is renewed there instead.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from cli import output, words
from cli.client import connect
from cli.exit_codes import ExitCode
from cli.home import endpoint, home_dir
from core.errors import FieldProblem, InvalidInput
from core.quantities import QuantityError, parse_seconds
from store.token_files import factory_token_file, person_token_file, write_token

OWN = "self"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class CreateRequest(NamedTuple):
    """What `gf token create` was told."""

    name: str
    roles: tuple[str, ...]
    products: tuple[str, ...]
    factory: str | None
    lifetime: str | None
    expires: bool


def create(request: CreateRequest, *, as_json: bool) -> ExitCode:
    """Make a token."""
    body = {
        "name": request.name,
        "roles": list(request.roles),
        "products": list(request.products) or None,
        "factory": request.factory,
        "lifetime_s": seconds("--lifetime", request.lifetime),
        "expires": request.expires,
    }
    made = connect().post("/fleet/tokens", body)
    if as_json:
        output.document(made)
        return ExitCode.DONE
    output.say(made["secret"])
    output.note(f"{_described(made['token'])}\nthis is the only time that it is shown")
    return ExitCode.DONE


def list_all(*, ended: bool, as_json: bool) -> ExitCode:
    """List the tokens."""
    found = connect().get("/fleet/tokens", ended="true" if ended else None)
    if as_json:
        output.document(found)
        return ExitCode.DONE
    now = datetime.now(UTC)
    rows = [_row(token, now) for token in found["tokens"]]
    output.table(("TOKEN", "NAME", "ROLES", "FOR", "STATE", "EXPIRES", "AGE", "MADE BY"), rows)
    return ExitCode.DONE


def _row(token: dict[str, Any], now: datetime) -> tuple[str, ...]:
    return (
        token["id"],
        token["name"],
        ", ".join(token["roles"]),
        _reach(token),
        token["state"] if not token["reason"] else words.clipped(f"{token['state']}: {token['reason']}", 40),
        _expiry(token, now),
        words.age(token["created_at"], now),
        token["created_by"] or words.UNKNOWN,
    )


def _reach(token: dict[str, Any]) -> str:
    if token["factory"]:
        return f"factory {token['factory']}"
    return "everything" if token["products"] is None else ", ".join(token["products"])


def _expiry(token: dict[str, Any], now: datetime) -> str:
    if token["expires_at"] is None:
        return "never"
    left = (datetime.fromisoformat(token["expires_at"]) - now).total_seconds()
    return f"in {words.span(left)}" if left > 0 else "expired"


def _described(token: dict[str, Any]) -> str:
    return (
        f"{token['id']}  {token['name']}: {', '.join(token['roles'])} for {_reach(token)}, "
        f"expires {_expiry(token, datetime.now(UTC))}"
    )


def rotate(token_id: str, *, grace: str | None, as_json: bool) -> ExitCode:
    """Replace a token; where its file lies in this home, the new one is written there and not shown."""
    client = connect()
    if token_id != OWN and token_id == client.get("/fleet/tokens/self")["id"]:
        token_id = OWN
    grace_s = seconds("--grace", grace)
    body = {} if grace_s is None else {"grace_s": grace_s}
    made = client.post(f"/fleet/tokens/{token_id}/rotate", body)
    file = _file_of(token_id, made["token"])
    if file is not None:
        write_token(file, made["secret"])
    if as_json:
        kept = None if file is not None else made["secret"]
        output.document(made | {"secret": kept, "written_to": None if file is None else str(file)})
    elif file is not None:
        output.say(f"{made['token']['id']} took its place, in {file}")
    else:
        output.say(made["secret"])
        output.note(f"{_described(made['token'])}\nthis is the only time that it is shown")
    return ExitCode.DONE


def _file_of(token_id: str, token: dict[str, Any]) -> Path | None:
    """Return the file of this home that the replaced token lies in."""
    home = home_dir()
    if token_id == OWN:
        return None if os.environ.get("GIGAFACTORY_TOKEN") else person_token_file(home)
    file = factory_token_file(home, token["factory"] or "")
    return file if token["factory"] and file.exists() else None


def revoke(token_ids: Sequence[str], *, reason: str, as_json: bool) -> ExitCode:
    """End tokens, at once and for good."""
    client = connect()
    ended = [client.post(f"/fleet/tokens/{token_id}/revoke", {"reason": reason}) for token_id in token_ids]
    if as_json:
        output.document({"tokens": ended})
        return ExitCode.DONE
    for token in ended:
        output.say(f"{token['id']}  {token['name']} opens nothing any more")
    return ExitCode.DONE


def enrolment(*, name: str | None, lifetime: str | None, as_json: bool) -> ExitCode:
    """Make a token with which one machine may become a factory, once."""
    body = {
        "name": f"enrolment of {name}" if name else "enrolment",
        "roles": ["enrolment"],
        "factory": name,
        "lifetime_s": seconds("--lifetime", lifetime),
    }
    made = connect().post("/fleet/tokens", body)
    target = endpoint(home_dir())
    url = target.url if target else ""
    if as_json:
        output.document(made | {"api": url})
        return ExitCode.DONE
    output.note(
        f"one machine may become {f'factory {name}' if name else 'a factory'} with this, "
        f"{_expiry(made['token'], datetime.now(UTC))} at the latest:"
    )
    output.say(f"./gf enroll --api {url} --token {made['secret']}")
    if urlsplit(url).hostname in LOOPBACK:
        output.note("this API listens on this machine alone; docs/how-to/enroll-a-factory.md says how to let others in")
    return ExitCode.DONE


def seconds(option: str, text: str | None) -> int | None:
    """Return the seconds that an option names; None when it was not given.

    Raises:
        InvalidInput: it names no duration.

    """
    if text is None:
        return None
    try:
        return parse_seconds(text)
    except QuantityError as error:
        problem = FieldProblem(option, error.message, text, error.expected, error.suggestion)
        raise InvalidInput("1 problem in the command", (problem,)) from None
