"""`gf demo`: two factories, three jobs, one factory killed, and the proof of what became of it.

*Does I/O: a stack of its own in a temporary home, processes, HTTP, git, the terminal.* Nothing of it is staged: the
factories are processes of this machine, the engine is `shell`, the plug is pulled with SIGKILL, and what is shown comes
from the API and in the end from the git remote alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cli import output, up
from cli.client import Client, connect, job_path
from cli.exit_codes import ExitCode
from cli.palette import style_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

STUDIO: Final = "network:studio"
"""What both factories claim to have; an operator vouches for one of them, and only there it counts."""
SETTINGS: Final = {"CAPABILITIES": STUDIO, "CHECKPOINT_S": "1", "FACTORY_BEAT_S": "1", "RECONCILE_S": "5"}
JOBS: Final = {"poster": [STUDIO], "letter": [], "song": []}
"""The jobs, and what each needs."""
PAGES: Final = 8
PAGE_S: Final = 1
LOOK_S: Final = 0.25
PATIENCE_S: Final = 300.0
MANIFEST: Final = """---
title: {title}
engine: shell
repo: {remote}
base: main
ship: base
profile: solo
review-policy: auto
allowed-scope: ["{name}/**"]
verify: test "$(ls {name} | wc -l)" -eq {pages}
capabilities: {capabilities}
timeout: 5m
---
# {title}

