"""The shell engine: the job's body is the script."""

from __future__ import annotations

from decimal import Decimal

import pytest

from core.job import FailureKind
from engines.base import read_probe
from engines.shell import Shell, script_of
from tests.engines.conftest import Place
from tests.engines.running import Running, run_to_end

ENGINE = Shell()

ONE_BLOCK = """Say hello.

```sh
echo from the block
```

```python
print("not this")
```
"""


@pytest.mark.parametrize(
    ("body", "script"),
    [
        ("echo plain\n", "echo plain\n"),
        (ONE_BLOCK, "echo from the block\n"),
        ("```sh\necho a\n```\n```sh\necho b\n```\n", "```sh\necho a\n```\n```sh\necho b\n```\n"),
        ("```bash\necho a\n```\n", "```bash\necho a\n```\n"),
        ("~~~sh\necho ```\n~~~\n", "echo ```\n"),
        ("````sh\necho '```'\n````\n", "echo '```'\n"),
        ("  ```sh\n  echo indented\n  ```\n", "echo indented\n"),
        ("```sh title=x\necho never closed\n", "echo never closed\n"),
    ],
)
def test_script_is_the_only_sh_block_or_the_whole_body(body: str, script: str) -> None:
    """Exactly one ```sh block is the script; otherwise the whole body is."""
    assert script_of(body) == script


@pytest.mark.parametrize("body", ["", "\n\n", "# only a remark\n", "```sh\n# nothing\n```\n"])
def test_body_without_a_command_is_refused(body: str) -> None:
    """Intake hears of a script that does nothing."""
    assert [problem.path for problem in ENGINE.check_body(body)] == ["body"]
    assert ENGINE.check_body(ONE_BLOCK) == ()


def test_script_runs_in_the_worktree_and_costs_nothing(place: Place) -> None:
    """Output streams as text; zero tokens and zero cost are known."""
    run = place.run('echo one\npwd\necho hello >hello.txt\nbasename "$0"\n')
    ran = run_to_end(ENGINE, run)
    assert ran.outcome.ok
    assert ran.texts("text") == ["one", str(run.workdir), "script.sh"]
    assert (run.workdir / "hello.txt").read_text() == "hello\n"
    assert [path.name for path in run.workdir.iterdir()] == ["hello.txt"]
    usage = ran.outcome.usage
    assert (usage.total_tokens, usage.cost_usd, usage.cost_source) == (0, Decimal(0), "reported")
    assert ran.outcome.tool_calls == 1


@pytest.mark.parametrize(
    ("body", "failure", "words"),
    [
        ("echo trouble >&2; exit 3\n", FailureKind.ENGINE_ERROR, "exit code 3: trouble"),
        ("false\necho not reached\n", FailureKind.ENGINE_ERROR, "exit code 1"),
        ('echo "$never_set"\n', FailureKind.ENGINE_ERROR, "never_set"),
        ("kill -9 $$\n", FailureKind.CRASH, "signal 9"),
    ],
)
def test_script_that_fails_says_how(place: Place, body: str, failure: FailureKind, words: str) -> None:
    """Exit codes, unset variables (`-u`), failing commands (`-e`) and signals end the attempt with a reason."""
    outcome = run_to_end(ENGINE, place.run(body)).outcome
    assert (outcome.ok, outcome.failure) == (False, failure)
    assert words in outcome.message


def test_script_that_hangs_is_killed_with_its_group(place: Place) -> None:
    """The group's death ends it."""
    with Running(ENGINE, place.run("sleep 600 & sleep 600\n")) as running:
        running.kill()
        assert running.wait().outcome.failure == FailureKind.CRASH


def test_probe_finds_the_shell() -> None:
    """Every machine has one."""
    assert read_probe(ENGINE, 0, "1.0\n").usable
