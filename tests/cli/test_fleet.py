"""Tokens and machines from the command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.api_process import ROOT, ApiProcess
from tests.cli.conftest import Gf, only_document
from tests.waiting import PATIENCE_S


def made(gf: Gf, *arguments: str) -> dict[str, Any]:
    """Make a token and return the document."""
    done = gf("token", "create", "ada", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = only_document(done)
    return document


def status_of(api: ApiProcess, secret: str) -> int:
    """Return what the API answers to a token."""
    return api.call("GET", "/fleet/tokens/self", headers={"Authorization": f"Bearer {secret}"}).status_code


# --- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.req("S2", "C4")
def test_token_is_shown_once_alone_on_stdout(gf: Gf, api: ApiProcess) -> None:
    """The secret can be piped; what it is for goes to stderr; the list never has it."""
    done = gf("token", "create", "ada", "--role", "operator", "--product", "shop", "--lifetime", "1h")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"gfu_[A-Za-z0-9_-]{43}\n", done.stdout)
    secret = done.stdout.strip()
    assert "operator for shop" in done.stderr
    assert "only time" in done.stderr
    assert status_of(api, secret) == 200
    listed = gf("token", "list")
    assert "ada" in listed.stdout
    assert "operator" in listed.stdout
    assert "shop" in listed.stdout
    assert secret not in listed.stdout + gf("token", "list", "--json").stdout


@pytest.mark.req("S2")
def test_token_with_the_right_roles_does_its_work_and_no_more(gf: Gf) -> None:
    """A viewer's command line lists jobs and cannot submit: exit code 5, with the permission that is missing."""
    secret = made(gf, "--role", "viewer")["secret"]
    assert gf("jobs", GIGAFACTORY_TOKEN=secret).returncode == 0
    refused = gf("submit", gf.file(), GIGAFACTORY_TOKEN=secret)
    assert refused.returncode == 5
    assert "jobs.submit" in refused.stderr
    assert gf("token", "list", GIGAFACTORY_TOKEN=secret).returncode == 5


@pytest.mark.req("S2", "F3")
def test_revoked_token_is_gone_from_the_list_and_told_with_its_reason(gf: Gf) -> None:
    """`--ended` still has it; a second token of the same command ends with it."""
    one, two = (made(gf, "--role", "viewer", "--no-expiry") for _ in range(2))
    assert one["token"]["expires_at"] is None
    ids = [one["token"]["id"], two["token"]["id"]]
    ended = only_document(gf("token", "revoke", *ids, "-m", "the laptop was lost", "--json"))
    assert [token["state"] for token in ended["tokens"]] == ["revoked", "revoked"]
    assert not {*ids} & {token["id"] for token in only_document(gf("token", "list", "--json"))["tokens"]}
    assert "the laptop was lost" in gf("token", "list", "--ended").stdout
    assert gf("token", "revoke", "t-000000000000").returncode == 2


@pytest.mark.req("S2", "F3")
def test_own_token_is_renewed_in_its_file(gf: Gf, api: ApiProcess) -> None:
    """Rotating `self`, or its id, writes the new one where it is read, and shows no secret."""
    for by_id in (False, True):
        before = api.token()
        name = api.get("/fleet/tokens/self")["id"] if by_id else "self"
        document = only_document(gf("token", "rotate", name, "--json"))
        assert document["secret"] is None
        assert document["written_to"] == str(api.home / "token")
        assert api.token() != before
        assert (api.home / "token").stat().st_mode & 0o777 == 0o600
        assert [status_of(api, secret) for secret in (before, api.token())] == [200, 200]
        assert gf("jobs").returncode == 0


