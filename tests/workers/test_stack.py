"""The steward with real processes: parts come up, come back, and go, whatever is killed. The parts are tiny fakes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import Conflict
from workers.stack_home import PortReservation, factory_names, open_log, prepare, steward_lock, tail
from workers.stack_part import explain_exit, restart_pause_s
from workers.stack_start import StackFailed, StackInfo, ensure_up, spawn_steward
from workers.stack_state import PartRecord, ProcessId, StackState, read_state, write_atomically, write_state
from workers.stack_stop import stop_stack

pytestmark = pytest.mark.chaos

FAKE = Path(__file__).with_name("fake_stack.py")
SOON_S = 60.0
"""What takes a fraction of a second may take long on a busy machine."""


# --- a stack of fakes ------------------------------------------------------------------------------------------------


class FakeStack:
    """A home and what tests do with the stack in it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.told: list[str] = []
        self.ready_timeout_s = SOON_S

    def launch(
        self, home: Path, _progress: Callable[[str], None], factories: int | None, foreground: bool
    ) -> subprocess.Popen[bytes]:
        prepare(home)
        command = [sys.executable, "-P", str(FAKE), "steward", "--home", str(home)]
        command += ["--factories", str(1 if factories is None else factories)]
        command += ["--ready-timeout-s", str(self.ready_timeout_s)] + ["--foreground"] * foreground
        return spawn_steward(home, command, foreground=foreground)

    def up(self, factories: int | None = None) -> StackInfo:
        return ensure_up(self.home, self.told.append, factories=factories, launch=self.launch)

    def behave(self, name: str, habits: str) -> None:
        write_atomically(self.home / "behave" / name, habits)

    @property
    def state(self) -> StackState:
        state = read_state(self.home)
        assert state is not None
        return state

    def part(self, name: str) -> PartRecord:
        return next(part for part in self.state.parts if name in {part.name, part.kind})

    def processes(self) -> list[int]:
        """Return every process that names this home in its command line or environment: an independent judge."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                known_by = (entry / "environ").read_bytes() + b"\0" + (entry / "cmdline").read_bytes()
                ended = (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
            except (OSError, ValueError):
                continue
            if entry.name.isdigit() and str(self.home).encode() in known_by and not ended:
                found.append(int(entry.name))
        return [pid for pid in found if pid != os.getpid()]


def eventually(condition: Callable[[], bool], within_s: float = SOON_S) -> bool:
    """Look until the condition holds."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def get(url: str) -> int:
    """Return the status of a GET."""
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - a URL of our own
        return int(answer.status)


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[FakeStack]:
    """Return a stack of fakes that has not been started; nothing of it is left afterwards."""
    fake = FakeStack(tmp_path / "home")
    yield fake
    stop_stack(fake.home)
    assert fake.processes() == []


# --- coming up -------------------------------------------------------------------------------------------------------


def test_up_brings_every_part_up_and_records_it(stack: FakeStack) -> None:
    """`up` returns when every part does its work; the record says which process each one is."""
    info = stack.up(factories=2)
    state = stack.state
    assert info.started
    assert state.state == "ready"
    assert info.factories == tuple(factory_names(stack.home, 2))
    assert get(f"{info.api_url}/fleet/health") == 200
    assert {part.kind: part.state for part in state.parts} == {
        "guard": "ready",
        "migration": "done",
        "api": "ready",
        "control": "ready",
        "factory": "ready",
    }
    assert all(part.process.alive for part in state.parts if part.state == "ready")
    assert 0 < (info.ready_s or 0) < SOON_S
    assert [line for line in stack.told if "api ready" in line]


