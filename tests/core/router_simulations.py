"""Fleets that live for a while under the router, and judges who watch them: briefly in tests, for long in `gf bench`.

The judges count for themselves, from what happened, and know nothing of the router's insides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from random import Random
from typing import NamedTuple

from core.job import Priority
from core.router import (
    FactoryView,
    FleetSnapshot,
    Limits,
    LockView,
    Plan,
    PlannedGrant,
    ProductView,
    ReadyJob,
    RouterCache,
    RunningJob,
    StationView,
    Turns,
    plan,
)
from core.router_preemption import potential

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(second: int) -> datetime:
    """Return a time; each second is another job's submission."""
    return START + timedelta(seconds=second)


class Seat(NamedTuple):
    """A running job."""

    job: ReadyJob
    factory: str
    engine: str


class Machine(NamedTuple):
    """A factory without what is the same for all of them."""

    name: str
    seats: int
    stations: tuple[tuple[str, int], ...]
    """Engines and their seats."""
    online: bool = True

    def view(self, running: list[Seat]) -> FactoryView:
        """Return the factory with these jobs of the fleet on it."""
        here = Counter(seat.engine for seat in running if seat.factory == self.name)
        stations = tuple(
            StationView.model_construct(engine=engine, seats=seats, busy=here[engine])
            for engine, seats in self.stations
        )
        return FactoryView.model_construct(
            name=self.name,
            state="online" if self.online else "offline",
            stations=stations,
            seats=self.seats,
            busy=here.total(),
        )


# --- fair shares ------------------------------------------------------------------------------------------------------


class Shares(NamedTuple):
    """What products got over a long time."""

    grants: Counter[str]
    shares: dict[str, int]

    @property
    def worst_error(self) -> float:
        """Return by how much, at most, a product's part of the grants is off its part of the shares, relative to it."""
        per_share = self.grants.total() / sum(self.shares.values())
        return max(abs(self.grants[name] / (share * per_share) - 1) for name, share in self.shares.items())

    @property
    def jain(self) -> float:
        """Return Jain's index of the grants per share: 1 when all are served alike."""
        rates = [self.grants[name] / share for name, share in self.shares.items()]
        return sum(rates) ** 2 / (len(rates) * sum(rate * rate for rate in rates))


def weighted_dispatches(
    *, products: int, dispatches: int, flood: int, machines: int = 20, seats: int = 50, freed: int = 50, seed: int = 1
) -> Shares:
    """Let products with shares 1 … 16 compete for the seats of a busy fleet, one of them with `flood` waiting jobs.

    The others always have two jobs waiting, the flooding one is older than all of them. `freed` seats, drawn by lot,
    become free before each plan.
    """
    dice = Random(seed)  # noqa: S311 - the same fleet again is what is wanted
    cache, number = RouterCache(), count()
    fleet = [Machine(f"f-{index}", seats, (("shell", seats),)) for index in range(machines)]
    shares = {f"p-{index}": 1 + index % 16 for index in range(products)}
    views = tuple(ProductView(product_id=name, share=share) for name, share in shares.items())

    def submitted(product: str) -> ReadyJob:
        second = next(number)
        return ReadyJob(job_id=f"j-{second}", product_id=product, submitted_at=at(second), engine="shell")

    waiting = {job.job_id: job for job in (submitted("p-0") for _ in range(flood))}
    waiting |= {job.job_id: job for job in (submitted(name) for name in shares for _ in range(2))}
    busy = {machine.name: 0 for machine in fleet}
    grants, turns = Counter[str](), Turns()
    while grants.total() < dispatches:
        factories = tuple(
            FactoryView(
                name=machine.name,
                stations=(StationView(engine="shell", seats=seats, busy=busy[machine.name]),),
                seats=seats,
                busy=busy[machine.name],
            )
            for machine in fleet
        )
        snapshot = FleetSnapshot(
            jobs=tuple(waiting.values()), factories=factories, products=views, turns=turns, now=START
        )
        decided = plan(snapshot, cache)
        turns = decided.turns_after({grant.job_id for grant in decided.grants})
        overtaken = decided.overtaken
        for grant in decided.grants:
            product = waiting.pop(grant.job_id).product_id
            grants[product] += 1
            busy[grant.factory] += 1
            job = submitted(product)
            waiting[job.job_id] = job
        for job_id, times in overtaken.items():
            waiting[job_id] = overtaken_again(waiting[job_id], times)
        for _ in range(freed):
            name = dice.choice([name for name, jobs in busy.items() if jobs])
            busy[name] -= 1
    return Shares(grants, shares)


