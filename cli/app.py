"""The commands of `gf`: names, arguments, help. Each imports what it does only when it is called. *Does no I/O itself.*

A command that only asks must answer at once, so this module may import nothing but Typer and the small modules of
this package; `tests/cli/test_speed.py` stands guard.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, ParamSpec

import typer

from cli import output
from cli.client import ApiProblem, NotRunning
from cli.exit_codes import ExitCode, of_status
from core.errors import GigafactoryError

Parameters = ParamSpec("Parameters")

app = typer.Typer(
    name="gf",
    help="Gigafactory turns Markdown job files into shipped commits.",
    epilog="`gf COMMAND --help` explains one command. Exit codes: docs/reference/cli.md.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True}


class StageName(StrEnum):
    """Stages that `gf jobs --stage` knows; the same as `core.job.Stage`, which takes longer to import."""

    QUEUED = "queued"
    ASSIGNED = "assigned"
    BUILDING = "building"
    REVIEW = "review"
    TESTING = "testing"
    SHIPPED = "shipped"
    FAILED = "failed"
    DEAD_LETTER = "dead_letter"
    CANCELLED = "cancelled"


class RoleName(StrEnum):
    """Roles that `gf token create --role` knows; the same as `core.roles.Role` without `enrolment`."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    REVIEWER = "reviewer"
    ADMIN = "admin"
    FACTORY = "factory"
    TRACKER = "tracker"


Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; everything else on stderr.")]
JsonLines = Annotated[
    bool, typer.Option("--json", help="One JSON document on stdout; with --follow one JSON object a line.")
]
Job = Annotated[str, typer.Argument(metavar="JOB", help="Id of a job, as `gf jobs` shows it.")]
Jobs = Annotated[list[str], typer.Argument(metavar="JOB...", help="Ids of jobs, as `gf jobs` shows them.")]
Factory = Annotated[str, typer.Argument(metavar="FACTORY", help="Name of a factory, as `gf factories` shows it.")]
Files = Annotated[
    list[str], typer.Argument(metavar="FILE...", help="Markdown job files; `-` reads one from standard input.")
]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")]
Reason = Annotated[str, typer.Option("--reason", "-m", help="Why; is kept in the job's events.")]
Sha = Annotated[str, typer.Option("--sha", help="Candidate that is meant; default: the job's present one.")]
Key = Annotated[
    str | None,
    typer.Option("--idempotency-key", help="The same key again gives the same job instead of a second one."),
]
Dirty = Annotated[
    bool, typer.Option("--include-dirty", help="Take uncommitted changes of a `cwd` along instead of leaving them out.")
]


def guarded(command: Callable[Parameters, ExitCode | int | None]) -> Callable[Parameters, None]:
    """Make a command end with its exit code, and show every expected error as message, fields and hint."""

    @functools.wraps(command)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        as_json = bool(kwargs.get("as_json"))
        try:
            code = command(*args, **kwargs) or ExitCode.DONE
        except ApiProblem as error:
            output.problem(error.document, as_json=as_json)
            code = of_status(error.status)
        except NotRunning as error:
            hint = "start it with `gf up --detach`; `gf status` shows what runs"
            output.failure(str(error), hint=hint, code="not_running", as_json=as_json)
            code = ExitCode.NOT_RUNNING
        except GigafactoryError as error:
            output.problem(error.as_problem(), as_json=as_json)
            code = of_status(error.status)
        except KeyboardInterrupt:
            code = ExitCode.DETACHED
        raise typer.Exit(int(code))

    return run


# --- the stack --------------------------------------------------------------------------------------------------------


@app.command()
@guarded
def up(
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return as soon as the stack is ready.")] = False,
    factories: Annotated[int | None, typer.Option(min=0, max=64, help="How many local factories to start.")] = None,
    as_json: Json = False,
) -> int:
    """Start the stack on this machine: Temporal, API, control worker, factories."""
    from cli import up as stack  # noqa: PLC0415

    return stack.up(detach=detach, factories=factories, as_json=as_json)


@app.command()
@guarded
def down(as_json: Json = False) -> int:
    """Stop the stack; no process of it stays."""
    from cli import up as stack  # noqa: PLC0415

    return stack.down(as_json=as_json)


@app.command()
@guarded
def status(as_json: Json = False) -> int:
    """Show which parts of the stack run, and where."""
    from cli import up as stack  # noqa: PLC0415

    return stack.status(as_json=as_json)


