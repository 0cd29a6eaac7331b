"""The ledger: everything that the control plane knows, behind one class. Does I/O: SQL.

Every method is one unit of work in one transaction (`store.database`); what it does lies in the module that its section
names. Times are aware, and `now` is always an argument. Whoever frees a seat or a lock calls `dispatch` afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

from core.attempt import BuildResult, DeathCertificate, Grant
from core.flakiness import SPOILT, SUCCEEDED, FlakyPolicy
from core.job import JobSpec, Stage
from core.lifecycle import Decided, Record, RecordAck
from core.router import FleetSnapshot
from core.router_rest import Rest
from core.settings import Settings
from core.switch import Halt, HaltScope, SwitchState
from store import (
    admission,
    attempt_output,
    attempt_report,
    attempts,
    attestations,
    audit,
    edges,
    explaining,
    factories,
    graph,
    intake,
    limits,
    mending,
    outbox,
    parents,
    placing,
    projection,
    quarantine,
    queries,
    recovery,
    seats,
    stops,
    switch,
    tokens,
)
from store.admission import LeaseTerms
from store.database import Database, open_database
from store.dispatcher import Dispatcher
from store.fleet_snapshot import FleetReader
from store.messages import (
    AttemptReport,
    FactoryState,
    FactoryStatus,
    NewToken,
    Registration,
    Submission,
)
from store.stops import LinkNews
from store.views import (
    ArtifactView,
    AttemptView,
    AuditLine,
    AuditReport,
    BeatAnswer,
    ChainReport,
    DagView,
    DrainOrder,
    EventView,
    FactoryRow,
    HaltRow,
    JobDocuments,
    JobExplanation,
    JobPage,
    JobView,
    LatestIds,
    LimitKind,
    LimitRow,
    LogView,
    OutboxRow,
    PlaceExplanation,
    Pulled,
    ReportAck,
    Restarted,
    SeatCorrection,
    StartPayload,
    Submitted,
    TokenChanges,
    TokenRow,
    UnfinishedJob,
    WaitState,
)

BEATS_UNTIL_SILENT = 3
"""Missed beats after which a factory's agent no longer counts as living."""


