"""The agent of one factory: reports for work, takes activities, beats, drains. *A process.*

Start: `python -P -m workers.factory_agent --name NAME`. SIGTERM drains: no further work is taken, running attempts end
with a checkpoint, what they had to tell is told, the factory leaves. SIGKILL loses nothing: supervisors kill, salvage
and certify; the next agent of that name settles what they could not.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import uniform
from typing import IO, Any, Final, Self

import structlog
from temporalio.client import Client
from temporalio.worker import Worker

from activities.clock import boot_time
from activities.engine_run import EngineActivities
from activities.factory import FactoryContext, FactoryPaths, Rescue
from activities.judge import JudgeActivities
from activities.orders import Orders
from activities.running import RunningAttempts
from activities.ship import ShipActivities
from activities.supervision import ApiAddress, Supervisors
from activities.workspace import Workspaces
from core.absence import Absence, Clocks, absences
from core.attempt import factory_queue, station_queue
from core.errors import Conflict, GigafactoryError, NotFound, Unauthenticated
from core.factory_names import memorable_name
from core.redactor import Redactor, secret_values
from core.settings import Settings
from core.switch import SENTINEL
from core.version import VERSION
from engines.base import Engine
from engines.registry import read_catalogue
from store.event_loop import collect_rarely
from store.logging_setup import configure_logging
from store.settings_source import ROOT, read_settings
from store.token_files import factory_token_file, write_token
from workers import processes
from workers.api_client import FactoryApi
from workers.gateway_client import connect_factory, follow_token
from workers.link import FactoryLink
from workers.probes import MachineReport, Prober, describe_tools, free_disk_gb, free_memory_gb, load_per_core
from workers.process_table import become_subreaper, birth_of, boot_id, is_alive
from workers.spool import Spool
from workers.stack_state import announce_ready

log = structlog.get_logger(__name__)

PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 2.0
REFUSED_PAUSE_S: Final = 30.0
"""Longest pause for a factory whose token is refused: somebody has to bring another one."""
WORKSPACE_SLOTS_BEYOND_SEATS: Final = 2
SEAL_S: Final = 15.0
"""Time that a drained attempt has, beyond the graces, to seal its checkpoint."""
LAST_WORDS_S: Final = 3.0
HOUSEKEEPING_S: Final = 3600.0
SENTINEL_LOOK_S: Final = 0.2
"""Time between two looks for a sentinel file; a look costs microseconds."""
EXIT_BROKEN: Final = 1
"""A worker ended by itself; a new agent may do better."""
EXIT_IN_USE: Final = 3
"""Another agent has this name."""
EXIT_REFUSED: Final = 4
"""The factory's token is not good any more."""
ABSENCES_TOLD: Final = 20
"""Absences in one beat; the newest ones, when there were more while the API was away."""
CLOCKS_LOOK_S: Final = 1.0
"""Time between two looks at the clocks."""
RENEW_AT: Final = 3
"""A token is renewed when this part (a third) of its lifetime is left."""
SHORTEST_PAUSE: Final = 0.8
"""Shortest pause between two beats, as a part of `factory_beat_s`."""


def beat_pause_s(beat_s: float) -> float:
    """Return for how long to wait after a beat, `beat_s` at the most.

    Chance keeps a fleet apart: whom an API that stood still, or the kill switch, made beat at one moment would
    otherwise beat together ever after.
    """
    return beat_s * uniform(SHORTEST_PAUSE, 1.0)  # noqa: S311 - no secret