@app.command()
@guarded
def demo(as_json: Json = False) -> int:
    """Watch a factory being killed and its job go on elsewhere; needs nothing and leaves nothing."""
    from cli import demo as showing  # noqa: PLC0415

    return showing.demo(as_json=as_json)


@app.command()
@guarded
def doctor(as_json: Json = False) -> int:
    """Check this machine and say how to mend each thing that is missing."""
    from cli import doctor as checks  # noqa: PLC0415

    return checks.doctor(as_json=as_json)


# --- the fleet --------------------------------------------------------------------------------------------------------


@app.command()
@guarded
def factories(
    capabilities: Annotated[
        bool, typer.Option("--capabilities", help="Show what each detected, declared, and was attested.")
    ] = False,
    as_json: Json = False,
) -> int:
    """List the factories with their stations."""
    from cli import listing  # noqa: PLC0415

    return listing.factories(capabilities=capabilities, as_json=as_json)


@app.command("enroll-token")
@guarded
def enroll_token(
    name: Annotated[str | None, typer.Option(help="The only factory that the machine may become.")] = None,
    lifetime: Annotated[str | None, typer.Option(help="How long it is good: 15m (default), at most 1d.")] = None,
    as_json: Json = False,
) -> int:
    """Make a token with which one machine may become a factory, once."""
    from cli import tokens  # noqa: PLC0415

    return tokens.enrolment(name=name, lifetime=lifetime, as_json=as_json)