def test_up_makes_a_private_home_with_a_token(stack: FakeStack) -> None:
    """Home and token are for their owner alone; a second start keeps the token, and drops the shared one of old."""
    stack.home.mkdir(mode=0o700, exist_ok=True)
    (stack.home / "factory-token").write_text("gff_shared")
    prepare(stack.home)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (stack.home, *stack.home.glob("*token"))}
    assert modes == {"home": 0o700, "token": 0o600}
    before = (stack.home / "token").read_text()
    (stack.home / "token").chmod(0o644)
    prepare(stack.home)
    assert (stack.home / "token").read_text() == before
    assert (stack.home / "token").stat().st_mode & 0o777 == 0o600


@pytest.mark.req("F8", "F11")
@pytest.mark.parametrize("state", ["draining", "quarantined"])
def test_up_with_a_factory_that_may_take_no_jobs_is_up(stack: FakeStack, state: str) -> None:
    """Whoever drained a factory, or finds it quarantined, can stop and start the stack, and then release it."""
    drained, _ = factory_names(stack.home, 2)
    stack.behave(drained, state)
    assert stack.up(factories=2).started
    kill_and_await(stack, drained)


def test_up_twice_joins_the_running_stack(stack: FakeStack) -> None:
    """A second `up` starts nothing."""
    stack.up()
    pids = [part.pid for part in stack.state.parts]
    info = stack.up()
    assert not info.started
    assert [part.pid for part in stack.state.parts] == pids


