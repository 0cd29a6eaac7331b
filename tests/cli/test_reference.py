"""The reference page of the command line says what the command line does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from cli.app import RoleName, StageName, app
from cli.exit_codes import ExitCode, of_status
from core.errors import GigafactoryError
from core.job import Stage
from core.roles import Role

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "cli.md").read_text()


def commands_of(group: Any) -> Iterator[tuple[str, Any]]:
    """Yield every command with its name as it is typed; those of a group bear its name first."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from ((f"{name} {inner}", found) for inner, found in commands_of(command))
        else:
            yield name, command


COMMANDS: dict[str, Any] = dict(commands_of(typer.main.get_command(app)))


def section(command: str) -> str:
    """Return the part of the page about one command."""
    found = re.search(rf"^### gf {command}\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"docs/reference/cli.md has no section about gf {command}"
    return found[1]


def options(command: str) -> Iterator[str]:
    """Yield every spelling of every option of a command."""
    for parameter in COMMANDS[command].params:
        yield from (name for name in (*parameter.opts, *parameter.secondary_opts) if name.startswith("-"))


@pytest.mark.parametrize("command", COMMANDS)
def test_command_and_its_options_are_documented(command: str) -> None:
    """Each command has a section, and each of its options stands in it."""
    text = section(command)
    missing = [name for name in options(command) if not re.search(rf"`{re.escape(name)}[` ]", text)]
    assert missing == []
    assert COMMANDS[command].help


@pytest.mark.parametrize("command", COMMANDS)
def test_documented_options_exist(command: str) -> None:
    """The list of options in a section names nothing else."""
    listed = re.findall(r"`(--[a-z-]+)", "\n".join(line for line in section(command).splitlines() if line[:3] == "- `"))
    assert set(listed) <= {*options(command)}


def test_page_names_no_other_command() -> None:
    """Sections and commands are the same."""
    assert set(re.findall(r"^### gf (.+)$", PAGE, re.MULTILINE)) == set(COMMANDS)


def test_every_exit_code_is_documented() -> None:
    """The table has every code with its name, and no other of ours."""
    documented = dict(re.findall(r"^\| (\d+) \| `(\w+)` \|", PAGE, re.MULTILINE))
    assert documented == {str(int(code)): code.name for code in ExitCode}


def test_every_command_of_the_contract_is_there() -> None:
    """The commands that the product promises."""
    promised = "up down status run submit jobs job logs events why explain ship approve reject requeue cancel pause"
    fleet = {"enroll", "enroll-token", "retire", "attest", "audit"}
    tokens = {"token create", "token list", "token rotate", "token revoke"}
    others = {
        "dag",
        "unblock",
        "why-not",
        "resume",
        "recover",
        "factories",
        "doctor",
        "demo",
        "bench",
        "test",
        "version",
    }
    stopping = {"halt", "unhalt", "halts", "limits", "limit", "drain", "undrain", "release"}
    assert {*promised.split(), *others, *fleet, *stopping, *tokens} == set(COMMANDS)


def test_stage_names_are_those_of_the_core() -> None:
    """The quick copy of the stages is a true one."""
    assert [str(name) for name in StageName] == [str(stage) for stage in Stage]


def test_role_names_are_those_of_the_core() -> None:
    """The quick copy of the roles is a true one; a token for an enrolment has a command of its own."""
    assert [str(name) for name in RoleName] == [str(role) for role in Role if role != Role.ENROLMENT]


def test_every_error_has_an_exit_code() -> None:
    """Each status that an expected error can have leads to a code that says something."""

    def statuses(cls: type[GigafactoryError]) -> set[int]:
        return {cls.status}.union(*(statuses(child) for child in cls.__subclasses__()))

    meant = {status: of_status(status) for status in statuses(GigafactoryError)}
    assert [status for status, code in meant.items() if code == ExitCode.UNEXPECTED] == [500]
