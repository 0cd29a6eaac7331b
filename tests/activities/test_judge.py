"""Scope and verify of real candidates."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from activities.git import split_patch
from core.job import Repository, RepositoryKind
from tests.activities.factory_bench import Bench
from tests.repositories import Checkout
from tests.waiting import PATIENCE_S, until
from workers.process_table import birth_of


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo x > docs/new.md", ()),
        ("echo x > src/app.py", ("src/app.py (added)",)),
        ("git mv docs/a.md src/a.md", ("src/a.md (renamed from docs/a.md)",)),
        ("git mv src/main.py docs/main.py", ("docs/main.py (renamed from src/main.py)",)),
        ("chmod +x src/main.py", ("src/main.py (mode changed)",)),
        ("chmod +x docs/a.md", ()),
        ("rm src/main.py", ("src/main.py (deleted)",)),
        ("ln -s ../src/main.py docs/link", ("docs/link (link to ../src/main.py, which is out of scope)",)),
        ("ln -s /etc/passwd docs/link", ("docs/link (link to /etc/passwd, which leaves the workspace)",)),
        ("ln -s a.md docs/link", ()),
        (
            "rm docs/a.md; ln -s ../src/main.py docs/a.md",
            ("docs/a.md (link to ../src/main.py, which is out of scope)",),
        ),
        ("git init -q lib; git -C lib commit -q --allow-empty -m x", ("lib (submodule changed)",)),
        ("mkdir -p 'we ird'; printf x > 'we ird/na\tme'", ("we ird/na\\tme (added)",)),
        ("printf 'a\\0b' > src/bin", ("src/bin (added)",)),
    ],
)
async def test_scope_covers_every_kind_of_change(bench: Bench, script: str, expected: tuple[str, ...]) -> None:
    """Renames, links, modes, deletions and submodules are all seen; `docs/**` is allowed."""
    seed = Checkout(bench.remote.path.parent / "seed")
    seed.write("docs/a.md", "a\nlong\nenough\nto\nbe\nrenamed\n")
    seed.write("src/main.py", "b\nlong\nenough\nto\nbe\nrenamed\n")
    seed.commit("layout")
    seed.git("push", "-q", str(bench.remote.path), "main")
    spec = bench.spec(script, allowed_scope=["docs/**"])
    built = await bench.build(spec)
    assert built.outcome == "succeeded", built.message
    verdict = await bench.judge(spec, built)
    assert verdict.out_of_scope == expected
    assert verdict.verify == "none"


async def test_verdict_counts_lines_and_uploads_the_diff(bench: Bench) -> None:
    """Each change has its numbers; the diff is an artifact."""
    spec = bench.spec("printf 'one\\n2\\nthree\\nfour\\n' > keep.txt; git mv README.md READ.md; printf 'a\\0' > b.bin")
    verdict = await bench.judge(spec, await bench.build(spec))
    changes = {change.path: change for change in verdict.changes}
    assert (changes["keep.txt"].kind, changes["keep.txt"].added, changes["keep.txt"].removed) == ("M", 2, 1)
    assert (changes["READ.md"].kind, changes["READ.md"].previous) == ("R", "README.md")
    assert (changes["b.bin"].kind, changes["b.bin"].added) == ("A", 0)
    assert verdict.changed_paths == 3
    patch = bench.reports.uploads["diff.patch"].decode()
    assert patch.startswith("diff --git a/")
    assert "+four" in patch


async def test_unchanged_candidate_has_nothing_to_compare(bench: Bench) -> None:
    """Nothing changed: no diff, nothing out of scope, verify still runs."""
    spec = bench.spec("true", allowed_scope=["docs/**"], verify=["test -f README.md"])
    verdict = await bench.judge(spec, await bench.build(spec))
    assert (verdict.changes, verdict.out_of_scope, verdict.verify) == ((), (), "passed")


async def test_verify_runs_in_a_clean_checkout(bench: Bench) -> None:
    """Ignored leftovers of the engine are not there; the candidate is."""
    spec = bench.spec(
        "echo build > .gitignore; echo x > build; echo y > new.txt",
        verify=["test ! -e build", "cat new.txt", "git log -1 --format=%s", "echo to-stderr >&2"],
    )
    verdict = await bench.judge(spec, await bench.build(spec))
    assert (verdict.verify, verdict.verify_exit_code) == ("passed", 0)
    lines = bench.reports.text("verify").splitlines()
    assert lines[:3] == ["$ test ! -e build", "$ cat new.txt", "y"]
    assert "Do it" in lines
    assert "to-stderr" in verdict.log_tail
    attempt = bench.context.paths.attempt("j-1", 1)
    assert [path.name for path in attempt.glob("verify-*/work")] == []


async def test_verify_names_the_command_that_failed(bench: Bench) -> None:
    """The first failure ends it; command, exit code and the end of the log are told."""
    spec = bench.spec("echo x > x", verify=["true", "echo bad luck; exit 9", "echo never"])
    verdict = await bench.judge(spec, await bench.build(spec))
    assert (verdict.verify, verdict.verify_command, verdict.verify_exit_code) == ("failed", "echo bad luck; exit 9", 9)
    assert "bad luck" in verdict.log_tail
    assert "never" not in verdict.log_tail.split("\n")


@pytest.mark.req("F9")
async def test_halt_ends_verify_which_begins_anew_when_it_is_released(bench: Bench, tmp_path: Path) -> None:
    """Nothing of it runs while the halt is in force; the verdict comes from the second run."""
    runs, go = tmp_path / "runs", tmp_path / "go"
    spec = bench.spec("true", verify=[f"echo $$ >> {runs}; while [ ! -e {go} ]; do sleep 0.05; done"])
    judging = asyncio.create_task(bench.judge(spec, await bench.build(spec)))
    (pid,) = await lines_of(runs, 1)
    bench.context.orders.see("/home/x/KILL")
    await until(lambda: birth_of(int(pid)) is None)
    go.touch()
    assert not judging.done()
    bench.context.orders.see("")
    assert (await asyncio.wait_for(judging, PATIENCE_S)).verify == "passed"
    assert len(await lines_of(runs, 2)) == 2


async def lines_of(path: Path, count: int) -> list[str]:
    """Wait until a file has that many lines."""

    def lines() -> list[str]:
        return path.read_text().splitlines() if path.exists() else []

    return await until(lambda: len(lines()) >= count and lines()) or []


async def test_verify_that_hangs_is_ended(bench: Bench) -> None:
    """A verify that does not come to an end is a failed one."""
    spec = bench.spec("true", verify=["sleep 600 & sleep 600"])
    built = await bench.build(spec)
    verdict = await bench.judge(spec.model_copy(update={"timeout_s": 1}), built)
    assert verdict.verify == "failed"
    assert "took longer than 1 s" in verdict.log_tail


async def test_judge_cancelled_kills_verify(bench: Bench) -> None:
    """A cancel that comes with a beat ends the commands at once."""
    spec = bench.spec("true", verify=["sleep 600"])
    built = await bench.build(spec)
    task = asyncio.create_task(bench.judge(spec, built))
    folder = bench.context.paths.attempt("j-1", 1)
    await until(lambda: list(folder.glob("verify-*/state.json")))
    bench.handle.answer = "cancel"
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, PATIENCE_S)
    (done,) = folder.glob("verify-*/exit.json")
    assert '"cancelled"' in done.read_text()


async def test_candidate_of_another_factory_is_fetched(tmp_path: Path, bench: Bench, remote: Checkout) -> None:
    """Any factory that reaches the remote can judge; here through a mirror that borrows nothing."""
    spec = bench.spec("echo x > new.txt", verify=["cat new.txt"])
    built = await bench.build(spec)
    other = Bench(tmp_path / "elsewhere", remote, name="calm-forge")
    url = f"file://{remote.path}"
    elsewhere = spec.model_copy(update={"repository": spec.repository.model_copy(update={"url": url})})
    verdict = await other.judge(elsewhere, built)
    other.supervisors.close()
    assert (verdict.verify, verdict.changes[0].path) == ("passed", "new.txt")


async def test_directory_is_verified_in_place(tmp_path: Path, bench: Bench) -> None:
    """Without git there is verify, and nothing to compare."""
    plain = tmp_path / "plain"
    plain.mkdir()
    place = Repository(kind=RepositoryKind.DIRECTORY, url=str(plain), base="", host="box")
    spec = bench.spec("echo here > here.txt", repository=place.model_dump(), verify=["cat here.txt"])
    verdict = await bench.judge(spec, await bench.build(spec))
    assert (verdict.verify, verdict.changes) == ("passed", ())


def test_patch_is_split_from_the_listing() -> None:
    """A listing without a patch is a listing."""
    assert split_patch(b":1 2\0x\01\t1\tx\0\0diff --git a/x b/x\n") == (b":1 2\0x\01\t1\tx", b"diff --git a/x b/x\n")
    assert split_patch(b":1 2\0x\0") == (b":1 2\0x\0", b"")