def overtaken_again(job: ReadyJob, times: int) -> ReadyJob:
    """Return the job as the ledger has it after it was overtaken."""
    return job.model_copy(update={"overtaken": job.overtaken + times})


# --- starvation -------------------------------------------------------------------------------------------------------

_ENGINES = ("claude", "codex", "shell")


class Adversary:
    """A small fleet in the hands of somebody who wants one job or another to wait for ever.

    It floods, comes with ever new products, favours heavy ones, frees many seats at once or only those that its victims
    cannot use, and takes machines away. The judge counts every overtaking for itself.
    """

    def __init__(self, seed: int) -> None:
        dice = self._dice = Random(seed)  # noqa: S311 - the same fleet again is what is wanted
        self.bound = dice.choice((1, 2, 3, 5, 20))
        self._machines = [self._machine(f"f-{number}") for number in range(dice.randint(1, 4))]
        self._waiting: dict[str, ReadyJob] = {}
        self._running: list[Seat] = []
        self._turns = Turns()
        self._cache = RouterCache()
        self._number = count()
        self._judged: Counter[str] = Counter()
        self.steps = 0
        self.overtakings = 0
        self.worst = 0.0
        """Overtakings of a job per eligible seat, in proportion to the bound; 1 is as far as it may go."""

    def _machine(self, name: str) -> Machine:
        dice = self._dice
        stations = tuple((engine, dice.randint(1, 2)) for engine in dice.sample(_ENGINES, dice.randint(1, 3)))
        return Machine(name, dice.randint(1, 3), stations)

    def move(self) -> None:
        """Do a few nasty things, let the router plan, and judge what it did."""
        for _ in range(self._dice.randint(1, 6)):
            self._dice.choice((self._submit, self._submit, self._end, self._end, self._switch))()
            self.steps += 1
        decided = plan(self._snapshot(), self._cache)
        self._judge(decided)
        self._turns = decided.turns_after({grant.job_id for grant in decided.grants})
        for grant in decided.grants:
            self._running.append(Seat(self._waiting.pop(grant.job_id), grant.factory, grant.engine))
            self._judged.pop(grant.job_id, None)
        for job_id, times in decided.overtaken.items():
            self._waiting[job_id] = overtaken_again(self._waiting[job_id], times)

    def _submit(self) -> None:
        if len(self._waiting) > 12:
            return
        dice, second = self._dice, next(self._number)
        product = dice.choice(("heavy", "light", f"new-{second}"))
        job = ReadyJob.model_construct(
            job_id=f"j-{second:07}",
            product_id=product,
            priority=dice.choice((Priority.MEDIUM, Priority.MEDIUM, Priority.MEDIUM, Priority.LOW)),
            submitted_at=at(second),
            engine_preference=tuple(dice.sample(_ENGINES, dice.randint(1, 2))),
            lock=dice.choice((None, None, None, "l")),
        )
        self._waiting[job.job_id] = job

    def _end(self) -> None:
        if self._running:
            victims = [seat for seat in self._running if seat.factory == self._machines[0].name] or self._running
            chosen = self._dice.choice((victims, self._running))
            self._running.remove(self._dice.choice(chosen))

    def _switch(self) -> None:
        """Take a machine away, or bring one back; its jobs end."""
        if self._dice.random() < 0.8:
            return
        number = self._dice.randrange(len(self._machines))
        machine = self._machines[number]
        self._machines[number] = machine._replace(online=not machine.online)
        self._running = [seat for seat in self._running if seat.factory != machine.name]

    def _snapshot(self) -> FleetSnapshot:
        return FleetSnapshot.model_construct(
            jobs=tuple(self._waiting.values()),
            factories=tuple(machine.view(self._running) for machine in self._machines),
            locks=tuple(_lock(seat.job) for seat in self._running if seat.job.lock),
            products=(ProductView.model_construct(product_id="heavy", share=16),),
            limits=Limits.model_construct(starvation_bound=self.bound),
            turns=self._turns,
            now=START,
        )

    def _judge(self, decided: Plan) -> None:
        """Count who was overtaken, and how near that came to the bound."""
        free = _FreeSeats(self._machines, self._running)
        granted = {grant.job_id for grant in decided.grants}
        held = {seat.job.lock for seat in self._running} | {self._waiting[job_id].lock for job_id in granted}
        victims = [job for job in self._waiting.values() if job.job_id not in granted and job.lock not in held - {None}]
        firsts = list({_line_of(job): job for job in reversed(victims)}.values())
        for grant in decided.grants:
            winner = self._waiting[grant.job_id]
            for job in firsts:
                equal = job.priority == winner.priority and job.job_id < winner.job_id
                if equal and free.could_take(grant.factory, job):
                    self._count(job)
            free.take(grant)

    def _count(self, job: ReadyJob) -> None:
        seats = sum(machine.seats_for(job) for machine in map(_Eligible, self._machines))
        self._judged[job.job_id] += 1
        self.overtakings += 1
        self.worst = max(self.worst, self._judged[job.job_id] / (self.bound * seats))