@dataclass
class Agent:
    """One factory's agent; the methods are in the order of its life."""

    name: str
    settings: Settings
    environ: dict[str, str]
    instance: str = field(default_factory=lambda: uuid.uuid4().hex)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    exit_code: int = 0

    def __post_init__(self) -> None:
        self.paths = FactoryPaths(self.settings.home / "factories" / self.name)
        for folder in (self.paths.attempts, self.paths.mirrors, self.paths.spool):
            folder.mkdir(parents=True, exist_ok=True)
        self.paths.root.chmod(0o700)  # what engines print is not redacted yet where it lies
        self.token_file = factory_token_file(self.settings.home, self.name)
        url = self.settings.api_url or f"http://{self.settings.api_host}:{self.settings.api_port}"
        self.api = FactoryApi(url, self.token_file)
        self.spool = Spool(self.paths.spool, self.api, factory=self.name, instance=self.instance)
        self.catalogue = read_catalogue(self.settings.engines_dir or self.settings.home / "engines")
        self.supervisors = Supervisors(ROOT / "workers" / "supervisor.py")
        self.workspaces = Workspaces(self.paths.mirrors)
        self.draining = asyncio.Event()
        self.orders = Orders()
        self.orders.see(self._sentinel())
        self._absences: list[Absence] = []
        """What the clocks told and the API was not told yet."""
        self._news = asyncio.Event()
        self.attempts = RunningAttempts()
        self.link = FactoryLink(
            url,
            self.name,
            self.instance,
            credentials=self.api.fresh_credentials,
            running=self.attempts.all,
            switch_epoch=lambda: self.orders.switch_epoch,
            stop=self.attempts.stop,
            look=self._news.set,
        )
        self.attempts.changed = self.link.running_changed
        self.api.link = self.link
        self.record = self.paths.root / "state.json"
        self.replaces = ""
        """`instance` of the agent that the fleet knew before us, when that one is proven dead."""

    async def run(self) -> int:
        """Live from report to farewell; returns the exit code."""
        if self.orders.sentinel:
            log.warning("factory.halted", file=self.orders.sentinel)
        for problem in self.catalogue.problems:
            log.warning("engine.unreadable", where=problem.path, problem=problem.message)
        self.replaces = self._note_ourselves()
        self.supervisors.warm_up()
        self.spool.resume()
        machine, _ = await asyncio.gather(self._probe(), self._settle_orphans())
        client = await self._connect()
        if client is not None and await self._register(machine):
            await self._beat_once(machine)  # halts of the fleet are known before any work is taken
            async with _Running(self._workers(client, machine)) as running:
                log.info("factory.ready", name=self.name, pid=os.getpid())
                announce_ready()
                chores = (
                    *([self.link.run()] if self.settings.factory_link else []),
                    self._beat(machine),
                    self._keep_house(),
                    self._watch_sentinel(),
                    self._watch_clocks(),
                    follow_token(client, self.token_file),
                )
                background = [asyncio.create_task(chore) for chore in chores]
                if not await running.until(self.stop):
                    self.exit_code = EXIT_BROKEN
                for task in background:
                    task.cancel()
                await self._drain()
        await self._farewell()
        return self.exit_code

    # --- beginning ----------------------------------------------------------------------------------------------------

    def _note_ourselves(self) -> str:
        """Write who we are; return the `instance` that the fleet knows this factory by, when its agent is proven dead.

        Whoever gets here holds the lock of the name on this machine (`lock_identity`). A copy of the folder elsewhere
        says the same, but not from within the same boot, which is why the fleet asks for both.
        """
        try:
            before = json.loads(self.record.read_text(encoding="utf-8"))
            dead = not is_alive(int(before["pid"]), str(before["birth"]))
            registered = str(before.get("registered", ""))
        except (OSError, ValueError, KeyError, TypeError):
            dead, registered = False, ""
        self._write_record(registered=registered)
        return registered if dead else ""

    def _write_record(self, *, registered: str) -> None:
        ourselves = {
            "name": self.name,
            "pid": os.getpid(),
            "birth": birth_of(os.getpid()),
            "instance": self.instance,
            "registered": registered,
        }
        draft = self.record.with_suffix(".tmp")
        draft.write_text(json.dumps(ourselves), encoding="utf-8")
        draft.replace(self.record)

    async def _probe(self) -> MachineReport:
        prober = Prober(self.environ, self.paths.root / "probes.json")
        return await prober.report(list(self.catalogue.engines.values()), self.paths.root)

    async def _settle_orphans(self) -> None:
        """Kill, save and certify what the agent before us left."""
        orphans = await asyncio.to_thread(lambda: list(processes.find_orphans(self.paths.attempts)))
        for orphan in orphans:
            certificate = orphan.certificate
            if certificate is not None:
                await self._patiently("certify", lambda letter=certificate: self.api.certify(letter))  # type: ignore[misc]
            orphan.close()

    async def _patiently(self, what: str, call: Callable[[], Any]) -> bool:
        """Repeat a call until the API takes it; False when it is refused for good or we have to go."""
        pause = PAUSE_S
        while not self.stop.is_set():
            try:
                await call()
            except GigafactoryError as error:
                if not error.retryable and not isinstance(error, (Conflict, Unauthenticated)):
                    log.warning("api.refused", what=what, code=error.code, error=error.message)
                    return False
                log.info("api.waiting", what=what, error=error.message)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.stop.wait(), pause)
                refused = isinstance(error, Unauthenticated)
                pause = min(pause * 2, REFUSED_PAUSE_S if refused else LONGEST_PAUSE_S)
            else:
                return True
        return False

    async def _connect(self) -> Client | None:
        pause = PAUSE_S
        while not self.stop.is_set():
            try:
                return await connect_factory(self.settings, self.token_file, identity=f"factory/{self.name}")
            except RuntimeError as error:
                way = self.settings.gateway_url or self.settings.temporal_address
                log.info("temporal.waiting", address=way, error=str(error))
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.stop.wait(), pause)
                pause = min(pause * 2, LONGEST_PAUSE_S)
        return None

    async def _register(self, machine: MachineReport) -> bool:
        body = self._report(machine)
        taken = await self._patiently("register", lambda: self.api.register(body))
        if taken:
            self._write_record(registered=self.instance)
        return taken

    def _seats_of(self, engine: str) -> int:
        return self.settings.seats_per_engine.get(engine, self.settings.seats_per_factory)

    def _report(self, machine: MachineReport) -> dict[str, Any]:
        seats = self.settings.seats_per_factory
        engines = self.catalogue.engines
        stations = [
            {
                "engine": probe.engine,
                "version": probe.version,
                "seats": self._seats_of(probe.engine),
                "usable": probe.usable,
                "repair": probe.problem,
                "supports_resume": engines[probe.engine].supports_resume,
            }
            for probe in machine.engines
        ]
        return {
            "name": self.name,
            "instance": self.instance,
            "host": host_name(),
            "pid": os.getpid(),
            "version": VERSION,
            "os": machine.os,
            "arch": machine.arch,
            "cores": machine.cores,
            "mem_gb": machine.mem_gb,
            "free_disk_gb": machine.free_disk_gb,
            "free_memory_gb": free_memory_gb(),
            "sentinel": self.orders.sentinel,
            "seats": seats,
            "capabilities": [f"factory:{self.name}", *machine.facts()],
            "declared": list(self.settings.capabilities),
            "stations": stations,
            "credentials": list(machine.credentials),
            "tools": describe_tools(machine),
            "boot": boot_id(),
            "replaces": self.replaces,
        }

    # --- working ------------------------------------------------------------------------------------------------------

    def _context(self, machine: MachineReport) -> FactoryContext:
        def engine(name: str) -> Engine:
            if name not in self.catalogue.engines:
                raise NotFound(f"factory {self.name} has no engine {name!r}")
            return self.catalogue.engines[name]

        async def rescue(folder: Path) -> Rescue:
            return await asyncio.to_thread(processes.rescue_run, folder)

        return FactoryContext(
            name=self.name,
            settings=self.settings,
            paths=self.paths,
            environ=self.environ,
            workspaces=self.workspaces,
            supervisors=self.supervisors,
            reports=self.spool,
            engine=engine,
            rescue=rescue,
            redactor=Redactor(secret_values(self.environ)),
            api=ApiAddress(self.api.url, str(self.token_file)),
            engine_versions={probe.engine: probe.version for probe in machine.engines},
            draining=self.draining,
            orders=self.orders,
            running=self.attempts,
        )

    def _workers(self, client: Client, machine: MachineReport) -> list[Worker]:
        """Return one worker for each queue: a slot is reserved before a poll, so queues never share slots."""
        context = self._context(machine)
        seats = self.settings.seats_per_factory
        ship = ShipActivities(context)
        workspace_steps: list[Callable[..., Any]] = [JudgeActivities(context).judge, ship.ship, ship.retract]
        slots = seats + WORKSPACE_SLOTS_BEYOND_SEATS
        run_engine = EngineActivities(context).run_engine
        usable = [probe.engine for probe in machine.engines if probe.usable and self._seats_of(probe.engine)]
        return [
            self._worker(client, factory_queue(self.name), workspace_steps, slots),
            *(
                self._worker(client, station_queue(self.name, engine), [run_engine], self._seats_of(engine))
                for engine in usable
            ),
        ]

    def _worker(self, client: Client, queue: str, steps: Sequence[Callable[..., Any]], slots: int) -> Worker:
        grace_s = self.settings.drain_grace_s + self.settings.stop_grace_s + SEAL_S
        return Worker(
            client,
            task_queue=queue,
            activities=steps,
            max_concurrent_activities=slots,
            max_concurrent_activity_task_polls=1,
            graceful_shutdown_timeout=timedelta(seconds=grace_s),
        )

    async def _beat(self, machine: MachineReport) -> None:
        """Tell the API that we live, until told otherwise; at once when there is something to tell."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), beat_pause_s(self.settings.factory_beat_s))
            self._news.clear()
            await self._beat_once(machine)

    async def _beat_once(self, machine: MachineReport) -> None:
        """Tell the API that we live, and heed what it answers."""
        del self._absences[:-ABSENCES_TOLD]
        telling = len(self._absences)  # more may come while the API is told of these
        body = {
            "instance": self.instance,
            "absences": [absence.model_dump() for absence in self._absences],
            "load": load_per_core(),
            "free_disk_gb": free_disk_gb(self.paths.root),
            "free_memory_gb": free_memory_gb(),
            "sentinel": self.orders.sentinel,
            "warm_repositories": self.workspaces.warm(),
        }
        try:
            orders = await self.api.beat(self.name, body)
            del self._absences[:telling]
            self.orders.hear(orders.switch, hand_over=orders.hand_over)
        except NotFound:
            await self._register(machine)
        except Conflict as error:
            log.error("factory.replaced", error=error.message)  # noqa: TRY400 - expected, and it says enough
            self.exit_code = EXIT_IN_USE
            self.stop.set()
        except Unauthenticated as error:  # the token in our file as well: it was revoked, or expired
            log.error("factory.refused", error=error.message)  # noqa: TRY400 - expected, and it says enough
            self.exit_code = EXIT_REFUSED
            self.stop.set()
        except GigafactoryError as error:
            log.warning("factory.unheard", error=error.message)

    async def _watch_sentinel(self) -> None:
        """Stop what runs when a sentinel file appears, whoever is away; tell the API of it when it can be told."""
        while True:
            if self.orders.see(self._sentinel()):
                log.warning("factory.halted" if self.orders.sentinel else "factory.released", file=self.orders.sentinel)
                self._news.set()
            await asyncio.sleep(SENTINEL_LOOK_S)

    async def _watch_clocks(self) -> None:
        """Notice that the machine was suspended, this process stopped, or the time of day set; tell the API at once.

        Attempts look after their leases themselves; this is for people.
        """
        before = _look_at_clocks()
        while True:
            await asyncio.sleep(CLOCKS_LOOK_S)
            after = _look_at_clocks()
            for absence in absences(before, after, CLOCKS_LOOK_S):
                log.warning("factory.absent", kind=absence.kind, by_s=round(absence.by_s, 1))
                self._absences.append(absence)
                self._news.set()
            before = after

    def _sentinel(self) -> str:
        """Return the sentinel file that is there: of the whole home, or of this factory; empty for none."""
        files = (self.settings.home / SENTINEL, self.paths.root / SENTINEL)
        return next((str(file) for file in files if file.exists()), "")

    async def _keep_house(self) -> None:
        """Forget attempts that ended long ago, and renew the token in good time."""
        while True:
            await asyncio.to_thread(processes.forget_old_attempts, self.paths.attempts)
            with suppress(GigafactoryError):  # the next round comes long before the token's end
                await self._renew_token()
            await asyncio.sleep(HOUSEKEEPING_S)

    async def _renew_token(self) -> None:
        """Put a new token in the place of ours when the last third of its lifetime has begun; one without end stays."""
        token = await self.api.own_token()
        if token.expires_at is None or token.successor:
            return
        left = token.expires_at - datetime.now(UTC)
        if left < (token.expires_at - token.created_at) / RENEW_AT:
            secret = await self.api.rotate_own_token()
            await asyncio.to_thread(write_token, self.token_file, secret)
            log.info("token.renewed", name=self.name)

    # --- the end ------------------------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Take nothing more and let running attempts end with a checkpoint; the workers wait for them."""
        log.info("factory.draining", name=self.name)
        with suppress(GigafactoryError, TimeoutError):  # first, so that what ends now is not sent back here
            async with asyncio.timeout(LAST_WORDS_S):
                await self.api.drain(self.name, self.instance)
        self.draining.set()

    async def _farewell(self) -> None:
        await self.spool.drain(LAST_WORDS_S)
        with suppress(GigafactoryError, TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                await self.api.leave(self.name, self.instance)
        self.supervisors.close()
        await self.api.close()
        log.info("factory.left", name=self.name)


class _Running:
    """Runs workers for as long as the block lasts, and shuts them down together."""

    def __init__(self, workers: list[Worker]) -> None:
        self._workers = workers
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(worker.run()) for worker in self._workers]
        return self

    async def until(self, stop: asyncio.Event) -> bool:
        """Wait until `stop` is set; False when a worker ended before."""
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({stopping, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        for task in self._tasks:
            if task.done() and task.exception():
                log.error("worker.broken", error=str(task.exception()))
        return stop.is_set()

    async def __aexit__(self, *_error: object) -> None:
        await asyncio.gather(*(worker.shutdown() for worker in self._workers))
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _look_at_clocks() -> Clocks:
    return Clocks(boot_s=boot_time(), running_s=time.monotonic(), wall_s=time.time())


def host_name() -> str:
    """Return the name of this machine, as jobs are pinned to it."""
    return socket.gethostname()


def lock_identity(folder: Path) -> IO[str] | None:
    """Take the lock that makes one agent the only one of its name on this machine; None when another has it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "lock").open("w", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


async def main(arguments: Sequence[str] | None = None) -> int:
    """Run a factory until SIGTERM or SIGINT; returns the exit code."""
    parser = argparse.ArgumentParser(prog="workers.factory_agent", description="Runs one factory.")
    parser.add_argument("--name", help="name of the factory; a memorable one is made up when it is missing")
    given = parser.parse_args(arguments)
    settings = read_settings()
    name = given.name or settings.enrolled_as or memorable_name(f"{host_name()} {settings.home}")
    configure_logging(name)
    lock = lock_identity(settings.home / "factories" / name)
    if lock is None:
        log.error(
            "factory.in_use", name=name, hint="another agent of this name runs here; give this one another --name"
        )
        return EXIT_IN_USE
    become_subreaper()
    agent = Agent(name, settings, dict(os.environ))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, agent.stop.set)
    with lock:
        return await agent.run()


def watch_children_by_pidfd() -> None:
    """Have asyncio wait for child processes by pidfd, as it does from Python 3.12 on, instead of a thread for each."""
    if sys.version_info < (3, 12) and hasattr(os, "pidfd_open"):
        asyncio.set_child_watcher(asyncio.PidfdChildWatcher())


if __name__ == "__main__":
    watch_children_by_pidfd()
    collect_rarely()
    code = asyncio.run(main())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the SDK's runtime may abort a normal interpreter exit (sdk-python issue 300)
