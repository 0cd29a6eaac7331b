"""Commands that change the fleet: enroll, retire, attest; and the audit log. *Does I/O: HTTP, terminal, processes.*"""

from __future__ import annotations

import getpass
import os
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlsplit

from cli import output, words
from cli.client import Client, connect
from cli.exit_codes import ExitCode
from cli.home import Endpoint, home_dir, stack_document
from cli.tokens import LOOPBACK, seconds
from core.errors import Conflict, FieldProblem, InvalidInput
from core.version import VERSION
from store.token_files import factory_token_file
from workers import enrolled_home, stack_start

POLL_S: Final = 1.0
TOKEN_VARIABLE: Final = "GIGAFACTORY_ENROLMENT_TOKEN"  # noqa: S105 - a name


class EnrolRequest(NamedTuple):
    """What `gf enroll` was told."""

    api: str
    token: str | None
    name: str | None
    temporal: str | None
    start: bool


# --- a machine comes --------------------------------------------------------------------------------------------------


def enroll(request: EnrolRequest, *, as_json: bool) -> ExitCode:
    """Make this machine a factory of the fleet at `request.api`, and start its agent."""
    home = home_dir()
    api = _checked_url(request.api)
    enrolled_home.check_bare(home)  # before the token is spent
    body = {"host": socket.gethostname(), "version": VERSION, "name": request.name}
    answer = Client(Endpoint(api, _enrolment_token(request.token))).post("/fleet/enrol", body)
    temporal = answer["temporal"] | ({"address": request.temporal, "gateway_url": ""} if request.temporal else {})
    factory = answer["factory"]
    enrolled_home.settle(home, api_url=api, factory=factory, secret=answer["secret"], temporal=temporal)
    output.note(f"this machine is factory {factory} of {api}; its home is {home}")
    way = temporal["gateway_url"] or temporal["address"]
    reachable = _reachable(way, api)
    if not reachable:
        output.note(
            f"it cannot reach Temporal yet: it was told {way or 'nothing'}. Write `temporal_address: HOST:PORT` into "
            f"{home / 'settings.yaml'}, then `gf up --detach` (docs/how-to/enroll-a-factory.md)"
        )
    started = request.start and reachable
    if started:
        stack_start.ensure_up(home, output.note)
    if as_json:
        output.document({"factory": factory, "home": str(home), "api": api, "temporal": way, "started": started})
    elif started:
        output.say(
            f"factory {factory} is at work; `gf status` shows it, `gf down` stops it, `gf up --detach` starts it"
        )
    elif reachable:
        output.say(f"start it with: gf up --detach    (GIGAFACTORY_HOME={home})")
    return ExitCode.DONE


def _checked_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        problem = FieldProblem("--api", "is no address of an API", url, "http://HOST:PORT or https://HOST")
        raise InvalidInput("1 problem in the command", (problem,))
    if parts.scheme == "http" and parts.hostname not in LOOPBACK:
        output.note(f"warning: {url} is not encrypted; tokens can be read on the way")
    return url.rstrip("/")


def _enrolment_token(given: str | None) -> str:
    """Return the token: of the option, else of the variable, else typed; the last two leave no trace in a history."""
    token = given or os.environ.get(TOKEN_VARIABLE, "")
    if not token and sys.stdin.isatty():
        token = getpass.getpass("enrolment token: ")
    if not token:
        problem = FieldProblem("--token", "is missing", expected="what `gf enroll-token` printed")
        raise InvalidInput("1 problem in the command", (problem,))
    return token.strip()


def _reachable(way: str, api: str) -> bool:
    """Return whether the way to Temporal may work from here: loopback of another machine does not."""
    host = urlsplit(way if "://" in way else f"//{way}").hostname
    return bool(host) and (host not in LOOPBACK or urlsplit(api).hostname in LOOPBACK)


# --- a machine goes ---------------------------------------------------------------------------------------------------


def retire(factory: str, *, force: bool, wait: str, as_json: bool) -> ExitCode:
    """Take a factory away for good: drain it, wait until it holds nothing any more, revoke its tokens."""
    _refuse_if_running_here(factory)
    client, deadline = connect(), time.monotonic() + (seconds("--wait", wait) or 0)
    told = 0
    while True:
        answer = client.post(_path(factory, "/retire"), {"force": force})
        held = answer["attempts"]
        if not held or time.monotonic() >= deadline:
            break
        if held != told:
            output.note(f"{factory} drains: {words.plural(held, 'attempt')} still running there")
            told = held
        time.sleep(POLL_S)
    if held:
        raise Conflict(
            f"factory {factory} still holds {words.plural(held, 'attempt')}; it takes no further ones",
            hint=f"`gf retire {factory}` again later, or with --force: they go on elsewhere from their last checkpoint",
        )
    factory_token_file(home_dir(), factory).unlink(missing_ok=True)
    if as_json:
        output.document(answer)
    else:
        output.say(f"factory {factory} is gone; its tokens open nothing any more")
    return ExitCode.DONE


def _refuse_if_running_here(factory: str) -> None:
    parts = stack_document(home_dir()).get("parts", ())
    if any(part.get("kind") == "factory" and part.get("name") == factory for part in parts):
        raise Conflict(
            f"{factory} is a local factory of the stack that runs here, which would start it again",
            hint="`gf up --factories N` changes how many there are; retire it when it has stopped",
        )


# --- trust ------------------------------------------------------------------------------------------------------------


def attest(factory: str, capabilities: Sequence[str], *, withdraw: bool, as_json: bool) -> ExitCode:
    """Vouch for capabilities of a factory, or withdraw that."""
    body = {"capabilities": list(capabilities), "withdraw": withdraw}
    document = connect().post(_path(factory, "/attestations"), body)
    if as_json:
        output.document(document)
        return ExitCode.DONE
    output.say(f"attested for {factory}: {', '.join(document['attested']) or 'nothing'}")
    claimed = {*document["capabilities"], *document["declared"]}
    for capability in capabilities:
        if not withdraw and capability not in claimed:
            output.note(f"{factory} does not offer {capability} now; it counts once it is detected or declared there")
    return ExitCode.DONE


def audit(*, after: int, limit: int, as_json: bool) -> ExitCode:
    """Show who did what about tokens, factories and trust."""
    found = connect().get("/fleet/audit", after=after, limit=limit)
    if as_json:
        output.document(found)
        return ExitCode.DONE
    for line in found["lines"]:
        output.say(_audit_line(line))
    return ExitCode.DONE


def _audit_line(line: dict[str, Any]) -> str:
    who = line["actor"] or "the stack"
    return f"{line['seq']:>5}  {line['at'][:19]}Z  {who}  {line['type']}  {line['subject']}  {line['message']}"


def _path(factory: str, rest: str) -> str:
    return f"/fleet/factories/{quote(factory, safe='')}{rest}"