def test_up_at_the_same_time_makes_one_stack(stack: FakeStack) -> None:
    """Of several `up` at once one starts the stack; all of them end with it ready."""
    infos: list[StackInfo] = []
    threads = [threading.Thread(target=lambda: infos.append(stack.up())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(infos) == 3
    assert [info.started for info in infos].count(True) == 1
    assert len({info.api_url for info in infos}) == 1


def test_up_against_another_version_refuses(stack: FakeStack) -> None:
    """A running stack of another version is neither used nor replaced."""
    stack.up()
    state = stack.state
    os.kill(state.steward.pid, signal.SIGSTOP)  # so that it does not write its own version again
    write_state(stack.home, replace(state, version="99.0.0"))
    with pytest.raises(Conflict, match=r"99\.0\.0.*this command line is version"):
        stack.up()


def test_up_with_a_stuck_stack_gives_up(stack: FakeStack) -> None:
    """A stack that does not get ready again is no reason to wait for ever; what is late is named."""
    stack.up()
    stack.behave("control", "exit-at-once")
    stack.part("control").process.signal(signal.SIGKILL)
    assert eventually(lambda: "no legs" in (stack.home / "logs" / "control.log").read_text())
    with pytest.raises(StackFailed, match=r"not ready after 0\.5 s: control") as caught:
        ensure_up(stack.home, stack.told.append, follow_s=0.5)
    assert "gf: control has no legs to stand on" in caught.value.fields["log"]  # type: ignore[operator]


def test_stacks_side_by_side_keep_apart(tmp_path: Path) -> None:
    """Two homes have two stacks with ports and factories of their own; ending one leaves the other alone."""
    first, second = FakeStack(tmp_path / "a"), FakeStack(tmp_path / "b")
    try:
        urls = {first.up().api_url, second.up().api_url}
        assert len(urls) == 2
        stop_stack(first.home)
        assert first.processes() == []
        assert get(f"{second.state.urls['api']}/fleet/health") == 200
    finally:
        stop_stack(first.home)
        stop_stack(second.home)


def test_up_with_a_taken_port_takes_the_next(stack: FakeStack) -> None:
    """A port that somebody listens on is passed over."""
    reservation = PortReservation()
    port = reservation.take(23400)
    with closing(socket.create_server(("127.0.0.1", port))):
        reservation.release()
        assert stack.up().api_url != f"http://127.0.0.1:{port}"


def test_ports_stay_reserved_while_the_stack_runs(stack: FakeStack) -> None:
    """No other stack is given the port, not even in the moment in which its part is restarted."""
    stack.up()
    port = stack.state.ports["api"]
    stack.part("api").process.signal(signal.SIGKILL)
    reservation = PortReservation()
    assert reservation.take(port) > port
    reservation.release()
    assert eventually(lambda: stack.part("api").state == "ready")


def test_factories_are_added_and_drained_on_request(stack: FakeStack) -> None:
    """`up --factories N` changes a running stack, and each factory keeps its name for good."""
    first = stack.up(factories=1).factories
    three = stack.up(factories=3).factories
    assert three[:1] == first
    assert stack.up(factories=1).factories == first
    assert (stack.home / "ends").read_text().split() == sorted(three[1:], key=(stack.home / "ends").read_text().index)
    assert stack.up(factories=3).factories == three


# --- not coming up ---------------------------------------------------------------------------------------------------


def test_up_with_a_part_that_dies_shows_its_last_words(stack: FakeStack) -> None:
    """The error names the part, its last log lines and what mends it; nothing is left running."""
    stack.behave("api", "exit-at-once")
    with pytest.raises(StackFailed) as caught:
        stack.up()
    assert caught.value.message == "api did not come up: api has no legs to stand on"
    assert caught.value.hint.startswith("give it a port; log: ")
    assert "api begins" in caught.value.fields["log"]  # type: ignore[operator]
    assert eventually(lambda: stack.processes() == [])


def test_up_with_a_failing_migration_stops_at_once(stack: FakeStack) -> None:
    """A ledger that cannot be brought up to date ends the start: no second try, no half a stack."""
    stack.behave("migration", "exit-at-once")
    with pytest.raises(StackFailed, match="migration has no legs"):
        stack.up()
    assert (stack.home / "logs" / "migration.log").read_text().count("begins") == 1


def test_up_with_a_part_that_hangs_gives_up(stack: FakeStack) -> None:
    """A part that lives but never does its work is named after the patience is over."""
    stack.behave("control", "never-ready")
    stack.ready_timeout_s = 10.0  # all others have to be ready by then
    with pytest.raises(StackFailed, match="control did not come up: not ready within 10 s"):
        stack.up()


def test_up_after_a_failure_starts_afresh(stack: FakeStack) -> None:
    """A failed start leaves nothing that stands in the way of the next one."""
    stack.behave("api", "exit-at-once")
    with pytest.raises(StackFailed):
        stack.up()
    stack.behave("api", "")
    assert stack.up().started


# --- coming back -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["api", "control", "factory", "guard"])
def test_killed_part_is_back_at_once(stack: FakeStack, name: str) -> None:
    """A part that dies is started again by itself and without a pause, at the same place, and becomes ready."""
    url = stack.up().api_url
    kill_and_await(stack, name)
    assert stack.part(name).restarts == 1
    assert get(f"{url}/fleet/health") == 200
    told = [json.loads(line) for line in (stack.home / "logs" / "steward.log").read_text().splitlines()]
    assert [line["pause_s"] for line in told if line["event"] == "part.died"] == [0]


def kill_and_await(stack: FakeStack, name: str) -> None:
    """SIGKILL a part and wait for it to be ready again."""
    before = stack.part(name)
    before.process.signal(signal.SIGKILL)
    assert eventually(lambda: stack.part(name).state == "ready" and stack.part(name).pid != before.pid)


@pytest.mark.req("F6")
def test_part_that_lives_but_serves_no_more_is_started_again(stack: FakeStack) -> None:
    """Its process is there and its port is open, yet every answer is an error: that does not last for ever."""
    url = stack.up().api_url
    before = stack.part("api")
    stack.behave("api", "stuck")
    assert eventually(lambda: stack.part("api").pid != before.pid)
    stack.behave("api", "")
    assert eventually(lambda: stack.part("api").state == "ready")
    assert stack.part("api").restarts == 1
    assert get(f"{url}/fleet/health") == 200


def test_part_that_keeps_dying_does_not_end_a_ready_stack(stack: FakeStack) -> None:
    """After the stack was ready once, a part that cannot come back is tried again for as long as it takes."""
    stack.up()
    stack.behave("control", "exit-at-once")
    stack.part("control").process.signal(signal.SIGKILL)
    assert eventually(lambda: stack.part("control").restarts >= 4)
    assert stack.state.state == "ready"
    stack.behave("control", "")
    assert eventually(lambda: stack.part("control").state == "ready")


@pytest.mark.parametrize(("deaths", "pause_s"), [(1, 0), (2, 0.1), (3, 0.2), (4, 0.4), (8, 5), (400, 5)])
def test_restart_pause_doubles_up_to_its_limit(deaths: int, pause_s: float) -> None:
    """The first restart has no pause, later ones have longer and longer ones, within bounds."""
    assert restart_pause_s(deaths) == pytest.approx(pause_s)


@pytest.mark.parametrize(("code", "words"), [(0, "exit code 0"), (-9, "SIGKILL"), (-99, "signal 99")])
def test_exit_is_explained(code: int, words: str) -> None:
    """Logs say how a process ended."""
    assert explain_exit(code) == words


# --- going -----------------------------------------------------------------------------------------------------------


def test_down_ends_parts_in_order_and_leaves_nothing(stack: FakeStack) -> None:
    """Factories end first, then the control worker, then the API; no process and no record stays."""
    info = stack.up(factories=2)
    assert stop_stack(stack.home)
    ends = (stack.home / "ends").read_text().split()
    assert set(ends[:2]) == set(info.factories)
    assert ends[2:] == ["control", "api"]
    assert stack.processes() == []
    assert read_state(stack.home) is None
    assert not stop_stack(stack.home)


def test_down_kills_what_does_not_listen(stack: FakeStack) -> None:
    """A part that ignores SIGTERM, a stopped one, and a process that a factory left behind are gone all the same."""
    name = factory_names(stack.home, 1)[0]
    stack.behave(name, "stray ignore-term")
    stack.up()
    stack.part("control").process.signal(signal.SIGSTOP)
    assert len(stack.processes()) > len([part for part in stack.state.parts if part.process.alive])
    stop_stack(stack.home)
    assert stack.processes() == []
    assert "control" in (stack.home / "ends").read_text()  # continued, and ended in its own way


def test_down_after_the_steward_was_killed_leaves_nothing(stack: FakeStack) -> None:
    """`down` needs no steward: with it and the guard killed, parts are found by pid and birth."""
    stack.up()
    kill_steward(stack, with_guard=True)
    assert len(stack.processes()) >= 3
    assert stop_stack(stack.home)
    assert stack.processes() == []


def test_killed_steward_takes_its_parts_along(stack: FakeStack) -> None:
    """When the steward is SIGKILLed, the guard ends every part, strays included."""
    stack.behave(factory_names(stack.home, 1)[0], "stray")
    stack.up()
    kill_steward(stack)
    assert eventually(lambda: stack.processes() == [])
    assert read_state(stack.home) is None


@pytest.mark.parametrize("with_guard", [False, True])
def test_up_over_a_killed_steward_starts_afresh(stack: FakeStack, with_guard: bool) -> None:
    """What a killed steward left is ended before the new parts start, also while its guard is at it."""
    stack.up()
    old = [part.process for part in stack.state.parts]
    kill_steward(stack, with_guard=with_guard)
    assert stack.up().started
    assert not [process for process in old if process.alive]
    assert stack.state.state == "ready"


def kill_steward(stack: FakeStack, *, with_guard: bool = False) -> None:
    """SIGKILL the steward, and the guard just before it."""
    state = stack.state
    if with_guard:
        os.kill(state.steward.pid, signal.SIGSTOP)  # or it would bring the guard back
        stack.part("guard").process.signal(signal.SIGKILL)
    state.steward.signal(signal.SIGKILL)
    assert eventually(lambda: not state.steward.alive)


def test_recorded_pid_of_a_stranger_is_left_alone(stack: FakeStack) -> None:
    """A pid in an old record that belongs to another process by now is not signalled."""
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        birth = ProcessId.of(stranger.pid)
        assert birth is not None
        part = PartRecord("api", "api", stranger.pid, "1", "ready")
        stale = ProcessId(stranger.pid, "1")
        write_state(stack.home, StackState("0.1.0", str(stack.home), "ready", "", stale, parts=(part,)))
        assert not stop_stack(stack.home)
        assert birth.alive
    finally:
        stranger.kill()
        stranger.wait()


def test_foreground_stack_ends_with_its_terminal(stack: FakeStack) -> None:
    """A stack that belongs to a `gf up` ends when that is killed."""
    steward = stack.launch(stack.home, stack.told.append, 1, True)
    assert eventually(lambda: (read_state(stack.home) or stack_starting()).state == "ready")
    assert steward.stdin is not None
    steward.stdin.close()
    assert steward.wait(timeout=SOON_S) == 0
    assert stack.processes() == []


def stack_starting() -> StackState:
    """Return a record that is not ready."""
    return StackState("", "", "starting", "", ProcessId(0, ""))


# --- what lies in the home -------------------------------------------------------------------------------------------


def test_record_is_never_seen_half_written(stack: FakeStack) -> None:
    """Readers see the old record or the new one while it is replaced many times."""
    broken = []
    done = threading.Event()

    def read_all_the_time() -> None:
        while not done.is_set():
            if read_state(stack.home) is None:
                broken.append(1)

    parts = tuple(PartRecord(f"p{number}", "api") for number in range(50))
    state = StackState("0.1.0", str(stack.home), "failed", "", ProcessId(0, ""), parts=parts)
    write_state(stack.home, state)
    reader = threading.Thread(target=read_all_the_time)
    reader.start()
    for _ in range(200):
        write_state(stack.home, state)
    done.set()
    reader.join()
    assert broken == []


def test_record_of_a_newer_version_is_read(stack: FakeStack) -> None:
    """Members that this version does not know are passed over: `down` must work on a newer stack too."""
    stack.up()
    path = stack.home / "run" / "stack.json"
    document = json.loads(path.read_text())
    document["novelty"] = 1
    document["parts"][0]["novelty"] = 1
    write_atomically(path, json.dumps(document))
    assert read_state(stack.home) is not None


def test_one_steward_a_home(tmp_path: Path) -> None:
    """The lock is held by one process at a time, and is free again afterwards."""
    with steward_lock(tmp_path) as first, steward_lock(tmp_path) as second:
        assert (first, second) == (True, False)
    with steward_lock(tmp_path) as third:
        assert third


def test_reserved_ports_are_not_given_twice(tmp_path: Path) -> None:
    """Two stacks that start at once get different ports, before either listens."""
    first, second = PortReservation(tmp_path), PortReservation(tmp_path)
    ports = [reservation.take(23700) for reservation in (first, second, first)]
    first.release()
    second.release()
    assert len(set(ports)) == 3


def test_log_is_set_aside_when_it_has_grown(tmp_path: Path) -> None:
    """A log over the limit becomes .1, older ones move on, and only a few are kept."""
    log = tmp_path / "api.log"
    for number in range(6):
        log.write_text(f"{number}" * 20)
        os.close(open_log(log, limit_bytes=10))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["api.log", "api.log.1", "api.log.2", "api.log.3"]
    assert (tmp_path / "api.log.1").read_text() == "5" * 20
    assert log.read_text() == ""


def test_tail_of_a_long_log_is_its_end(tmp_path: Path) -> None:
    """Only the last lines are shown, and a log that is not there is an empty one."""
    log = tmp_path / "a.log"
    log.write_text("\n".join(f"line {number}" for number in range(10_000)))
    assert list(tail(log, 2)) == ["line 9998", "line 9999"]
    assert list(tail(tmp_path / "none.log")) == []
