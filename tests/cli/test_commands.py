"""What each command shows, the one document that `--json` gives, and the exit code it leaves with."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from cli.exit_codes import ExitCode
from core.job import Stage
from core.version import VERSION
from tests.cli.conftest import CLI, DIFF, Gf, only_document
from tests.waiting import PATIENCE_S

Nowhere = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def waiting(gf: Gf) -> str:
    """Return a job that no factory can take."""
    return gf.submit("capabilities: [has:xcode]")


# --- asking -----------------------------------------------------------------------------------------------------------


def test_submit_gives_the_ids(gf: Gf) -> None:
    """One document with an id for each file; for people a line each, notices on stderr."""
    files = [gf.file(name="a.md"), gf.file("budget: {usd: 3}", name="b.md")]
    as_json = gf("submit", *files, "--json")
    jobs = only_document(as_json)["jobs"]
    assert [job["title"] for job in jobs] == ["Say hi", "Say hi"]
    assert "budget" in as_json.stderr
    for_people = gf("submit", *files)
    assert len(for_people.stdout.splitlines()) == 2
    assert for_people.stdout.startswith("j-")


def test_submit_reads_standard_input(gf: Gf) -> None:
    """`-` is a job file on stdin."""
    text = (gf.folder / gf.file()).read_text()
    done = subprocess.run(
        [*CLI, "submit", "-", "--json"],
        env=gf.api.environment(),
        input=text,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert len(only_document(done)["jobs"]) == 1


def test_jobs_lists_and_pages(gf: Gf) -> None:
    """The list has the jobs with what they wait for; limit and cursor page it; stage and product filter it."""
    older, newer = (gf.submit("capabilities: [has:xcode]", "product: paged") for _ in range(2))
    ours = ("jobs", "--product", "paged", "--json")
    first = only_document(gf(*ours, "--limit", "1"))
    second = only_document(gf(*ours, "--limit", "1", "--cursor", first["next_cursor"]))
    assert [first["jobs"][0]["id"], second["jobs"][0]["id"]] == [newer, older]
    assert first["jobs"][0]["waiting"]["kind"] == "capacity"
    assert second["next_cursor"] is None
    assert only_document(gf(*ours, "--stage", "shipped", "--stage", "failed"))["jobs"] == []
    shown = gf("jobs").stdout.splitlines()
    assert shown[0].split() == ["JOB", "STAGE", "TITLE", "WHERE", "WAITS", "FOR", "AGE"]
    assert any(line.startswith(newer) for line in shown)


def test_job_shows_the_document(gf: Gf, waiting: str) -> None:
    """As JSON the API's document; for people its facts, what it waits for and the next command."""
    document = only_document(gf("job", waiting, "--json"))
    promised = {"id", "product_id", "stage", "conditions", "attempts", "commits", "tokens", "cost"}
    assert promised <= document.keys()
    shown = gf("job", waiting).stdout
    assert shown.startswith(f"{waiting}  queued  Say hi\n")
    assert f"gf why {waiting}" in shown


def test_diff_of_a_job(gf: Gf) -> None:
    """`--diff` gives the candidate's diff as it is, or in a document."""
    job_id = gf.granted()
    gf.reach_the_gate(job_id)
    assert gf("job", job_id, "--diff").stdout == DIFF
    assert only_document(gf("job", job_id, "--diff", "--json"))["diff"] == DIFF


def test_why_says_what_is_missing(gf: Gf, waiting: str) -> None:
    """The missing capability is named; the document carries the complete explanation."""
    assert "has:xcode" in gf("why", waiting).stdout
    document = only_document(gf("why", waiting, "--json"))
    assert document["explanation"]["verdict"] == "never"


def test_why_not_names_the_reasons_of_one_factory(gf: Gf, waiting: str) -> None:
    """Reasons and the smallest change for that factory, as lines and as a document; an unknown one is a mistake."""
    factory = gf.factory("elsewhere")
    shown = gf("why-not", waiting, factory).stdout
    assert f"{factory} can never take {waiting} as it is" in shown
    assert f"smallest change: drop has:xcode and add engine shell to {factory}" in shown
    document = only_document(gf("why-not", waiting, factory, "--json"))
    assert document["answer"]["verdict"] == "never"
    assert gf("why-not", waiting, "nowhere").returncode == ExitCode.USAGE


def test_events_tell_the_story(gf: Gf, waiting: str) -> None:
    """Every event once, for people a line each."""
    events = only_document(gf("events", waiting, "--json"))["events"]
    assert [event["type"] for event in events][:1] == ["job.submitted"]
    assert len(gf("events", waiting).stdout.splitlines()) == len(events)


