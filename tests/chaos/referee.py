"""The judge: what the jobs' own scripts wrote down, and what the bare remotes hold. Does I/O: files, git, /proc.

It asks the product for one thing only: what it claims, so that a claim can be held against what is there.

A script appends one line at each step to one file outside the product (`O_APPEND`, one short write):
`<what> <number> <job>.<epoch> <pid> <time>`, `what` being `begin`, `step`, `alive` (a child in a session of its own)
or `end`.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.bench.field import make_remote

SHIPPED = "refs/gigafactory/shipped/"
MARK = b"GIGAFACTORY_ATTEMPT="
STEPS = 3
OVER = {"shipped", "failed", "dead_letter", "cancelled"}
"""Stages after which the product does nothing more for a job."""
SLACK_S = 0.05
"""How far the clock readings of a script and of the API lie apart at most: a script reads its own before it writes."""


@dataclass(frozen=True)
class Line:
    """One line of the scripts' file."""

    what: str
    number: int
    job_id: str
    epoch: int
    pid: int
    at: float

    @classmethod
    def of(cls, text: str) -> Line:
        """Read it."""
        what, number, attempt, pid, at = text.split()
        job_id, _, epoch = attempt.rpartition(".")
        return cls(what, int(number), job_id, int(epoch), int(pid), float(at))


@dataclass(frozen=True)
class Task:
    """One job as the referee knows it, before the product does."""

    number: int
    key: str
    remote: Path
    to_base: bool

    def manifest(self, ledger: Path, *, large: bool = False) -> str:
        """Return the job file: three steps that go on where a checkpoint left off, and a child that would outlive it.

        `large` adds an artifact that does not fit into a report.
        """
        name = f"made-{self.number}"
        head = (
            f"engine: shell\nrepo: {self.remote}\nbase: main\nprofile: solo\nidempotency-key: {self.key}\n"
            f"ship: {'base' if self.to_base else 'branch'}\nverify: test -s {name}\ntimeout: 5m\n"
            "retry: { max: 100, backoff: 1s, on: [crash, workspace, timeout, engine_error] }\n"
        )
        head += f"artifacts: [{name}-large]\n" if large else ""
        tell = f'echo "$1 {self.number} $GIGAFACTORY_ATTEMPT $2 $(date +%s.%N)" >> {ledger}'
        step = f"sleep 0.15; echo $i > {name}-$i; tell step $$"
        lines = (
            "set -e",
            f"tell() {{ {tell}; }}",
            "tell begin $$",
            f"setsid sh -c 'set -- alive $$; while sleep 0.2; do {tell}; done' &",
            f"for i in $(seq 1 {STEPS}); do [ -f {name}-$i ] || {{ {step}; }}; done",
            *([f"head -c 1500000 /dev/zero > {name}-large"] if large else []),
            f"echo {self.number} > {name}",
            "tell end $$",
        )
        return f"---\n{head}---\n# Number {self.number}\n\n```sh\n" + "\n".join(lines) + "\n```\n"


@dataclass(frozen=True)
class Certified:
    """The product's claim that nothing of an attempt lives any more, and when it was made."""

    job_id: str
    epoch: int
    at: float


def certified(events: Iterable[Mapping[str, Any]], job_id: str) -> list[Certified]:
    """Return what the events of a job claim. *Pure.*"""
    return [
        Certified(job_id, int(event["epoch"]), datetime.fromisoformat(event["at"]).timestamp())
        for event in events
        if event["type"] == "lease.lost" and event["data"].get("certified")
    ]


@dataclass(frozen=True)
class Verdict:
    """What is wrong; all empty when nothing is."""

    lost: dict[int, str]
    """number → what the product says of a job whose work is on no remote though the product is done with it."""
    shipped_twice: dict[int, str]
    stuck: dict[int, str]
    """number → where the product has it: it neither shipped nor ended in all the time it had."""
    unproven: dict[int, str]
    """Shipped, though no script of that job ever came to its end."""
    outlived: dict[str, int]
    """attempt → lines that its processes wrote after their death certificate."""
    orphans: dict[int, str]
    """pid → attempt of processes that still live when everything is over."""

    @property
    def clean(self) -> bool:
        """Return whether nothing is wrong."""
        return not any((self.lost, self.shipped_twice, self.stuck, self.unproven, self.outlived, self.orphans))


