"""`gf test`: what it runs, in which order, and with which exit code."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import pytest

from cli import run_tests
from cli.run_tests import NO_TESTS_COLLECTED, STACK_FOLDERS, Step, main, parse_options, plan_tests

BOTH = {"pytest (stacks)", "pytest (all others)"}


class Recorder:
    """Stands in for the running of steps: notes what ran, and answers with the exit codes it was given."""

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}
        self.ran: list[str] = []

    def __call__(self, step: Step, _root: Path, _sink: IO[bytes] | None = None) -> int:
        """Run nothing."""
        self.ran.append(step.name)
        return self.codes.get(step.name, 0)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Replace the running of steps for one test."""
    stand_in = Recorder()
    monkeypatch.setattr(run_tests, "run_step", stand_in)
    monkeypatch.setattr(run_tests, "prepare_temporal", lambda: stand_in.ran.append("Temporal server"))
    return stand_in


def expression(step: Step) -> str:
    """Return what a pytest call selects by marker."""
    return step.command[-step.command[::-1].index("-m")]


def test_checks_come_first_and_pytest_last(recorder: Recorder) -> None:
    """The last closing line is pytest's own."""
    assert main([]) == 0
    assert recorder.ran[:3] == ["Temporal server", "ruff check", "ruff format"]
    assert set(recorder.ran[3:]) == {"mypy", *BOTH}


def test_stacks_are_all_where_they_are_looked_for() -> None:
    """Without arguments only some folders are searched for them."""
    tests = Path(__file__).parents[1]
    marked = {file.relative_to(tests.parent) for file in tests.rglob("test_*.py") if "mark.stack" in file.read_text()}
    assert len(marked) > 10
    elsewhere = {file for file in marked if not str(file).startswith(tuple(f"{one}/" for one in STACK_FOLDERS))}
    assert elsewhere <= {Path(__file__).relative_to(tests.parent)}


def test_fast_skips_the_checks(recorder: Recorder) -> None:
    """`--fast` is for the loop while editing."""
    assert main(["--fast"]) == 0
    assert recorder.ran[0] == "Temporal server"
    assert set(recorder.ran[1:]) == BOTH


def test_selection_does_not_wait_for_the_temporal_server(recorder: Recorder) -> None:
    """Someone who runs a few tests gets the server when one of them asks for it."""
    assert main(["--fast", "tests/core"]) == 0
    assert set(recorder.ran) == BOTH


def test_first_failure_decides_and_everything_still_runs(recorder: Recorder) -> None:
    """One look shows all that is wrong; the exit code is the first failure's."""
    recorder.codes["ruff check"] = 7
    recorder.codes["pytest (stacks)"] = 1
    assert main([]) == 7
    assert len(recorder.ran) == 6


def test_selection_without_stacks_is_no_failure(recorder: Recorder) -> None:
    """Pytest's code for an empty selection counts only when both calls found nothing."""
    recorder.codes["pytest (stacks)"] = NO_TESTS_COLLECTED
    assert main(["--fast"]) == 0
    recorder.codes["pytest (all others)"] = NO_TESTS_COLLECTED
    assert main(["--fast"]) == NO_TESTS_COLLECTED


def test_callers_marker_expression_is_kept() -> None:
    """A `-m` of the caller's is joined with ours; pytest alone would forget one of them."""
    steps = plan_tests(parse_options(["-m", "not slow", "-k", "ship", "tests/core"]))
    assert [expression(step) for step in steps] == ["(not slow) and stack", "(not slow) and not stack"]
    assert all({"-k", "ship", "tests/core"} <= set(step.command) for step in steps)


def test_topology_reaches_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--topology` is what the tests read from their environment; without it they run on the embedded stack."""
    monkeypatch.delenv(run_tests.TOPOLOGY, raising=False)

    def told(arguments: list[str]) -> set[str]:
        return {step.environ[run_tests.TOPOLOGY] for step in plan_tests(parse_options(arguments))}

    assert told([]) == {"embedded"}
    assert told(["--topology", "production"]) == {"production"}
    assert told(["--topology", "production", "-n", "0"]) == {"production"}


@pytest.mark.parametrize("arguments", [["-n", "0"], ["--pdb"], ["-s"]])
def test_interactive_calls_are_a_single_pytest(arguments: list[str]) -> None:
    """A debugger needs the terminal: no xdist, one call."""
    (step,) = plan_tests(parse_options(arguments))
    assert "--dist" not in step.command


def test_coverage_of_both_calls_is_one_report() -> None:
    """The second call adds to the first one's figures and prints them."""
    first, second = plan_tests(parse_options(["--cov"]))
    assert "--cov-report=" in first.command
    assert "--cov-append" in second.command
    assert "--cov=core" in first.command


def test_step_in_turn_tells_its_verdict(capfd: pytest.CaptureFixture[str]) -> None:
    """A step's name, verdict and time go to stderr, its output stays its own."""
    codes = run_tests.run_in_turn([Step("try", ("sh", "-c", "echo out; exit 4"))], Path())
    out, err = capfd.readouterr()
    assert (codes, out) == ([4], "out\n")
    assert "try: failed (exit code 4) in" in err


def test_steps_at_once_run_together_and_print_one_after_the_other(
    capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> None:
    """Each waits here for the other; the second one's output, errors too, comes when the first has ended."""
    meet = "echo $0 begins; touch $0; while [ ! -e $1 ]; do sleep 0.05; done; echo $0 ends >&2; exit $2"
    one, two = (
        Step(name, ("sh", "-c", meet, name, other, code)) for name, other, code in (("a", "b", "0"), ("b", "a", "3"))
    )
    assert run_tests.run_at_once([one, two], tmp_path) == [0, 3]
    out, _ = capfdbinary.readouterr()
    assert out == b"a begins\nb begins\nb ends\n"