@pytest.mark.req("S2", "F3")
def test_other_tokens_are_rotated_with_a_grace_and_local_factories_in_their_file(gf: Gf, api: ApiProcess) -> None:
    """A person's new token is shown once; that of a factory of this home is written where its agent reads it."""
    person = made(gf, "--role", "viewer")
    done = gf("token", "rotate", person["token"]["id"], "--grace", "0")
    assert re.fullmatch(r"gfu_[A-Za-z0-9_-]{43}\n", done.stdout)
    assert status_of(api, done.stdout.strip()) == 200

    name = f"f-{uuid.uuid4().hex[:6]}"
    file = api.of_factory(name)
    before = api.token(file)
    assert api.call("GET", "/fleet/tokens/self", token=file).status_code == 200
    tokens = only_document(gf("token", "list", "--json"))["tokens"]
    (token_id,) = [token["id"] for token in tokens if token["factory"] == name]
    said = gf("token", "rotate", token_id)
    assert str(api.home / file) in said.stdout
    assert "gff_" not in said.stdout
    assert api.token(file) != before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--role", "king"), "king"),
        (("--role", "factory"), "body.factory"),
        (("--role", "viewer", "--lifetime", "soon"), "--lifetime"),
        ((), "--role"),
    ],
    ids=str,
)
def test_token_that_makes_no_sense_is_refused(gf: Gf, arguments: tuple[str, ...], said: str) -> None:
    """Exit code 2, with the option or field that is wrong."""
    done = gf("token", "create", "ada", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


@pytest.mark.req("S3", "C4")
def test_audit_log_is_shown_line_by_line(gf: Gf) -> None:
    """Who did what to which token; `--after` goes on where one stopped."""
    token_id = made(gf, "--role", "viewer")["token"]["id"]
    lines = only_document(gf("audit", "--json"))["lines"]
    assert (lines[-1]["type"], lines[-1]["subject"]) == ("token.created", token_id)
    shown = gf("audit", "--after", str(lines[-2]["seq"])).stdout.splitlines()
    assert len(shown) == 1
    assert token_id in shown[0]


# --- machines ---------------------------------------------------------------------------------------------------------


def enroll(home: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run `gf enroll` on a machine with a home of its own, without a terminal."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(home), "GIGAFACTORY_HOME": str(home), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-P", "-m", "cli", "enroll", *arguments],
        env=environment | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.mark.req("F3", "H4")
def test_printed_command_makes_a_bare_machine_a_factory(gf: Gf, api: ApiProcess, tmp_path: Path) -> None:
    """What `enroll-token` prints is all that has to be typed there; the home then knows its fleet and its name."""
    command = gf("enroll-token", "--lifetime", "5m").stdout.split()
    assert command[:4] == ["./gf", "enroll", "--api", api.url]
    home = tmp_path / "machine"
    document = only_document(enroll(home, *command[2:], "--no-start", "--json"))
    name = document["factory"]
    assert (document["home"], document["api"], document["started"]) == (str(home), api.url, False)
    token = (home / "factories" / name / "token").read_text().strip()
    assert status_of(api, token) == 200
    assert (home / "settings.yaml").read_text().count(f"enrolled_as: {name}") == 1
    again = enroll(home, *command[2:], "--no-start")
    assert (again.returncode, "already" in again.stderr) == (5, True)
    spent = enroll(tmp_path / "other", *command[2:], "--no-start", "--json")
    assert spent.returncode == 5
    assert "used to enrol" in json.loads(spent.stdout)["error"]["detail"]
    assert not (tmp_path / "other").exists()


@pytest.mark.req("F3")
def test_enrolment_of_a_name_with_the_token_out_of_the_history(gf: Gf, tmp_path: Path) -> None:
    """The token may come by a variable; a bound name is taken; Temporal's address can be given."""
    made_ = only_document(gf("enroll-token", "--name", "mac-9", "--json"))
    done = enroll(
        tmp_path / "m",
        *("--api", made_["api"], "--temporal", "temporal.example:7233", "--no-start", "--json"),
        GIGAFACTORY_ENROLMENT_TOKEN=made_["secret"],
    )
    document = only_document(done)
    assert (document["factory"], document["temporal"]) == ("mac-9", "temporal.example:7233")
    assert made_["secret"] not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--api", "fleet.example", "--token", "x"), 2, "--api"),
        (("--api", "http://127.0.0.1:9"), 2, "--token"),
        (("--api", "http://127.0.0.1:9", "--token", "gfe_x"), 6, "nothing answers"),
    ],
    ids=str,
)
def test_enrolment_that_cannot_work_leaves_nothing_behind(
    tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    """Wrong address, no token, no API: told at once, and the home stays bare."""
    done = enroll(tmp_path / "m", *arguments)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert not (tmp_path / "m").exists()


def test_home_of_a_stack_is_not_enrolled(gf: Gf, api: ApiProcess) -> None:
    """A machine that runs a stack is told to use another home; the token is not spent."""
    secret = only_document(gf("enroll-token", "--json"))["secret"]
    done = enroll(api.home, "--api", api.url, "--token", secret)
    assert (done.returncode, "GIGAFACTORY_HOME" in done.stderr) == (5, True)
    assert status_of(api, secret) == 403  # good, and for nothing but an enrolment


@pytest.mark.req("F4")
def test_factory_that_was_away_says_so(gf: Gf, api: ApiProcess) -> None:
    """A suspended machine is named in plain words, with when it was noticed."""
    name = f"f-{uuid.uuid4().hex[:6]}"
    body = {"name": name, "instance": "a1", "host": "box", "pid": 1, "stations": []}
    api.call("POST", "/fleet/factories", token=api.of_factory(name), json=body)
    beat = {"instance": "a1", "absences": [{"kind": "suspended", "by_s": 312.4}]}
    api.call("POST", f"/fleet/factories/{name}/heartbeat", token=api.of_factory(name), json=beat)
    assert f"{name}: the machine was suspended for 312 s (noticed " in gf("factories").stderr


@pytest.mark.req("F3", "H4")
def test_retired_factory_is_gone(gf: Gf, api: ApiProcess) -> None:
    """An idle factory goes at once with its token; an unknown one is exit code 2."""
    name = f"f-{uuid.uuid4().hex[:6]}"
    body = {"name": name, "instance": "a1", "host": "box", "pid": 1, "stations": []}
    api.call("POST", "/fleet/factories", token=api.of_factory(name), json=body)
    assert name in gf("factories").stdout
    assert only_document(gf("retire", name, "--json")) == {"name": name, "attempts": 0}
    assert name not in gf("factories").stdout
    assert not (api.home / "factories" / name / "token").exists()
    assert gf("retire", name).returncode == 2


@pytest.mark.req("F3", "F8")
def test_retirement_of_a_busy_factory_drains_and_says_what_is_left(gf: Gf, api: ApiProcess) -> None:
    """After the wait it is exit code 5 and the factory drains; with --force its attempt goes on elsewhere."""
    job_id = gf.granted()
    name = api.get(f"/fleet/jobs/{job_id}")["attempts"][0]["factory"]
    done = gf("retire", name, "--wait", "0")
    assert (done.returncode, "still holds 1 attempt" in done.stderr) == (5, True)
    assert api.get(f"/fleet/factories/{name}")["state"] == "draining"
    assert gf("retire", name, "--force").returncode == 0
    assert api.get(f"/fleet/jobs/{job_id}")["attempts"][0]["lease"] == "lost"


@pytest.mark.req("F2")
def test_attested_capabilities_are_shown_apart(gf: Gf, api: ApiProcess) -> None:
    """The list says what does not count and the command that changes it; withdrawn, it says so again."""
    name = f"f-{uuid.uuid4().hex[:6]}"
    body = {"name": name, "instance": "a1", "host": "box", "pid": 1, "stations": []}
    claims = {"capabilities": ["os:linux", "credential:anthropic"], "declared": ["network:lab"]}
    api.call("POST", "/fleet/factories", token=api.of_factory(name), json=body | claims)
    assert f"gf attest {name} credential:anthropic" in gf("factories").stderr
    done = gf("attest", name, "credential:anthropic", "network:moon")
    assert "credential:anthropic, network:moon" in done.stdout
    assert "does not offer network:moon now" in done.stderr
    listed = gf("factories", "--capabilities")
    shown = listed.stdout.split(f"{name}\n")[1].splitlines()[:3]
    assert shown == [
        "  detected  os:linux, credential:anthropic",
        "  declared  network:lab",
        "  attested  credential:anthropic, network:moon",
    ]
    assert f"{name}: network:lab does not count" in listed.stderr
    withdrawn = only_document(gf("attest", name, "credential:anthropic", "--withdraw", "--json"))
    assert (withdrawn["attested"], withdrawn["unattested"]) == (
        ["network:moon"],
        ["credential:anthropic", "network:lab"],
    )