def _lock(job: ReadyJob) -> LockView:
    return LockView.model_construct(job_id=job.job_id, lock=job.lock)


def _line_of(job: ReadyJob) -> tuple[object, ...]:
    return job.product_id, job.priority, job.engine_preference, job.lock


class _Eligible(NamedTuple):
    """A machine as a job sees it."""

    machine: Machine

    def seats_for(self, job: ReadyJob) -> int:
        """Return how many jobs the machine can have at once, if it can have this one."""
        machine = self.machine
        if not machine.online or not any(engine in job.engine_preference for engine, _ in machine.stations):
            return 0
        return min(machine.seats, sum(seats for _, seats in machine.stations))


class _FreeSeats:
    """Free seats, counted while grants are carried out."""

    def __init__(self, machines: list[Machine], running: list[Seat]) -> None:
        here = Counter(seat.factory for seat in running)
        there = Counter((seat.factory, seat.engine) for seat in running)
        self._machine = {machine.name: machine for machine in machines}
        self._free = {machine.name: machine.seats - here[machine.name] for machine in machines}
        self._at = {
            (machine.name, engine): seats - there[machine.name, engine]
            for machine in machines
            for engine, seats in machine.stations
        }

    def could_take(self, factory: str, job: ReadyJob) -> bool:
        """Return whether the factory could start the job now."""
        return (
            self._machine[factory].online
            and self._free[factory] > 0
            and any(self._at.get((factory, engine), 0) > 0 for engine in job.engine_preference)
        )

    def take(self, grant: PlannedGrant) -> None:
        """Take a seat."""
        self._free[grant.factory] -= 1
        self._at[grant.factory, grant.engine] -= 1


# --- preemption -------------------------------------------------------------------------------------------------------