def test_logs_tell_what_was_printed(gf: Gf) -> None:
    """All lines, in order; by attempt if asked."""
    job_id = gf.granted()
    gf.print_lines(job_id, *(f"line {n}" for n in range(1500)))
    lines = only_document(gf("logs", job_id, "--json"))["lines"]
    assert [line["text"] for line in lines] == [f"line {n}" for n in range(1500)]
    assert only_document(gf("logs", job_id, "--epoch", "2", "--json"))["lines"] == []
    assert gf("logs", job_id).stdout.splitlines()[-1].endswith("line 1499")


def test_factories_have_name_state_pid_and_stations(gf: Gf) -> None:
    """What scripts and kill tests need of a factory."""
    gf.factory("shell")
    document = only_document(gf("factories", "--json"))
    assert {"name", "state", "pid", "stations"} <= document["factories"][0].keys()
    assert "shell" in gf("factories").stdout


def test_version_works_with_and_without_a_stack(gf: Gf, nowhere: Nowhere) -> None:
    """The command line's own version is always known."""
    assert only_document(gf("version", "--json")) == {"version": VERSION, "stack": VERSION}
    assert only_document(nowhere("version", "--json")) == {"version": VERSION, "stack": None}
    assert nowhere("version").stdout == f"gf {VERSION}\n"


def test_explain_shows_where_values_come_from(gf: Gf, nowhere: Nowhere) -> None:
    """Every field with its source; with a stack also repository and routing, without one those are null."""
    file = gf.file("profile: solo", "ship: base", "capabilities: [has:xcode]")
    document = only_document(gf("explain", file, "--json"))
    sources = {row["field"]: row["source"] for row in document["fields"]}
    assert (sources["ship"], sources["timeout"]) == ("job", "default")
    assert document["repository"]["base"] == "main"
    assert document["routing"]["verdict"] == "never"
    alone = nowhere("explain", file, "--json")
    assert only_document(alone)["fields"] == document["fields"]
    assert only_document(alone)["repository"] is None
    shown = gf("explain", file)
    assert "has:xcode" in shown.stdout
    assert shown.returncode == ExitCode.DONE


# --- exit codes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("jobs",),
        ("job", "j-1"),
        ("logs", "j-1"),
        ("logs", "-f", "j-1"),
        ("events", "-f", "j-1"),
        ("why", "j-1"),
        ("why-not", "j-1", "f-1"),
        ("factories",),
        ("ship", "j-1"),
        ("cancel", "j-1"),
    ],
    ids=" ".join,
)
def test_without_a_stack_commands_say_so_with_6(nowhere: Nowhere, arguments: tuple[str, ...]) -> None:
    """No traceback: what is missing, how to start it, and an error document for scripts."""
    done = nowhere(*arguments, "--json")
    assert done.returncode == ExitCode.NOT_RUNNING
    assert only_document(done)["error"]["code"] == "not_running"
    assert "gf up" in done.stderr
    assert "Traceback" not in done.stderr


def test_dead_stack_is_not_running_either(nowhere: Nowhere, tmp_path: Any) -> None:
    """A stack.json that a killed stack left behind names an API that does not answer."""
    run = tmp_path / "nowhere" / "run"
    run.mkdir(parents=True)
    (run / "stack.json").write_text(json.dumps({"urls": {"api": "http://127.0.0.1:1"}}))
    done = nowhere("jobs", "--json")
    assert done.returncode == ExitCode.NOT_RUNNING
    assert "127.0.0.1:1" in only_document(done)["error"]["detail"]


@pytest.mark.parametrize(
    "arguments",
    [("nonsense",), ("job",), ("jobs", "--limit", "0"), ("jobs", "--stage", "done"), ("submit",), ("ship",), ()],
    ids=lambda arguments: " ".join(arguments) or "nothing",
)
def test_wrong_usage_is_2_and_leaves_stdout_alone(gf: Gf, arguments: tuple[str, ...]) -> None:
    """Usage errors go to stderr."""
    done = gf(*arguments)
    assert done.returncode == ExitCode.USAGE
    if arguments:
        assert done.stdout == ""


@pytest.mark.parametrize("command", ["job", "logs", "events", "why", "ship", "cancel"])
def test_unknown_job_is_2(gf: Gf, command: str) -> None:
    """A name that does not exist is a mistake of the caller; the problem is the document."""
    done = gf(command, "j-0000000000", "--json")
    assert done.returncode == ExitCode.USAGE
    assert only_document(done)["error"]["code"] == "not_found"
    assert "there is no job" in done.stderr


