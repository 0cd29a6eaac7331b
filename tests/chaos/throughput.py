"""How much slower jobs ship while our processes are killed, one every 20 seconds. Does I/O: everything."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.bench.measuring import median, tell
from tests.chaos.campaign import Campaign, Ground, Scale
from tests.chaos.plan import Fault
from tests.chaos.referee import Referee, Verdict

KILLED = tuple(Fault("kill", target, 0.0, pick=0.5) for target in ("agent", "api", "supervisor", "control"))


@dataclass(frozen=True)
class Rates:
    """Jobs per second of each round."""

    clean: tuple[float, ...]
    killed: tuple[float, ...]
    kills: int
    verdicts: tuple[Verdict, ...]

    @property
    def ratio(self) -> float | None:
        """Return how much of the clean rate is left; None when the rounds were too short for a kill."""
        return round(median(self.killed) / median(self.clean), 3) if self.kills else None


async def compare(scale: Scale, ground: Ground, *, jobs: int, rounds: int) -> Rates:
    """Take `jobs` jobs through a whole stack with and without kills, in turn."""
    rates: dict[bool, list[float]] = {False: [], True: []}
    verdicts, kills = [], 0
    for turn in range(2 * rounds):
        under_fire = turn % 4 in (1, 2)  # clean, killed, killed, clean: what grows meanwhile slows both
        referee = Referee(ground.home.parent / f"rate-{turn}", scale.remotes)
        campaign = Campaign(replace(scale, jobs=jobs), ground, referee)
        took = await campaign.run((), steadily=KILLED if under_fire else ())
        rates[under_fire].append(round(jobs / took, 2))
        verdicts.append(await campaign.judge())
        kills += campaign.injector.kills
        tell(f"throughput: {rates[under_fire][-1]} jobs/s {'under fire' if under_fire else 'clean'}")
    return Rates(tuple(rates[False]), tuple(rates[True]), kills, tuple(verdicts))