class Ledger:
    """The ledger of one installation; `open_ledger` makes it."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._rules = factories.FactoryRules(settings.sensitive_capabilities, settings.routing.limits)
        self._fleet = FleetReader(self._rules.sensitive, settings.routing)
        self._default_limits = limits.of_settings(settings.routing)
        self._silent_after = timedelta(seconds=BEATS_UNTIL_SILENT * settings.factory_beat_s)
        self._outbox_retry_s = settings.outbox_retry_s
        self._seat_wait = timedelta(seconds=settings.seat_wait_s)
        self._flaky = FlakyPolicy(failures=settings.quarantine_failures, window_s=settings.quarantine_window_s)
        terms = LeaseTerms(ttl_s=settings.lease_ttl_s, beat_s=settings.beat_s)
        self._dispatcher = Dispatcher(database, self._fleet, terms)

    async def close(self) -> None:
        """Let all connections go."""
        await self._database.close()

    # --- taking jobs in (intake) --------------------------------------------------------------------------------------

    async def submit(
        self,
        spec: JobSpec,
        *,
        job_id: str,
        idempotency_key: str | None,
        canonical: dict[str, Any],
        snapshot: dict[str, Any],
        submitted_by: str,
        now: datetime,
    ) -> Submitted:
        """Take one job in; see `submit_all`."""
        submission = Submission(
            job_id=job_id,
            spec=spec,
            canonical=canonical,
            documents=snapshot,
            idempotency_key=idempotency_key,
            submitted_by=submitted_by,
        )
        (submitted,) = await self.submit_all((submission,), now)
        return submitted

    async def submit_all(self, submissions: Sequence[Submission], now: datetime) -> tuple[Submitted, ...]:
        """Take several jobs in, or none; they may name each other as parents, in any order.

        Raises:
            IdempotencyConflict: a key is taken by other content; `differs` names the fields.
            InvalidInput: an unknown parent, or a cycle, which is printed with the names of the submissions.
            IllegalAction: a job is to be a child of one that has ended, or that is being shipped right now.

        """
        return await self._database.write(intake.submit, submissions, now, self._seat_wait)

    async def jobs_of_keys(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
        """Return the jobs that were submitted under (product, idempotency key) pairs, as far as there are any."""
        return await self._database.read(intake.jobs_of_keys, keys)

    # --- admission (admission, dispatcher) ----------------------------------------------------------------------------

    async def dispatch(self, now: datetime, *, limit: int | None = None) -> tuple[Grant, ...]:
        """Give free seats to waiting jobs and return the grants made by this call.

        Cheap when there is nothing to give. Calls that come in while a pass runs share the pass after it, and only one
        of them returns its grants.
        """
        return await self._dispatcher.dispatch(now, limit)

    async def ready(self, job_id: str, now: datetime) -> bool:
        """Let the queued job have a seat; False when it is not queued, or a parent of it is not done.

        Raises:
            NotFound: there is no such job.

        """
        return await self._database.write(admission.make_ready, job_id, now)

    async def hold(self, job_id: str, reason: str, now: datetime) -> None:
        """Let the job have no seat until `ready` or `route`; one that it has already stays.

        Raises:
            NotFound: there is no such job.

        """
        await self._database.write(admission.hold, job_id, reason, now)

    async def route(self, job_id: str, now: datetime) -> Grant | None:
        """Return the grant that the job has, or the one that it gets now; None: it is parked, and will be signalled.

        The grant of a lease that is `accepted` already is returned too: its result is `accepted_result`.

        Raises:
            NotFound: there is no such job.

        """
        grant = await self.grant(job_id)
        if grant is not None or not await self.ready(job_id, now):
            return grant
        await self.dispatch(now)
        return await self.grant(job_id)

    async def grant(self, job_id: str) -> Grant | None:
        """Return the grant of the attempt that holds a seat for the job."""
        return await self._database.read(admission.living_grant, job_id)

    async def grant_undeliverable(self, job_id: str, epoch: int, now: datetime) -> bool:
        """Take back a grant whose workflow does not exist; False when it began or ended meanwhile. Then dispatch."""
        return await self._database.write(admission.take_back, job_id, epoch, now)

    async def rest(self, job_id: str, now: datetime) -> Rest | None:
        """Return until when the parked job has to sleep, because every engine that could do it rests; None: it waits.

        Raises:
            NotFound: there is no such job.

        """
        return await self._database.read(placing.rest, self._fleet, job_id, now)

    async def place_step(self, job_id: str, avoid: str, now: datetime) -> str | None:
        """Return an online factory that can take a step of the job's candidate; `avoid` only when there is no other.

        The factory of the newest attempt comes first. No seat is taken.

        Raises:
            NotFound: there is no such job.

        """
        return await self._database.read(placing.place_step, self._fleet, job_id, avoid, now)

    async def snapshot(self, now: datetime) -> FleetSnapshot:
        """Return what the router would plan from now."""
        found = await self._database.read(self._fleet.read, now)
        assert found is not None
        return found

    async def explanation(self, job_id: str, now: datetime) -> JobExplanation:
        """Return why the job is where it is; for a job that waits computed now, otherwise as it was decided.

        Raises:
            NotFound: there is no such job.

        """
        inputs = await self._database.read(explaining.read, self._fleet, job_id, now)
        return explaining.explain(inputs)

    async def place_explanation(self, job_id: str, factory: str, now: datetime) -> PlaceExplanation:
        """Return why the job does not run on that factory; for a job that waits computed now, otherwise as decided.

        Raises:
            NotFound: there is no such job, or no such factory.

        """
        await self.factory(factory)
        inputs = await self._database.read(explaining.read, self._fleet, job_id, now)
        return explaining.explain_place(inputs, factory)

    # --- what the workflow writes (projection) ------------------------------------------------------------------------

    async def record(
        self, job_id: str, seq: int, record: Record, now: datetime, *, decided: Decided | None = None
    ) -> RecordAck:
        """Apply a decision of the workflow, once for each (job, seq); when the answer says `freed`, dispatch.

        `decided` is where the workflow is with it. When another record has that number, the answer's `ahead` is where
        the workflow was with the newest record of this life.

        Raises:
            NotFound: there is no such job.
            IllegalTransition: the job is in a stage from which the path does not lead on.
            Conflict: another record has that number, and where the workflow was with the newest is not known.

        """
        ack = await self._database.write(projection.record, job_id, seq, record, now, decided=decided)
        outcome = record.attempt_outcome
        if outcome in SPOILT or (outcome == SUCCEEDED and record.epoch > 1):  # the latter shows whose fault it was
            await self._judge_factories(job_id, record.epoch, now)
        return ack

    async def _judge_factories(self, job_id: str, epoch: int, now: datetime) -> None:
        """Quarantine the factory that spoilt an attempt once too often."""
        if self._flaky.failures:
            await self._database.write(quarantine.judge_after, job_id, epoch, self._flaky, now)

    async def requeue(self, job_id: str, now: datetime, *, by: str = "", note: str = "") -> int:
        """Begin another life of a failed job and return its number; a `start` row is on its way.

        Raises:
            NotFound: there is no such job.
            IllegalTransition: the job ended for good.
            IllegalAction: the job has not ended; its workflow takes the action.

        """
        return await self._database.write(projection.requeue, job_id, now, by, note)

    # --- what an attempt writes (attempt_report, attempts) ------------------------------------------------------------

    async def report(self, job_id: str, epoch: int, report: AttemptReport, now: datetime) -> ReportAck:
        """Take in what an attempt tells, all of it or, when its epoch is stale, nothing but a trace of the refusal.

        A result needs a living lease (the same one again is fine) and brings the job to its review; one that comes too
        late is refused by itself, after everything else of the report was taken.

        Raises:
            NotFound: there is no such job.
            StaleEpoch: the epoch is not the newest, or its lease is gone.

        """
        return await self._database.write(attempt_report.take, job_id, epoch, report, now)

    async def confirm_lease(self, job_id: str, epoch: int, now: datetime) -> bool:
        """Note that an attempt lives which Temporal cannot hear; return whether it is wanted to stop.

        Raises:
            NotFound: there is no such job.
            StaleEpoch: the epoch is not the newest, or its lease is gone.

        """
        return await self._database.write(attempts.confirm, job_id, epoch, now)

    async def adopt(self, job_id: str, epoch: int, now: datetime, *, stop: bool = False) -> timedelta | None:
        """Keep the lease of an attempt whose heartbeat is gone but which told of itself; return how long that is good.

        None: it has not, or its lease does not live. With `stop` it hears that it is to end.
        """
        return await self._database.write(attempts.adopt, job_id, epoch, now, stop=stop)

    async def note_quarantined(
        self, job_id: str, epoch: int, *, ref: str, sha: str, message: str, now: datetime
    ) -> bool:
        """Note where the work lies that an attempt finished after its lease was lost; False: known, or nothing lost.

        Raises:
            NotFound: there is no such job.

        """
        return await self._database.write(
            attempts.note_quarantined, job_id, epoch, ref=ref, sha=sha, message=message, now=now
        )

    async def accepted_result(self, job_id: str, epoch: int) -> BuildResult | None:
        """Return what was accepted from `epoch`, for a workflow that did not hear of it."""
        return await self._database.read(attempts.accepted_result, job_id, epoch)

    async def mark_lost(
        self,
        job_id: str,
        epoch: int,
        reason: str,
        checkpoint_sha: str,
        now: datetime,
        *,
        certificate: DeathCertificate | None = None,
        tell_workflow: bool = True,
    ) -> bool:
        """End a living lease as lost; its seat is free, its writes are refused from now on, the workflow is signalled.

        `tell_workflow=False` leaves the signal out (the workflow itself calls). False: there is no living lease of that
        epoch; when it was accepted, `accepted_result` has the result.

        Raises:
            NotFound: there is no such job.
            Conflict: the certificate is for another attempt, or does not say that all processes are dead.

        """
        lost = await self._database.write(
            attempts.mark_lost,
            job_id,
            epoch,
            reason=reason,
            checkpoint_sha=checkpoint_sha,
            now=now,
            certificate=certificate,
            tell_workflow=tell_workflow,
        )
        if lost:
            await self._judge_factories(job_id, epoch, now)
        return lost

    async def guard_epoch(
        self, job_id: str, epoch: int, now: datetime, *, kind: str = "write", content: object = b""
    ) -> None:
        """Return when a write of `epoch` counts; otherwise note the refused write (its kind and digest) and raise."""
        if not await self._database.read(attempts.is_current, job_id, epoch):
            await self._database.write(attempts.guard, job_id, epoch, kind=kind, content=content, now=now)

    # --- factories (factories, seats) ---------------------------------------------------------------------------------

    async def register_factory(
        self, registration: Registration, now: datetime, *, token_id: str | None = None
    ) -> FactoryRow:
        """Take a factory in, or its new agent for the old one; dispatch afterwards. `token_id`: what it showed.

        Raises:
            Conflict: another living agent has that name.
            Unauthenticated: the token was ended meanwhile.

        """
        return await self._database.write(
            factories.register,
            registration,
            now,
            fresh=self._silent_after,
            rules=self._rules,
            token_id=token_id,
        )

    async def factory_heartbeat(self, name: str, instance: str, status: FactoryStatus, now: datetime) -> BeatAnswer:
        """Note that the agent lives and return what it has to know; when it had `returned` from offline, dispatch.

        Raises:
            NotFound: the factory has to register first.
            Conflict: another agent has taken the name over.

        """
        return await self._database.write(factories.heartbeat, name, instance, status, now)

    async def request_stop(self, job_id: str, now: datetime) -> int:
        """Note that the attempt that the job has running is to stop; return its epoch, 0 when none runs."""
        return await self._database.write(stops.request_stop, job_id, now)

    async def link_news(self, running: Sequence[tuple[str, int]]) -> LinkNews:
        """Return what the agents that run these attempts (job, epoch) have to hear."""
        return await self._database.read(stops.link_news, running)

    async def factory_state(self, name: str, state: Literal["draining", "offline"]) -> None:
        """Note what the factory's agent says of itself: `draining` before it leaves, `offline` when it has left.

        Raises:
            NotFound: there is no such factory.

        """
        await self._database.write(factories.set_state, name, state)

    async def drain_factory(self, name: str, order: DrainOrder, now: datetime) -> FactoryState:
        """Let a factory take no further jobs until `undrain_factory`, also after a restart; return its state.

        Raises:
            NotFound: there is no such factory.

        """
        return await self._database.write(factories.drain, name, order, now)

    async def undrain_factory(self, name: str, actor: str, now: datetime) -> FactoryState:
        """Let a drained factory take jobs again and return its state; dispatch afterwards.

        Raises:
            NotFound: there is no such factory.
            Conflict: no operator has drained it.

        """
        return await self._database.write(factories.undrain, name, actor, now)

    async def release_factory(self, name: str, actor: str, now: datetime) -> None:
        """Let a quarantined factory take jobs again, and engines that rest there; dispatch afterwards.

        Raises:
            NotFound: there is no such factory.
            Conflict: it is not quarantined, and no engine rests there.

        """
        await self._database.write(quarantine.release, name, actor, now)

    async def sweep_factories(self, now: datetime, ttl: timedelta | None = None) -> tuple[str, ...]:
        """Mark factories as offline that were not heard of for `ttl` (default three beats); return their names."""
        return await self._database.write(factories.sweep, now, ttl or self._silent_after)

    async def factories(self) -> tuple[FactoryRow, ...]:
        """Return all factories, by name."""
        return await self._database.read(factories.all_factories, self._rules)

    async def factory(self, name: str) -> FactoryRow:
        """Return one factory.

        Raises:
            NotFound: there is no such factory.

        """
        return await self._database.read(factories.factory, name, self._rules)

    async def recount_seats(self, now: datetime) -> tuple[SeatCorrection, ...]:
        """Set the counts of taken seats to what the leases say; return what was wrong. Then dispatch.

        A lease whose job waits or has ended is ended first.
        """
        return await self._database.write(seats.recount_seats, now)

    async def attempts_on(self, factory: str) -> tuple[tuple[str, int], ...]:
        """Return (job, epoch) of every attempt that holds a seat on the factory."""
        return await self._database.read(factories.attempts_on, factory)

    async def factory_of(self, job_id: str, epoch: int) -> str | None:
        """Return the factory that an attempt was granted to; None when there is no such attempt."""
        return await self._database.read(attempts.factory_of, job_id, epoch)

    async def retire_factory(self, name: str, actor: str, now: datetime) -> bool:
        """Take a factory away for good, tokens and attestations included; False while it holds a lease.

        Raises:
            NotFound: there is no such factory, and no token for one.

        """
        return await self._database.write(factories.retire, name, actor, now)

    async def attest(self, factory: str, capabilities: Sequence[str], actor: str, now: datetime) -> None:
        """Vouch for capabilities of a factory; dispatch afterwards."""
        await self._database.write(attestations.attest, factory, capabilities, actor, now)

    async def withdraw_attestation(self, factory: str, capabilities: Sequence[str], actor: str, now: datetime) -> None:
        """Vouch for capabilities of a factory no more."""
        await self._database.write(attestations.withdraw, factory, capabilities, actor, now)

    # --- the kill switch and limits of work in progress (switch, limits) ----------------------------------------------

    async def pull_switch(self, halt: Halt, now: datetime) -> Pulled:
        """Halt what `halt` covers; once this has returned nothing of it is given a seat. Then deliver the outbox.

        Every attempt that it stops is signalled to its workflow.
        """
        return await self._database.write(switch.pull, halt, now)

    async def release_switch(self, scope: HaltScope, name: str, actor: str, now: datetime) -> SwitchState:
        """Let go what an operator halted; dispatch afterwards.

        Raises:
            NotFound: nothing is halted there; or a sentinel file does it, which is removed on its machine.

        """
        return await self._database.write(switch.release, scope, name, actor, now)

    async def switch_state(self) -> SwitchState:
        """Return how the kill switch stands."""
        return await self._database.read(switch.state)

    async def switch_history(self) -> tuple[HaltRow, ...]:
        """Return the halts that were released, the latest first."""
        return await self._database.read(switch.history)

    async def limits(self) -> tuple[LimitRow, ...]:
        """Return every limit with who set it and how many jobs run, by kind and name."""
        return await self._database.read(limits.rows, self._default_limits)

    async def set_limit(self, kind: LimitKind, name: str, jobs: int, *, actor: str, now: datetime) -> None:
        """Let at most `jobs` of a product, or on an engine, run at once; dispatch afterwards."""
        await self._database.write(limits.set_limit, kind, name, jobs, actor=actor, now=now)

    async def unset_limit(self, kind: LimitKind, name: str, actor: str, now: datetime) -> None:
        """Forget an operator's limit, so that the settings decide again; dispatch afterwards.

        Raises:
            NotFound: no operator set one there.

        """
        await self._database.write(limits.unset_limit, kind, name, actor, now)

    # --- tokens (tokens; a process reads them through store.token_book) -----------------------------------------------

    async def create_token(self, new: NewToken, actor: str, now: datetime) -> TokenRow:
        """Take in a token that `actor` made."""
        return await self._database.write(tokens.create, new, actor, now)

    async def adopt_token(self, new: NewToken, now: datetime) -> TokenRow:
        """Take in a token of a file of this home, in the place of what that file held before.

        Raises:
            Unauthenticated: it is for a factory whose name belongs to another machine.

        """
        return await self._database.write(tokens.adopt, new, now)

    async def rotate_token(
        self,
        token_id: str,
        *,
        new_id: str,
        sha256: str,
        grace: timedelta,
        expires_at: datetime | None,
        actor: str,
        now: datetime,
    ) -> TokenRow:
        """Put a new token in the place of one that opens, which stays good for `grace`; return the new one.

        Raises:
            NotFound: there is no such token.
            Conflict: it opens nothing any more, has a successor already, or can be used only once anyway.

        """
        return await self._database.write(
            tokens.rotate,
            token_id,
            new_id=new_id,
            sha256=sha256,
            grace=grace,
            expires_at=expires_at,
            actor=actor,
            now=now,
        )

    async def revoke_token(self, token_id: str, reason: str, actor: str, now: datetime) -> TokenRow:
        """End a token now and for good.

        Raises:
            NotFound: there is no such token.

        """
        return await self._database.write(tokens.revoke, token_id, reason, actor, now)

    async def enrol(
        self, enrolment_id: str, names: Sequence[str], new: NewToken, told: dict[str, Any], now: datetime
    ) -> TokenRow:
        """Spend an enrolment token for the token of a factory, which gets the first of `names` that is free.

        Raises:
            Unauthenticated: the enrolment token was used, revoked or has expired meanwhile.
            Conflict: none of the names is free.

        """
        return await self._database.write(tokens.enrol, enrolment_id, names, new, told=told, now=now)

    async def token(self, token_id: str) -> TokenRow:
        """Return one token.

        Raises:
            NotFound: there is no such token.

        """
        return await self._database.read(tokens.get, token_id)

    async def tokens(self, now: datetime, *, ended: bool = False) -> tuple[TokenRow, ...]:
        """Return the tokens that open, oldest first; with `ended` those that do so no more too."""
        return await self._database.read(tokens.listed, now, ended=ended)

    async def token_changes(self, after: int, now: datetime, sha256: str | None = None) -> TokenChanges:
        """Return what changed about tokens after a revision, and the token with a digest if asked for."""
        return await self._database.read(tokens.changes, after, now, sha256)

    # --- the audit log (audit) ----------------------------------------------------------------------------------------

    async def audit(self, after_seq: int = 0, limit: int = 500) -> tuple[AuditLine, ...]:
        """Return what happened in the fleet beside jobs, after a line, oldest first."""
        return await self._database.read(audit.lines, after_seq, limit)

    async def check_audit(self) -> AuditReport:
        """Return whether the audit log is whole and unchanged."""
        return await self._database.read(audit.check)

    # --- outbox -------------------------------------------------------------------------------------------------------

    async def claim_outbox(self, now: datetime, limit: int = 20) -> tuple[OutboxRow, ...]:
        """Return rows to deliver now, one for each job at most; they are kept from other processes for 30 s.

        After a delivered row of a job its next one can be claimed, so claim until nothing comes.
        """
        if not await self._database.read(outbox.anything_due, now):
            return ()
        return await self._database.write(outbox.claim, now, limit)

    async def hurry_start(self, job_id: str, now: datetime) -> bool:
        """Have the workflow of a job that waits for its seat started now; False: it was, or is about to be."""
        return await self._database.write(outbox.hurry_start, job_id, now)

    async def start_pending(self, job_id: str) -> bool:
        """Return whether the job's workflow is still to be started."""
        return await self._database.read(outbox.start_pending, job_id)

    async def outbox_done(self, row_id: int) -> None:
        """Forget a row that was delivered."""
        await self._database.write(outbox.delivered, row_id)

    async def outbox_failed(self, row_id: int, error: str, now: datetime) -> None:
        """Keep a row that was not delivered for another try: after `outbox_retry_s`, doubling, a minute at the most."""
        await self._database.write(outbox.failed, row_id, error, now, self._outbox_retry_s)

    async def stale_outbox(self, before: datetime, limit: int = 100) -> tuple[OutboxRow, ...]:
        """Return undelivered rows that are older than `before`."""
        return await self._database.read(outbox.stale, before, limit)

    async def start_payload(self, job_id: str) -> StartPayload:
        """Return what the workflow of a `start` row starts with, its living grant included.

        Raises:
            NotFound: there is no such job.

        """
        return await self._database.read(queries.start_payload, job_id)

    # --- reads (queries); a method that takes a job id raises NotFound for an unknown one, lists are then empty -------

    async def job(self, job_id: str) -> JobView:
        """Return the job's document."""
        return await self._database.read(queries.job, job_id)

    async def product_of(self, job_id: str) -> str:
        """Return the product that the job belongs to; it never changes."""
        return await self._database.read(queries.product_of, job_id)

    async def jobs(
        self,
        *,
        products: Sequence[str] | None = None,
        stages: Sequence[Stage] = (),
        cursor: str | None = None,
        limit: int = 50,
    ) -> JobPage:
        """Return jobs (of `products`, or of all), newest first; `next_cursor` of one page is the `cursor` of the next.

        Raises:
            InvalidInput: the cursor is none of ours.

        """
        return await self._database.read(queries.page, products, stages, cursor, limit)

    async def documents(self, job_id: str) -> JobDocuments:
        """Return the job's immutable snapshot: spec, manifest as written, provenance, profile."""
        return await self._database.read(queries.documents, job_id)

    async def attempts(self, job_id: str) -> tuple[AttemptView, ...]:
        """Return the job's attempts, oldest first."""
        return (await self._database.read(queries.attempts, [job_id])).get(job_id, ())

    async def events(self, job_id: str, after_seq: int = 0, limit: int = 500) -> tuple[EventView, ...]:
        """Return the job's events with a number above `after_seq`, oldest first."""
        return await self._database.read(queries.event_log, job_id, after_seq, limit)

    async def verify_chain(self, job_id: str) -> ChainReport:
        """Return whether the job's event log is whole and unchanged."""
        return await self._database.read(queries.verify_chain, job_id)

    async def read_logs(
        self,
        job_id: str,
        after_id: int = 0,
        limit: int = 500,
        *,
        stream: str | None = None,
        epoch: int | None = None,
    ) -> tuple[LogView, ...]:
        """Return the job's log lines with an id above `after_id`, in the order in which they were stored."""
        return await self._database.read(
            attempt_output.read_logs, job_id, after_id=after_id, limit=limit, stream=stream, epoch=epoch
        )

    async def latest_ids(self, job_id: str) -> LatestIds:
        """Return how far events and log of the job reach: what a stream asks before it reads."""
        return await self._database.read(queries.latest_ids, job_id)

    async def artifacts(self, job_id: str) -> tuple[ArtifactView, ...]:
        """Return the job's captured files, newest attempt first."""
        return await self._database.read(attempt_output.read_artifacts, job_id)

    async def parents_state(self, job_id: str) -> WaitState:
        """Return whether the job's parents let it start."""
        return await self._database.read(parents.wait_state, job_id)

    async def children_state(self, job_id: str) -> WaitState:
        """Return whether the job's child jobs let it ship."""
        return await self._database.read(parents.wait_state, job_id, "ship")

    async def dependants(self, job_id: str) -> tuple[str, ...]:
        """Return the ids of the jobs that have this one among their parents."""
        return await self._database.read(parents.dependants, job_id)

    # --- jobs that wait for other jobs (edges) ------------------------------------------------------------------------

    async def begin_waiting(self, job_id: str, now: datetime) -> bool:
        """Have the workflow started of a job that waits for its parents, because somebody acts on it.

        Return False when it has one, or never will. Then deliver.

        Raises:
            NotFound: there is no such job.

        """
        return await self._database.write(edges.begin, job_id, now)

    async def drop_edges(
        self, job_id: str, dropped: Sequence[str], now: datetime, *, by: str = "", reason: str = ""
    ) -> tuple[WaitState, WaitState]:
        """Let the job wait no more for some of its parents and child jobs; return what it still waits for, of each.

        All of them, or none. Then deliver.

        Raises:
            NotFound: there is no such job.
            InvalidInput: it does not wait for one of them at all.
            IllegalAction: it has ended, it has begun already, or one of them is done or was dropped before.

        """
        return await self._database.write(edges.drop, job_id, dropped, now, by=by, reason=reason)

    async def graph(self, job_id: str) -> DagView:
        """Return the jobs that are connected with one by waits, those nearest to it first.

        Raises:
            NotFound: there is no such job.

        """
        return await self._database.read(graph.around, job_id)

    async def waiting_graph(self, products: Sequence[str] | None) -> DagView:
        """Return all jobs that wait for others now, and those others; of some products, or of all (None)."""
        return await self._database.read(graph.waiting, products)

    async def unfinished_jobs(
        self, updated_before: datetime, limit: int = 1000, *, after: UnfinishedJob | None = None
    ) -> tuple[UnfinishedJob, ...]:
        """Return jobs whose workflow should be alive and that nobody wrote to since `updated_before`, oldest first.

        The last job of one page is the `after` of the next.
        """
        return await self._database.read(queries.unfinished, updated_before, limit, after)

    async def enqueue_start(self, job_id: str, now: datetime, *, life: int | None = None) -> Restarted | None:
        """Have the workflow of an unfinished job begun anew, because it is gone; None when a start is on its way.

        The job begins a new life where it stands: in review or testing with its candidate, otherwise queued; then a
        lease that it still has is lost, and its next attempt goes on from the last checkpoint. `life`: only if that is
        still the present one.

        Raises:
            NotFound: there is no such job.

        """
        return await self._database.write(recovery.restart, job_id, now, life)

    async def end_life(self, job_id: str, life: int, record: Record, now: datetime) -> bool:
        """Apply a record that ends the job, unless it has ended or begun another life meanwhile. Then dispatch.

        Raises:
            NotFound: there is no such job.
            IllegalTransition: the job is in a stage from which the path does not lead on.

        """
        return await self._database.write(mending.end_life, job_id, life, record, now)

    async def resend_grant(self, job_id: str, now: datetime) -> bool:
        """Tell the job's workflow of its grant again, when no engine started within the lease; False otherwise.

        Raises:
            NotFound: there is no such job.

        """
        return await self._database.write(mending.resend_grant, job_id, now)

    async def unfinished_page(self, after_id: str, limit: int) -> tuple[UnfinishedJob, ...]:
        """Return jobs whose workflow should be alive, by id, from the one after `after_id` on."""
        return await self._database.read(queries.unfinished_page, after_id, limit)

    async def raise_generation(self, by: str, now: datetime) -> int:
        """Let nothing write any more that was granted or started up to now, also beyond what the ledger knows of.

        For a ledger that was restored from a backup; returns the number of the generation. Every unfinished job then
        needs `enqueue_start`.
        """
        return await self._database.write(recovery.raise_generation, by, now)


def open_ledger(settings: Settings) -> Ledger:
    """Return the ledger of the installation; nothing is connected before it is first used."""
    return Ledger(open_database(settings.ledger_url, synchronous=settings.sqlite_synchronous), settings)