```sh
mkdir -p {name}
for page in $(seq 1 {pages}); do
  [ -f {name}/$page.txt ] && continue
  echo "$GIGAFACTORY_ATTEMPT" > {name}/$page.txt
  echo "{name}: page $page of {pages}"
  sleep {pause}
done
```
"""
TOLD: Final = {"gate.verify": "verify", "job.shipped": "shipped", "job.failed": "failed:", "job.dead_letter": "failed:"}
"""Events that are told as they happen, and the word before what they say."""


class DemoFailed(Exception):
    """The demonstration did not come to its end."""


@dataclass
class Killing:
    """The plug that was pulled."""

    factory: str
    pid: int
    at: float
    """When, in seconds since the epoch."""


@dataclass
class Demo:
    """One showing; the methods are in its order."""

    client: Client
    remote: Path
    live: Live
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The latest document of each job, by its name here."""
    factories: list[dict[str, Any]] = field(default_factory=list)
    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """Show it all and return the proof.

        Raises:
            DemoFailed: something took far too long.

        """
        special, other = self._tell_apart()
        self._submit()
        self._explain(other)
        killing = self._kill(other)
        self._until("everything to end", lambda: all(job["ended_at"] for job in self.jobs.values()))
        return self._proof(special, killing)

    # --- what happens -------------------------------------------------------------------------------------------------

    def _tell_apart(self) -> tuple[str, str]:
        """Vouch for the studio of one factory; return its name and the other one's."""
        self._look()
        special, other = (factory["name"] for factory in self.factories)
        self._say(f"Two factories: {special} and {other}. Both claim {STUDIO}; you vouch for that of {special} alone.")
        self.client.post(f"/fleet/factories/{special}/attestations", {"capabilities": [STUDIO]})
        return special, other

    def _submit(self) -> None:
        self._say(f"Three jobs at once; the poster needs {STUDIO}.")
        texts = [
            MANIFEST.format(
                title=f"Make the {name}",
                name=name,
                remote=self.remote,
                pages=PAGES,
                pause=PAGE_S,
                capabilities=needs,
            )
            for name, needs in JOBS.items()
        ]
        answer = self.client.post("/fleet/jobs", {"jobs": [{"manifest": text} for text in texts]})
        self.jobs = dict(zip(JOBS, answer["jobs"], strict=True))
        self.events = {name: [] for name in JOBS}

    def _explain(self, other: str) -> None:
        """Say why each job is where it is, and why the poster is not at the other factory."""
        self._until("every job to have a factory", lambda: all(job["attempts"] for job in self.jobs.values()))
        for name, job in self.jobs.items():
            granted = next(event for event in self.events[name] if event["type"] == "job.granted")
            self._say(f"{name}: {granted['message']}")
            if STUDIO in JOBS[name]:
                for line in self.client.get(job_path(job["id"], f"/explanation/{other}"))["lines"]:
                    self._say(f"{name}: {line}")

    def _kill(self, other: str) -> Killing:
        """Pull the plug of the factory that anybody can replace, once there is work to save there."""
        self._until("work to save", lambda: any(self._has_work(name, other) for name in self.jobs))
        pid = int(next(factory["pid"] for factory in self.factories if factory["name"] == other))
        killing = Killing(other, pid, time.time())
        os.kill(pid, signal.SIGKILL)
        self._say(f"kill -9 {pid}: {other} is dead, in the middle of its work", "bold red")
        return killing

    def _has_work(self, name: str, factory: str) -> bool:
        job = self.jobs[name]
        saved = any(event["type"] == "attempt.checkpoint" for event in self.events[name])
        return saved and job["stage"] == "building" and job["attempts"][-1]["factory"] == factory

    # --- what is seen -------------------------------------------------------------------------------------------------

    def _until(self, what: str, look: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        self._look()
        while not look():
            if time.monotonic() > deadline:
                raise DemoFailed(f"waited {PATIENCE_S:.0f} s in vain for {what}")
            time.sleep(LOOK_S)
            self._look()

    def _look(self) -> None:
        """Ask for everything anew, tell what happened, draw the picture."""
        self.factories = self.client.get("/fleet/factories")["factories"]
        for name, job in self.jobs.items():
            self.jobs[name] = self.client.get(job_path(job["id"]))
            seen = self.events[name]
            fresh = self.client.get(job_path(job["id"], "/events"), after=seen[-1]["seq"] if seen else 0)["events"]
            seen += fresh
            for event in fresh:
                self._tell(name, event)
        self.live.update(self._picture())

    def _tell(self, name: str, event: dict[str, Any]) -> None:
        kind, said = event["type"], event["message"]
        if kind == "lease.lost":
            how = "on a death certificate" if event["data"]["certified"] else "without a death certificate"
            self._say(f"{name}: lost with {event['data']['factory']}, {how} ({said})", "red")
        elif kind == "job.granted" and event["epoch"] > 1:
            self._say(f"{name}: goes on as epoch {event['epoch']}: {said}", "cyan")
        elif kind in TOLD:
            self._say(f"{name}: {TOLD[kind]} {said}", "green" if kind == "job.shipped" else "")

    def _say(self, text: str, style: str = "") -> None:
        from rich.text import Text  # noqa: PLC0415 - only what shows something needs it

        self.live.console.print(Text(text, style))

    def _picture(self) -> Table:
        """Return what runs where at this moment."""
        from rich.table import Table  # noqa: PLC0415 - as above
        from rich.text import Text  # noqa: PLC0415

        table = Table(title="now", title_justify="left")
        for column in ("job", "stage", "factory", "epoch"):
            table.add_column(column)
        for name, job in self.jobs.items():
            newest = job["attempts"][-1] if job.get("attempts") else {"factory": "", "epoch": ""}
            table.add_row(name, Text(job["stage"], style_of(job["stage"])), newest["factory"], str(newest["epoch"]))
        return table

    # --- what is left -------------------------------------------------------------------------------------------------

    def _proof(self, special: str, killing: Killing) -> dict[str, Any]:
        """Return what the remote says of each job, and what the job's document says of its way."""
        shipped = [self._proof_of(name, killing) for name in self.jobs]
        commits = git("rev-list", "--first-parent", "main", cwd=self.remote).split()
        moved = [one for one in shipped if len(one["factories"]) > 1]
        sound = (
            all(one["shipped_once"] for one in shipped)
            and len(commits) == 1 + len(JOBS)
            and bool(moved)
            and all(one["certified"] for one in moved)
        )
        return {
            "proven": sound,
            "attested_factory": special,
            "killed_factory": killing.factory,
            "killed_pid": killing.pid,
            "commits_on_main": len(commits) - 1,
            "jobs": shipped,
        }

    def _proof_of(self, name: str, killing: Killing) -> dict[str, Any]:
        job, events = self.jobs[name], self.events[name]
        lines = git("log", "--first-parent", "--format=%H", "main", "--", name, cwd=self.remote).split()
        writers = [self._written_by(name, page) for page in range(1, PAGES + 1)]
        attempts = job["attempts"]
        lost = [event["data"] for event in events if event["type"] == "lease.lost"]
        began = datetime.fromisoformat(attempts[-1]["started_at"]).timestamp()
        return {
            "name": name,
            "id": job["id"],
            "stage": job["stage"],
            "factories": [attempt["factory"] for attempt in attempts],
            "certified": bool(lost) and all(data["certified"] for data in lost),
            "takeover_s": round(began - killing.at, 2) if len(attempts) > 1 else None,
            "pages_by_epoch": [int(writer.rpartition(".")[2]) for writer in writers if writer],
            "commits": lines,
            "shipped_once": job["stage"] == "shipped" and lines == job["commits"] and all(writers),
        }

    def _written_by(self, name: str, page: int) -> str:
        """Return which attempt wrote a page, as the page on the remote says; empty when it is not there."""
        try:
            return git("show", f"main:{name}/{page}.txt", cwd=self.remote)
        except subprocess.CalledProcessError:
            return ""


def demo(*, as_json: bool) -> ExitCode:
    """Show it; done only when every job was shipped exactly once, on a death certificate where it had to move."""
    console = output.console(stderr=as_json)
    with _place() as home:
        from rich.live import Live  # noqa: PLC0415 - the command line must start quickly

        remote = make_remote(home.parent)
        info = up.ensure_up(home, factories=2, foreground=True)
        try:
            with Live(console=console, auto_refresh=False, transient=True) as live:
                proof = Demo(connect(info.home), remote, live).run()
        except DemoFailed as error:
            output.failure(str(error), hint="`gf doctor` looks at this machine", code="demo", as_json=as_json)
            return ExitCode.UNEXPECTED
        finally:
            up.take_down(home)
    if as_json:
        output.document(proof)
    else:
        _show(console, proof)
    return ExitCode.DONE if proof["proven"] else ExitCode.JOB_FAILED


@contextmanager
def _place() -> Iterator[Path]:
    """Yield a home that is gone afterwards, with the demonstration's settings in the environment."""
    changed = {f"GIGAFACTORY_{name}": value for name, value in SETTINGS.items()}
    before = {name: value for name, value in os.environ.items() if name.startswith("GIGAFACTORY_")}
    kept = {name: before[name] for name in ("GIGAFACTORY_CACHE",) if name in before}
    with tempfile.TemporaryDirectory(prefix="gf-demo-", ignore_cleanup_errors=True) as folder:
        home = Path(folder).resolve() / "home"
        for name in before:
            del os.environ[name]
        os.environ.update(kept | changed | {"GIGAFACTORY_HOME": str(home)})
        try:
            yield home
        finally:
            for name in changed | {"GIGAFACTORY_HOME": ""}:
                os.environ.pop(name, None)
            os.environ.update(before)


def make_remote(folder: Path) -> Path:
    """Make a bare repository with one commit on `main`."""
    seed, remote = folder / "seed", folder / "remote.git"
    seed.mkdir()
    git("init", "-q", cwd=seed)
    (seed / "README.md").write_text("# What three jobs make\n")
    git("add", "-A", cwd=seed)
    git("commit", "-qm", "Seed", cwd=seed)
    git("clone", "-q", "--bare", str(seed), str(remote), cwd=folder)
    return remote


def git(*arguments: str, cwd: Path) -> str:
    """Run git and return what it printed."""
    who = ["-c", "user.name=Demo", "-c", "user.email=demo@example.org", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *who, *arguments], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _show(console: Console, proof: dict[str, Any]) -> None:
    """Show the proof as a table."""
    from rich.table import Table  # noqa: PLC0415 - as above

    table = Table(title="what the git remote says", title_justify="left")
    for column in ("job", "ran on", "pages by epoch", "taken over after", "commit on main"):
        table.add_column(column)
    for job in proof["jobs"]:
        taken = f"{job['takeover_s']:.2f} s, certified" if job["certified"] else "–"
        pages = " ".join(map(str, job["pages_by_epoch"]))
        table.add_row(job["name"], " → ".join(job["factories"]), pages, taken, " ".join(c[:10] for c in job["commits"]))
    console.print(table)
    verdict = "each job was shipped exactly once" if proof["proven"] else "NOT PROVEN: see the table"
    killed = f"{proof['killed_factory']} was killed in mid-work"
    console.print(f"{killed}; {proof['commits_on_main']} commits for {len(proof['jobs'])} jobs: {verdict}.")