class Preempting:
    """A small fleet in which critical jobs push low ones aside, judged at every step.

    Between two disturbances nothing comes and nothing ends: then every step must make the potential smaller, so that no
    state is ever seen twice; a step that does not is counted.
    """

    def __init__(self, seed: int) -> None:
        self._dice = Random(seed)  # noqa: S311 - the same fleet again is what is wanted
        self._number = count()
        self._machines = [self._machine(f"f-{number}") for number in range(self._dice.randint(1, 3))]
        engines = self._dice.choice(({}, {}, {"claude": 1}, {"claude": 2, "codex": 1}))
        bound = self._dice.randint(1, 3)
        self._limits = Limits(preemption=True, preemption_bound=bound, engines=engines, factory_bound=1_000_000)
        self._limit = self._dice.choice((None, None, 3))
        """Jobs at once of one of the products."""
        self._holders: dict[str, str] = {}
        """Locks, and the jobs that hold them: a paused job keeps its own."""
        self._waiting: dict[str, ReadyJob] = {}
        self._running: dict[str, Seat] = {}
        self._paused: Counter[str] = Counter()
        self._turns = Turns()
        self._cache = RouterCache()
        self.states = 0
        self.preemptions = 0
        self.cycles = 0
        """Steps after which the potential was as great as before: the fleet could go on so for ever."""
        self.in_vain = 0
        """Pauses beyond the critical jobs that got a seat thereupon."""

    def _machine(self, name: str) -> Machine:
        dice = self._dice
        stations = tuple((engine, dice.randint(1, 2)) for engine in dice.sample(_ENGINES, dice.randint(1, 3)))
        return Machine(name, dice.randint(1, 3), stations)

    def disturb(self) -> None:
        """Let jobs come and end."""
        dice = self._dice
        for job_id in list(self._running):
            if dice.random() < 0.25:
                self._end(self._running.pop(job_id).job)
        for _ in range(dice.randint(1, 5)):
            second = next(self._number)
            job = ReadyJob.model_construct(
                job_id=f"j-{second:07}",
                product_id=dice.choice(("p", "q")),
                priority=dice.choice((Priority.CRITICAL, Priority.MEDIUM, Priority.LOW, Priority.LOW)),
                submitted_at=at(second),
                engine_preference=tuple(dice.sample(_ENGINES, dice.randint(1, 2))),
                lock=dice.choice((None, None, "l")),
            )
            self._waiting[job.job_id] = job
        while len(self._waiting) > 8:
            self._end(self._waiting.pop(dice.choice(list(self._waiting))))

    def _end(self, job: ReadyJob) -> None:
        if job.lock and self._holders.get(job.lock) == job.job_id:
            del self._holders[job.lock]

    def settle(self) -> None:
        """Carry out what the router plans until it plans nothing more, or until a step comes no nearer to that.

        The seats that a plan has freed are worth what the critical job counts for which they were: the next plan's.
        """
        paused, before = 0, None
        while True:
            snapshot = self._snapshot()
            decided = plan(snapshot, self._cache)
            critical = sum(self._waiting[grant.job_id].priority == Priority.CRITICAL for grant in decided.grants)
            self.states += 1
            self.in_vain += max(0, paused - critical)
            now = potential(snapshot) - (len(self._machines) + 1) * bool(paused)
            self.cycles += before is not None and now >= before
            paused, before = len(decided.preemptions), now
            if self.cycles or not (decided.grants or paused):
                return
            self._turns = decided.turns_after({grant.job_id for grant in decided.grants})
            self._carry_out(decided)

    def _carry_out(self, decided: Plan) -> None:
        for grant in decided.grants:
            job = self._waiting.pop(grant.job_id)
            self._running[grant.job_id] = Seat(job, grant.factory, grant.engine)
            if job.lock:
                assert self._holders.setdefault(job.lock, job.job_id) == job.job_id
        for item in decided.preemptions:
            victim = self._running.pop(item.victim)
            waiting = self._waiting[item.job_id]
            assert (victim.job.priority, waiting.priority) == (Priority.LOW, Priority.CRITICAL)
            within_limit = self._limit is not None and victim.job.product_id == waiting.product_id == "q"
            assert victim.factory == item.factory or self._limits.engines or within_limit
            self._paused[item.victim] += 1
            assert self._paused[item.victim] <= self._limits.preemption_bound
            self._waiting[item.victim] = victim.job
            self.preemptions += 1

    def _snapshot(self) -> FleetSnapshot:
        seats = list(self._running.values())
        return FleetSnapshot.model_construct(
            jobs=tuple(self._waiting.values()),
            factories=tuple(machine.view(seats) for machine in self._machines),
            locks=tuple(LockView.model_construct(job_id=holder, lock=name) for name, holder in self._holders.items()),
            products=(
                ProductView.model_construct(
                    product_id="q", limit=self._limit, running=sum(seat.job.product_id == "q" for seat in seats)
                ),
            ),
            running=tuple(
                RunningJob.model_construct(
                    job_id=seat.job.job_id,
                    product_id=seat.job.product_id,
                    priority=seat.job.priority,
                    factory=seat.factory,
                    engine=seat.engine,
                    granted_at=seat.job.submitted_at,
                    preempted=self._paused[seat.job.job_id],
                )
                for seat in seats
            ),
            limits=self._limits,
            turns=self._turns,
            now=START,
        )


def adversaries(seed: int, moves: int) -> Iterator[Adversary]:
    """Yield one adversary after another, each after it made `moves` moves."""
    for number in count(seed):
        adversary = Adversary(number)
        for _ in range(moves):
            adversary.move()
        yield adversary


def preempting_fleets(seed: int, disturbances: int) -> Iterator[Preempting]:
    """Yield one fleet after another, each after it settled down that often."""
    for number in count(seed):
        fleet = Preempting(number)
        for _ in range(disturbances):
            fleet.disturb()
            fleet.settle()
        yield fleet