class Referee:
    """Knows the tasks, reads the scripts' file and the remotes."""

    def __init__(self, folder: Path, remotes: int) -> None:
        """`folder` is its own; jobs of referees whose folders have different names are different jobs."""
        self._name = folder.name
        self.ledger = folder / "ledger"
        folder.mkdir(exist_ok=True)
        self.ledger.touch()
        self.remotes = [make_remote(folder / f"remote-{number}")[0] for number in range(remotes)]

    def task(self, number: int) -> Task:
        """Return the job of that number; remotes and ways to ship take turns."""
        remote, turn = self.remotes[number % len(self.remotes)], number // len(self.remotes)
        return Task(number, f"{self._name}-{number}", remote, to_base=turn % 2 == 0)

    def lines(self) -> list[Line]:
        """Return what the scripts wrote."""
        return [Line.of(text) for text in self.ledger.read_text().splitlines()]

    def shipped(self) -> set[str]:
        """Return the jobs that the remotes hold a shipped mark of."""
        return {name.removeprefix(SHIPPED) for remote in self.remotes for name in refs(remote, SHIPPED)}

    def judge(
        self,
        jobs: Mapping[int, set[str]],
        claims: Mapping[str, str],
        certificates: Iterable[Certified],
        orphans: Mapping[int, str],
    ) -> Verdict:
        """Return what is wrong: `jobs` are the ids that each number got, `claims` the stages they are said to have."""
        lines = self.lines()
        marks = self.shipped()
        lost: dict[int, str] = {}
        stuck: dict[int, str] = {}
        twice: dict[int, str] = {}
        unproven: dict[int, str] = {}
        ended = {line.number for line in lines if line.what == "end"}
        landed = {remote: self._landed(remote) for remote in self.remotes}
        for number, ids in jobs.items():
            task, stages = self.task(number), {job_id: claims.get(job_id, "unknown") for job_id in ids}
            marked = ids & marks
            times = landed[task.remote][number]
            if times > 1 or len(marked) > 1 or len(ids) > 1:
                twice[number] = f"{times} commits, marks {sorted(marked)}, jobs {stages}"
            elif not times or not marked or "shipped" not in stages.values():
                over = set(stages.values()) & (OVER | {"unknown"})
                (lost if over else stuck)[number] = f"{times} commits, marks {sorted(marked)}, jobs {stages}"
            elif number not in ended:
                unproven[number] = str(stages)
        return Verdict(lost, twice, stuck, unproven, outlived(lines, certificates), dict(orphans))

    @staticmethod
    def _landed(remote: Path) -> Counter[int]:
        """Return how many commits of all branches are each job's, by what they are called and by what they bring."""
        titles = git(remote, "log", "--branches", "--format=%s").splitlines()
        added = git(remote, "log", "--branches", "--diff-filter=A", "--format=", "--name-only").splitlines()
        called = Counter(re.findall(r"^Number (\d+)$", "\n".join(titles), re.MULTILINE))
        brought = Counter(re.findall(r"^made-(\d+)$", "\n".join(added), re.MULTILINE))
        return Counter({int(number): max(called[number], brought[number]) for number in called | brought})


def outlived(lines: Iterable[Line], certificates: Iterable[Certified]) -> dict[str, int]:
    """Return the attempts that wrote after their death was certified, with the number of lines. *Pure.*"""
    died = {(one.job_id, one.epoch): one.at for one in certificates}
    late: dict[str, int] = defaultdict(int)
    for line in lines:
        if line.at > died.get((line.job_id, line.epoch), float("inf")) + SLACK_S:
            late[f"{line.job_id}.{line.epoch}"] += 1
    return dict(late)


def orphans_of(job_ids: set[str]) -> dict[int, str]:
    """Return pid → attempt of living processes that carry the mark of one of these jobs."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            marks = [
                word
                for word in (entry / "environ").read_bytes().split(b"\0")
                if word.startswith(b"GIGAFACTORY_ATTEMPT=")
            ]
            dead = b"\nState:\tZ" in (entry / "status").read_bytes()
        except OSError:
            continue
        attempt = marks[0].partition(b"=")[2].decode() if marks else ""
        if not dead and attempt.rpartition(".")[0] in job_ids:
            found[int(entry.name)] = attempt
    return found


# --- git --------------------------------------------------------------------------------------------------------------


def git(repository: Path, *arguments: str) -> str:
    """Run git in a repository and return its output."""
    who = ("-c", "user.name=referee", "-c", "user.email=referee@example.org", "-c", "init.defaultBranch=main")
    command = ["git", "-C", str(repository), *who, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def refs(repository: Path, prefix: str) -> dict[str, str]:
    """Return name → commit of all refs below a prefix."""
    told = git(repository, "for-each-ref", "--format=%(refname) %(objectname)", prefix)
    return dict(line.split() for line in told.splitlines())