@app.command()
@guarded
def enroll(
    *,
    api: Annotated[str, typer.Option("--api", help="Address of the fleet's API.")],
    token: Annotated[
        str | None,
        typer.Option("--token", help="What `gf enroll-token` printed; or the variable GIGAFACTORY_ENROLMENT_TOKEN."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the factory; default: a memorable one.")] = None,
    temporal: Annotated[
        str | None, typer.Option(help="host:port of Temporal, where it is another than the fleet says.")
    ] = None,
    start: Annotated[bool, typer.Option(help="Start the factory's agent now.")] = True,
    as_json: Json = False,
) -> int:
    """Make this machine a factory of a fleet, and start its agent."""
    from cli import fleet  # noqa: PLC0415

    return fleet.enroll(fleet.EnrolRequest(api, token, name, temporal, start), as_json=as_json)


@app.command()
@guarded
def retire(
    factory: Factory,
    force: Annotated[
        bool, typer.Option("--force", help="Take its running attempts away; they go on elsewhere.")
    ] = False,
    wait: Annotated[str, typer.Option(help="How long to wait until it has drained.")] = "10m",
    as_json: Json = False,
) -> int:
    """Take a factory away for good: drain it, then revoke its tokens."""
    from cli import fleet  # noqa: PLC0415

    return fleet.retire(factory, force=force, wait=wait, as_json=as_json)


@app.command()
@guarded
def attest(
    factory: Factory,
    capabilities: Annotated[list[str], typer.Argument(metavar="CAPABILITY...", help="As `gf factories` shows them.")],
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Vouch for them no more.")] = False,
    as_json: Json = False,
) -> int:
    """Vouch for capabilities of a factory: sensitive ones count for routing only then."""
    from cli import fleet  # noqa: PLC0415

    return fleet.attest(factory, capabilities, withdraw=withdraw, as_json=as_json)


@app.command()
@guarded
def audit(
    after: Annotated[int, typer.Option(min=0, help="Only lines after this number.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, oldest first.")] = 500,
    as_json: Json = False,
) -> int:
    """Show who did what about tokens, factories and trust."""
    from cli import fleet  # noqa: PLC0415

    return fleet.audit(after=after, limit=limit, as_json=as_json)


# --- stopping work ----------------------------------------------------------------------------------------------------

OneProduct = Annotated[str | None, typer.Option("--product", help="Only this product.")]
OneFactory = Annotated[str | None, typer.Option("--factory", help="Only this factory.")]
OneEngine = Annotated[str | None, typer.Option("--engine", help="Only this engine.")]
Why = Annotated[str, typer.Option("--reason", "-m", help="Why; whoever asks is told.")]


@app.command()
@guarded
def halt(
    *,
    product: OneProduct = None,
    factory: OneFactory = None,
    engine: OneEngine = None,
    stop_running: Annotated[
        bool, typer.Option("--stop-running", help="Stop what runs already; its work is kept and goes on later.")
    ] = False,
    local: Annotated[
        bool, typer.Option("--local", help="Stop the factories of this machine by a file; needs no running stack.")
    ] = False,
    reason: Why = "",
    as_json: Json = False,
) -> int:
    """Pull the kill switch: nothing is given a seat any more, in the whole fleet or a part of it."""
    from cli import switching  # noqa: PLC0415

    subject = switching.Subject(product, factory, engine)
    if local:
        return switching.halt_here(subject, reason=reason, as_json=as_json)
    return switching.halt(subject, stop_running=stop_running, reason=reason, as_json=as_json)


@app.command()
@guarded
def unhalt(
    *,
    product: OneProduct = None,
    factory: OneFactory = None,
    engine: OneEngine = None,
    local: Annotated[bool, typer.Option("--local", help="Remove the file that stops the factories here.")] = False,
    as_json: Json = False,
) -> int:
    """Release what was halted."""
    from cli import switching  # noqa: PLC0415

    subject = switching.Subject(product, factory, engine)
    act = switching.unhalt_here if local else switching.unhalt
    return act(subject, as_json=as_json)


@app.command()
@guarded
def halts(
    released: Annotated[bool, typer.Option("--released", help="Show also what was released lately.")] = False,
    as_json: Json = False,
) -> int:
    """Show what is halted, by whom and why."""
    from cli import switching  # noqa: PLC0415

    return switching.halts(released=released, as_json=as_json)


@app.command()
@guarded
def limits(as_json: Json = False) -> int:
    """Show how many jobs of each product, and on each engine, may run at once."""
    from cli import switching  # noqa: PLC0415

    return switching.limits(as_json=as_json)


@app.command()
@guarded
def limit(
    jobs: Annotated[int | None, typer.Argument(min=1, help="Jobs at once; left out: as the settings say.")] = None,
    product: OneProduct = None,
    engine: OneEngine = None,
    as_json: Json = False,
) -> int:
    """Let at most so many jobs of a product, or on an engine, run at once."""
    from cli import switching  # noqa: PLC0415

    return switching.limit(switching.Subject(product=product, engine=engine), jobs, as_json=as_json)


@app.command()
@guarded
def drain(
    factory: Factory,
    hand_over: Annotated[
        str | None, typer.Option(help="When what still runs ends with a checkpoint and goes elsewhere: 0s, 10m.")
    ] = None,
    reason: Why = "",
    as_json: Json = False,
) -> int:
    """Give a factory no further jobs, until it is undrained."""
    from cli import switching  # noqa: PLC0415

    return switching.drain(factory, hand_over=hand_over, reason=reason, as_json=as_json)


@app.command()
@guarded
def undrain(factory: Factory, as_json: Json = False) -> int:
    """Let a drained factory take jobs again."""
    from cli import switching  # noqa: PLC0415

    return switching.order(factory, "undrain", as_json=as_json)


@app.command()
@guarded
def release(factory: Factory, as_json: Json = False) -> int:
    """Let a quarantined factory take jobs again, and engines that rest there; what was before counts no more."""
    from cli import switching  # noqa: PLC0415

    return switching.order(factory, "release", as_json=as_json)


# --- tokens -----------------------------------------------------------------------------------------------------------

token_commands = typer.Typer(help="Make, list, rotate and revoke tokens.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(token_commands, name="token")


@token_commands.command("create")
@guarded
def token_create(
    *,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whom or what it is for; written into events.")],
    role: Annotated[list[RoleName], typer.Option("--role", help="What it may do; may be repeated.")],
    product: Annotated[list[str] | None, typer.Option(help="Only this product; may be repeated. Default: all.")] = None,
    factory: Annotated[str | None, typer.Option(help="With --role factory: which one.")] = None,
    lifetime: Annotated[str | None, typer.Option(help="How long it is good; default 90d.")] = None,
    no_expiry: Annotated[bool, typer.Option("--no-expiry", help="It is good until it is revoked.")] = False,
    as_json: Json = False,
) -> int:
    """Make a token and show it, this once."""
    from cli import tokens  # noqa: PLC0415

    request = tokens.CreateRequest(
        name, tuple(str(one) for one in role), tuple(product or ()), factory, lifetime, not no_expiry
    )
    return tokens.create(request, as_json=as_json)


@token_commands.command("list")
@guarded
def token_list(
    ended: Annotated[bool, typer.Option("--ended", help="Also those that open nothing any more.")] = False,
    as_json: Json = False,
) -> int:
    """List the tokens, without their secrets."""
    from cli import tokens  # noqa: PLC0415

    return tokens.list_all(ended=ended, as_json=as_json)


@token_commands.command("rotate")
@guarded
def token_rotate(
    token_id: Annotated[str, typer.Argument(metavar="TOKEN", help="Id of a token, or `self` for your own.")],
    grace: Annotated[str | None, typer.Option(help="How long the old one stays good beside it; default 1h.")] = None,
    as_json: Json = False,
) -> int:
    """Put a new token in the place of one."""
    from cli import tokens  # noqa: PLC0415

    return tokens.rotate(token_id, grace=grace, as_json=as_json)


@token_commands.command("revoke")
@guarded
def token_revoke(
    token_ids: Annotated[list[str], typer.Argument(metavar="TOKEN...", help="Ids of tokens.")],
    reason: Reason = "",
    as_json: Json = False,
) -> int:
    """End tokens now, everywhere within a second."""
    from cli import tokens  # noqa: PLC0415

    return tokens.revoke(token_ids, reason=reason, as_json=as_json)


# --- jobs: in ---------------------------------------------------------------------------------------------------------


@app.command()
@guarded
def run(
    files: Files,
    ship: Annotated[bool, typer.Option("--ship", help="Answer yes at the ship gate.")] = False,
    include_dirty: Dirty = False,
    idempotency_key: Key = None,
    as_json: Json = False,
) -> int:
    """Submit job files, follow them live, and ask at the ship gate. Starts the stack if it is not running."""
    from cli import running  # noqa: PLC0415

    request = running.RunRequest(tuple(files), ship, include_dirty, idempotency_key)
    return running.run(request, as_json=as_json)


@app.command()
@guarded
def submit(
    files: Files,
    include_dirty: Dirty = False,
    idempotency_key: Key = None,
    child_of: Annotated[
        str | None, typer.Option(metavar="JOB", help="The jobs are a part of this one, which ships after all of them.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Submit job files and return. Either all of them are valid, or none starts."""
    from cli import submitting  # noqa: PLC0415

    return submitting.submit(
        files, include_dirty=include_dirty, idempotency_key=idempotency_key, child_of=child_of, as_json=as_json
    )


@app.command()
@guarded
def explain(file: Annotated[str, typer.Argument(metavar="FILE", help="A job file.")], as_json: Json = False) -> int:
    """Show every field of a job file with its value and where it comes from. Starts nothing."""
    from cli import explaining  # noqa: PLC0415

    return explaining.explain(file, as_json=as_json)


# --- jobs: look -------------------------------------------------------------------------------------------------------


@app.command()
@guarded
def jobs(
    stage: Annotated[list[StageName] | None, typer.Option(help="Only jobs in this stage; may be repeated.")] = None,
    product: Annotated[str | None, typer.Option(help="Only jobs of this product.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many, newest first.")] = 30,
    cursor: Annotated[str | None, typer.Option(help="Go on where an earlier list ended.")] = None,
    as_json: Json = False,
) -> int:
    """List jobs, newest first."""
    from cli import listing  # noqa: PLC0415

    stages = tuple(str(name) for name in stage or ())
    return listing.jobs(stages=stages, product=product, limit=limit, cursor=cursor, as_json=as_json)


@app.command()
@guarded
def dag(
    job_id: Annotated[
        str | None, typer.Argument(metavar="[JOB]", help="Id of a job; without it, all that wait.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Draw which jobs wait for which, as a tree: around one job, or all that wait now."""
    from cli import graph  # noqa: PLC0415

    return graph.dag(job_id, as_json=as_json)


@app.command()
@guarded
def job(
    job_id: Job,
    diff: Annotated[bool, typer.Option("--diff", help="Show only the diff of the candidate.")] = False,
    as_json: Json = False,
) -> int:
    """Show one job: stage, attempts, gates, commits, what it waits for."""
    from cli import listing  # noqa: PLC0415

    return listing.diff(job_id, as_json=as_json) if diff else listing.job(job_id, as_json=as_json)


@app.command()
@guarded
def logs(
    job_id: Job,
    follow: Follow = False,
    epoch: Annotated[int | None, typer.Option(min=1, help="Only this attempt.")] = None,
    as_json: JsonLines = False,
) -> int:
    """Show what the attempts of a job printed."""
    from cli import story  # noqa: PLC0415

    return story.logs(job_id, follow=follow, epoch=epoch, as_json=as_json)


@app.command()
@guarded
def events(job_id: Job, follow: Follow = False, as_json: JsonLines = False) -> int:
    """Show what happened to a job: its hash-chained event log."""
    from cli import story  # noqa: PLC0415

    return story.events(job_id, follow=follow, as_json=as_json)


@app.command()
@guarded
def why(job_id: Job, as_json: Json = False) -> int:
    """Say why a job is where it is: the routing decision, and what it waits for."""
    from cli import story  # noqa: PLC0415

    return story.why(job_id, as_json=as_json)


@app.command("why-not")
@guarded
def why_not(job_id: Job, factory: Factory, as_json: Json = False) -> int:
    """Say why a job does not run on a certain factory, and what would let it run there."""
    from cli import story  # noqa: PLC0415

    return story.why_not(job_id, factory, as_json=as_json)


# --- jobs: decide -----------------------------------------------------------------------------------------------------


def _act(action: str, job_ids: list[str], *, as_json: bool, sha: str = "", reason: str = "") -> int:
    from cli import acting  # noqa: PLC0415

    return acting.act(action, job_ids, sha=sha, reason=reason, as_json=as_json)


@app.command()
@guarded
def ship(job_ids: Jobs, sha: Sha = "", reason: Reason = "", as_json: Json = False) -> int:
    """Ship the candidate: the answer yes at the gate."""
    return _act("ship", job_ids, sha=sha, reason=reason, as_json=as_json)


@app.command()
@guarded
def approve(job_ids: Jobs, sha: Sha = "", reason: Reason = "", as_json: Json = False) -> int:
    """Approve the candidate."""
    return _act("approve", job_ids, sha=sha, reason=reason, as_json=as_json)


@app.command()
@guarded
def reject(job_ids: Jobs, sha: Sha = "", reason: Reason = "", as_json: Json = False) -> int:
    """Turn the candidate down; the job ends in failed and may be requeued."""
    return _act("reject", job_ids, sha=sha, reason=reason, as_json=as_json)


@app.command()
@guarded
def requeue(job_ids: Jobs, reason: Reason = "", as_json: Json = False) -> int:
    """Try a job again; the reason goes to the next attempt as a note."""
    return _act("requeue", job_ids, reason=reason, as_json=as_json)


@app.command()
@guarded
def cancel(job_ids: Jobs, reason: Reason = "", as_json: Json = False) -> int:
    """End a job; its work so far is kept."""
    return _act("cancel", job_ids, reason=reason, as_json=as_json)


@app.command()
@guarded
def unblock(
    job_id: Job,
    drop: Annotated[
        list[str], typer.Option("--drop", metavar="JOB", help="Parent or child job to wait for no more; repeatable.")
    ],
    reason: Reason = "",
    as_json: Json = False,
) -> int:
    """Let a job go on without other jobs that it waits for."""
    from cli import acting  # noqa: PLC0415

    return acting.unblock(job_id, drop, reason=reason, as_json=as_json)


@app.command()
@guarded
def pause(job_ids: Jobs, reason: Reason = "", as_json: Json = False) -> int:
    """Put a job aside."""
    return _act("pause", job_ids, reason=reason, as_json=as_json)


@app.command()
@guarded
def resume(job_ids: Jobs, reason: Reason = "", as_json: Json = False) -> int:
    """Let a paused job go on."""
    return _act("resume", job_ids, reason=reason, as_json=as_json)


# --- after a loss -----------------------------------------------------------------------------------------------------


@app.command()
@guarded
def recover(
    ledger_restored: Annotated[
        bool,
        typer.Option("--ledger-restored", help="The ledger came back from a backup: fence off all that came after it."),
    ] = False,
    as_json: Json = False,
) -> int:
    """Give unfinished jobs whose workflow was lost a new one, where they stand. To do it again does no harm."""
    from cli import recovering  # noqa: PLC0415

    return recovering.recover(ledger_restored=ledger_restored, as_json=as_json)


# --- work on Gigafactory itself ---------------------------------------------------------------------------------------


@app.command(context_settings=PASS_THROUGH)
@guarded
def bench(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="`jobs`, `dispatch`, …; `list` names all.")],
    as_json: Json = False,
) -> int:
    """Measure Gigafactory on this machine."""
    from cli.bench import bench as run_bench  # noqa: PLC0415

    return run_bench(name, list(context.args), as_json=as_json)


@app.command(context_settings=PASS_THROUGH | {"help_option_names": []})
@guarded
def test(context: typer.Context) -> int:
    """Run Gigafactory's own checks and tests; arguments go to pytest."""
    from cli import run_tests  # noqa: PLC0415

    return run_tests.main(context.args)


@app.command()
@guarded
def version(as_json: Json = False) -> int:
    """Show the version of the command line, and of the stack if one runs."""
    from cli import listing  # noqa: PLC0415

    return listing.version(as_json=as_json)