def test_invalid_file_is_2_with_every_field(gf: Gf) -> None:
    """Message, each field with line and suggestion, and a hint; nothing is submitted."""
    before = len(only_document(gf("jobs", "--json"))["jobs"])
    for command in ("submit", "explain", "run"):
        done = gf(command, gf.file("timeout: soon", "verfy: x"), "--json")
        assert done.returncode == ExitCode.USAGE, command
        paths = {item["path"] for item in only_document(done)["error"]["errors"]}
        assert paths == {"timeout", "verfy"}
        assert "line 4, timeout" in done.stderr
        assert "did you mean 'verify'" in done.stderr
        assert "Traceback" not in done.stderr
    assert len(only_document(gf("jobs", "--json"))["jobs"]) == before


def test_unreadable_file_is_2(gf: Gf) -> None:
    """A file that is not there, or is no text, is told by name."""
    (gf.folder / "picture.md").write_bytes(b"\xff\xfe\x00")
    for command in ("submit", "explain", "run"):
        for name in ("nothing.md", "picture.md"):
            done = gf(command, name, "--json")
            assert done.returncode == ExitCode.USAGE
            assert name in only_document(done)["error"]["detail"]


def test_wrong_token_is_5(gf: Gf) -> None:
    """A refused token is a refusal, with where to find the right one."""
    done = gf("jobs", "--json", GIGAFACTORY_TOKEN="gf_wrong")
    assert done.returncode == ExitCode.REFUSED
    assert only_document(done)["error"]["code"] == "unauthenticated"


def test_conflict_is_5_and_names_the_fields(gf: Gf) -> None:
    """Other content under a taken key."""
    assert gf("submit", gf.file(), "--idempotency-key", "k").returncode == 0
    again = gf("submit", gf.file(), "--idempotency-key", "k")
    assert "submitted before" in again.stdout
    done = gf("submit", gf.file("timeout: 3m"), "--idempotency-key", "k", "--json")
    assert done.returncode == ExitCode.REFUSED
    assert "timeout" in str(only_document(done)["error"]["differs"])
    assert "timeout" in done.stderr


def test_action_while_temporal_is_away_is_6(gf: Gf, waiting: str) -> None:
    """The part that is away is named."""
    done = gf("pause", waiting, "--json")
    assert done.returncode == ExitCode.NOT_RUNNING
    assert "Temporal" in only_document(done)["error"]["detail"]


def test_action_on_several_jobs_tries_each(gf: Gf, waiting: str) -> None:
    """The first refusal gives the exit code; every job has its answer."""
    done = gf("cancel", "j-0000000000", waiting, "--json")
    assert done.returncode == ExitCode.USAGE
    assert [job["id"] for job in only_document(done)["jobs"]] == ["j-0000000000", waiting]


def test_reader_that_goes_away_is_no_error(gf: Gf) -> None:
    """`gf events JOB | head -1` ends quietly."""
    job_id = gf.granted()
    gf.print_lines(job_id, *("x" * 200 for _ in range(3000)))
    command = f"{' '.join(CLI)} logs {job_id} | head -1"
    done = subprocess.run(
        ["bash", "-c", command],
        env=gf.api.environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


# --- following --------------------------------------------------------------------------------------------------------


def test_follow_gives_a_line_for_each_and_ends_with_the_job(gf: Gf) -> None:
    """`logs -f --json` is JSON Lines, complete, and ends by itself."""
    job_id = gf.granted()
    gf.print_lines(job_id, "one", "two")
    process = gf.start("logs", "-f", job_id, "--json")
    assert process.stdout is not None
    first = [json.loads(process.stdout.readline())["text"] for _ in range(2)]
    gf.print_lines(job_id, "three", first_seq=3)
    gf.end(job_id, Stage.FAILED)
    rest, errors = process.communicate(timeout=PATIENCE_S)
    assert first + [json.loads(line)["text"] for line in rest.splitlines()] == ["one", "two", "three"]
    assert (process.returncode, errors) == (0, "")


def test_follow_survives_a_restart_of_the_api_without_loss_or_repetition(gf: Gf) -> None:
    """The connection drops, the API comes back, the lines go on where they stopped."""
    job_id = gf.granted()
    gf.print_lines(job_id, "one", "two")
    process = gf.start("logs", "-f", job_id, "--json")
    assert process.stdout is not None
    seen = [json.loads(process.stdout.readline())["text"] for _ in range(2)]
    gf.api.stop(9)
    gf.api.start()
    gf.print_lines(job_id, "three", "four", first_seq=3)
    gf.end(job_id, Stage.FAILED)
    rest, errors = process.communicate(timeout=PATIENCE_S)
    assert seen + [json.loads(line)["text"] for line in rest.splitlines()] == ["one", "two", "three", "four"]
    assert process.returncode == 0
    assert "trying again" in errors
