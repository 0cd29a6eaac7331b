"""A job laid over its profile: the values that count, where each came from, and all that forbids it. *Pure.*

Rules: what the job says wins; capabilities add up; the job may narrow the profile's scope but not widen it, unless the
policy allows that, and the profile's exclusions always stay; `ship: base` needs the profile's leave and the policy's.
`prepare` reads and resolves in one go, so that every mistake is told at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from pydantic import Field

from core.engine_classes import AGENTIC_CODER, ENGINE_CLASSES, engine_info, known_engines
from core.errors import FieldProblem
from core.field_problems import line_of, merged
from core.field_types import listed, nearest
from core.job import (
    BudgetSpec,
    Dependency,
    JobSpec,
    LeaseLoss,
    Message,
    ProfileRef,
    Repository,
    RetrySpec,
    ShipMode,
)
from core.manifest import (
    DEFAULT_TIMEOUT_S,
    Notice,
    ParsedManifest,
    Reviewers,
    canonical,
    engine_notices,
    invalid,
    manifest_sha256,
    read_manifest,
    read_manifest_object,
    unbuilt,
)
from core.profile import Profile
from core.quantities import format_count, format_duration, format_usd
from core.scope import widening_example

JOB = "job"
DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Policy:
    """What this installation lets jobs do; `Settings` has the values of the first two."""

    allow_base: bool = True
    allow_yolo: bool = True
    widen_scope: bool = False
    """Lets a job declare a scope that is wider than its profile's."""
    default_engine_class: str = AGENTIC_CODER
    """For jobs that name neither an engine nor a class, by themselves or by their profile."""
    engines: tuple[str, ...] = ()
    """Engines known beside the built-in names: described by YAML, or offered by some factory."""


class Provenance(Message):
    """One resolved value: what it is and where it came from."""

    field: str
    value: Any = None
    """JSON, quantities as text; None and empty mean that the job has none."""
    source: str
    """`job`, `profile <name>@<version>`, `default`, `policy`, or two of them joined by ` + `."""
    note: str = ""


class Resolution(Message):
    """A job that may be submitted, lacking only its repository."""

    title: str
    cwd: str | None = None
    """Directory the job works on; exactly one of `cwd` and `repo` is set."""
    repo: str | None = None
    base: str | None = None
    """Branch the manifest asks for; None: the repository's own."""
    values: dict[str, Any]
    """Every field of the `JobSpec` except `repository`."""
    provenance: tuple[Provenance, ...]
    notices: tuple[Notice, ...] = ()
    canonical: dict[str, Any] = Field(default_factory=dict)
    """The content that idempotency compares."""

    @property
    def idempotency_key(self) -> str | None:
        """Return the key that the manifest gives itself."""
        key: str | None = self.values["idempotency_key"]
        return key

    @property
    def dependencies(self) -> tuple[Dependency, ...]:
        """Return the parents; a `job_id` that begins with `key:` still has to be looked up."""
        deps: tuple[Dependency, ...] = self.values["deps"]
        return deps


def prepare(
    text: str,
    *,
    source: str = "",
    base_dir: str = "",
    home_dir: str = "",
    profiles: Mapping[str, Profile],
    policy: Policy,
) -> Resolution:
    """Read a job file and resolve it; `core.manifest.read_manifest` explains the arguments.

    Raises:
        InvalidManifest: every mistake of the file, of its fields, and against profile and policy, at once.

    """
    parsed = read_manifest(text, source=source, base_dir=base_dir, home_dir=home_dir)
    return resolve_by_name(parsed, profiles, policy)


def prepare_object(
    document: object,
    *,
    source: str = "",
    base_dir: str = "",
    home_dir: str = "",
    profiles: Mapping[str, Profile],
    policy: Policy,
) -> Resolution:
    """Read a job sent as JSON and resolve it, as `prepare` does for a file.

    Raises:
        InvalidManifest: every mistake at once.

    """
    parsed = read_manifest_object(document, source=source, base_dir=base_dir, home_dir=home_dir)
    return resolve_by_name(parsed, profiles, policy)


def resolve_by_name(parsed: ParsedManifest, profiles: Mapping[str, Profile], policy: Policy) -> Resolution:
    """Resolve `parsed`, which may carry problems, over the profile that it names.

    Raises:
        InvalidManifest: every mistake at once, also when there is no such profile.

    """
    name = parsed.manifest.profile
    if name is None or name in profiles:
        return resolve(parsed, profiles[name] if name else None, policy)
    unknown = FieldProblem(
        "profile",
        "is not known",
        name,
        listed(profiles) or "no profile is installed",
        nearest(name, profiles),
        line_of("profile", parsed.lines),
    )
    found = _Resolver(parsed, None, policy, profile_unknown=True)
    found.run()
    raise invalid(parsed.source, merged(parsed.problems, [unknown], found.problems))


def resolve(parsed: ParsedManifest, profile: Profile | None, policy: Policy) -> Resolution:
    """Lay the job over `profile` under `policy`.

    Raises:
        InvalidManifest: every mistake at once: those that `parsed` carries, and what profile and policy forbid.

    """
    resolver = _Resolver(parsed, profile, policy)
    resolver.run()
    problems = merged(parsed.problems, resolver.problems)
    if problems:
        raise invalid(parsed.source, problems)
    manifest = parsed.manifest
    return Resolution(
        title=parsed.title,
        cwd=manifest.cwd,
        repo=manifest.repo,
        base=manifest.base,
        values=resolver.values | {"manifest_sha256": manifest_sha256(manifest, parsed.body)},
        provenance=tuple(resolver.provenance),
        notices=tuple(resolver.notices),
        canonical=canonical(manifest, parsed.body),
    )


def build_spec(resolution: Resolution, repository: Repository) -> JobSpec:
    """Return the immutable snapshot of the job, once it is known where its work starts."""
    return JobSpec(repository=repository, **resolution.values)


@dataclass(slots=True)
class _Resolver:
    """Walks the fields once, in the order in which `explain` shows them."""

    parsed: ParsedManifest
    profile: Profile | None
    policy: Policy
    profile_unknown: bool = False
    """The job names a profile that does not exist: what a profile would have allowed is then no second mistake."""
    values: dict[str, Any] = field(default_factory=dict)
    provenance: list[Provenance] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    problems: list[FieldProblem] = field(default_factory=list)

    def run(self) -> None:
        """Resolve every field; problems and notices gather on the way."""
        self._identity()
        self._place()
        self._engine()
        self._routing()
        self._running()
        self._gates()
        self._bookkeeping()
        self._notices()

    # --- fields, in the order of `explain` ---

    def _identity(self) -> None:
        manifest, profile = self.parsed.manifest, self.profile
        source = JOB if manifest.title else DEFAULT
        self._set("title", self.parsed.title, source, note="" if manifest.title else "from the body")
        self.values["body"] = self.parsed.body
        self.values["profile"] = profile.ref if profile else None
        self.values["persona"] = profile.persona if profile else ""
        name = f"{profile.name}@{profile.version}" if profile else None
        self._show("profile", name, JOB if profile else DEFAULT, self._profile_note())
        self._own("product", "product_id", manifest.product, "default")

    def _profile_note(self) -> str:
        if self.profile is None:
            return ""
        info = engine_info(self.parsed.manifest.engine or "")
        unread = f"; {info.name} does not read its persona" if info and not info.reads_persona else ""
        return f"{self.profile.risk} risk{unread}"

    def _place(self) -> None:
        manifest = self.parsed.manifest
        for name, value in (("cwd", manifest.cwd), ("repo", manifest.repo)):
            if value:
                self._show(name, value, JOB)
        note = "" if manifest.base else "the branch that is checked out, or the remote's default"
        self._show("base", manifest.base, JOB if manifest.base else DEFAULT, note)

    def _engine(self) -> None:
        manifest, profile = self.parsed.manifest, self.profile
        self._check_known("engine", manifest.engine, (*known_engines(), *self.policy.engines))
        self._check_known("engine-class", manifest.engine_class, tuple(ENGINE_CLASSES))
        self._own("engine", "engine", manifest.engine, None, note="" if manifest.engine else "the router picks one")
        if manifest.engine:
            self.values |= {"engine_class": None, "engine_preference": ()}
            if manifest.engine_class or (profile and profile.engine_class):
                self._show("engine-class", None, JOB, "`engine` overrides it")
        else:
            self._engine_class()
        self._inherited("model", "model", manifest.model, profile and profile.model, None)
        tools, own = manifest.allowed_tools, profile and profile.allowed_tools
        self._inherited("allowed-tools", "allowed_tools", tools, own or None, ())

    def _engine_class(self) -> None:
        manifest, profile = self.parsed.manifest, self.profile
        default = self.policy.default_engine_class
        self._inherited(
            "engine-class", "engine_class", manifest.engine_class, profile and profile.engine_class, default
        )
        wanted = profile.prefers_engine if profile else ()
        members = ENGINE_CLASSES.get(self.values["engine_class"], ())
        fitting = tuple(name for name in wanted if name in members or engine_info(name) is None)
        left_out = [name for name in wanted if name not in fitting]
        note = f"without {listed(left_out)}: not {self.values['engine_class']}" if left_out else ""
        source = profile.label if profile and wanted else DEFAULT
        self._set("engine-preference", fitting, source, key="engine_preference", note=note)

    def _routing(self) -> None:
        manifest, profile = self.parsed.manifest, self.profile
        theirs = profile.capabilities if profile else ()
        both = tuple(dict.fromkeys((*theirs, *manifest.capabilities)))
        sources = [profile.label] if profile and theirs else []
        sources += [JOB] if manifest.capabilities else []
        self._set("capabilities", both, " + ".join(sources) or DEFAULT)
        self._own("prefers", "prefers", manifest.prefers, ())
        self._own("weights", "weights", manifest.weights, {})
        self._own("priority", "priority", manifest.priority, "medium")
        self._own("lock", "lock", manifest.lock, None)

    def _running(self) -> None:
        manifest = self.parsed.manifest
        if manifest.yolo and not self.policy.allow_yolo:
            self._forbid("yolo", "is not allowed by this installation", "true", "`yolo: false`, or `allow_yolo: true`")
        self._own("yolo", "yolo", manifest.yolo, False)
        self._own("timeout", "timeout_s", manifest.timeout_s, DEFAULT_TIMEOUT_S, shown=format_duration)
        retry = None
        if manifest.retry:
            backoff = float(manifest.retry.backoff_s)
            retry = RetrySpec(max=manifest.retry.max, backoff_s=backoff, on=manifest.retry.on)
        self._own("retry", "retry", retry, None, shown=_shown_retry)
        self._own("on-lease-loss", "on_lease_loss", manifest.on_lease_loss, LeaseLoss.STOP)
        budget = BudgetSpec(usd=manifest.budget.usd, tokens=manifest.budget.tokens, wall_s=manifest.budget.wall_s)
        self._own("budget", "budget", budget, BudgetSpec(), shown=_shown_budget)

    def _gates(self) -> None:
        manifest, profile = self.parsed.manifest, self.profile
        verify = (profile and profile.default_verify) or None
        self._inherited("verify", "verify", manifest.verify, verify, ())
        wanted = manifest.review_policy
        policy = None if isinstance(wanted, Reviewers) else wanted
        self._inherited("review-policy", "review_policy", policy, profile and profile.review_policy, "manual")
        self._scope()
        self._own("shares-scope", "shares_scope", manifest.shares_scope, False)
        self._check_ship(manifest.ship)
        self._own("ship", "ship", manifest.ship, ShipMode.BRANCH)
        self._own("artifacts", "artifacts", manifest.artifacts or (), ())

    def _scope(self) -> None:
        ours = self.parsed.manifest.allowed_scope
        theirs = self.profile.allowed_scope if self.profile else None
        if ours is None or theirs is None:
            self._inherited("allowed-scope", "allowed_scope", ours, theirs, ())
            return
        kept = tuple(glob for glob in theirs if glob.startswith("!") and glob not in ours)
        source, note = JOB, ""
        wider = widening_example(theirs, (*ours, *kept)) is not None
        if wider and self.policy.widen_scope:
            kept, source, note = (), f"{JOB} + policy", f"wider than {self._label}, by policy"
        elif kept:
            source, note = f"{JOB} + {self._label}", "the profile's exclusions stay"
        if wider and not self.policy.widen_scope:
            self._widened(theirs, ours, kept)
        self._set("allowed-scope", (*ours, *kept), source, key="allowed_scope", note=note)

    def _bookkeeping(self) -> None:
        manifest = self.parsed.manifest
        deps = tuple(Dependency(job_id=dep.job, until=dep.until) for dep in manifest.deps)
        self._own("deps", "deps", deps, (), shown=lambda items: [f"{d.job_id} until {d.until}" for d in items])
        self._own("idempotency-key", "idempotency_key", manifest.idempotency_key, None)
        self._own("tracker-item", "tracker_item", manifest.tracker_item, None)

    # --- checks ---

    def _notices(self) -> None:
        for notice in unbuilt(self.parsed.manifest):
            if notice.severity == "refused":
                value = str(getattr(self.parsed.manifest, notice.field.replace("-", "_")))
                self._forbid(notice.field, f"asks for what is not there yet: {notice.message}", value, "")
            elif notice.field not in {"engine", "model", "allowed-tools"}:
                self.notices.append(notice)
        hints = {"model": bool(self.values["model"]), "allowed-tools": bool(self.values["allowed_tools"])}
        engine, engine_class = self.values["engine"], self.values["engine_class"]
        found = engine_notices(engine, engine_class, hints=hints)
        offered = engine in self.policy.engines
        self.notices += [notice for notice in found if not (offered and notice.field == "engine")]

    def _check_known(self, name: str, value: str | None, options: Iterable[str]) -> None:
        choices = tuple(dict.fromkeys(options))
        if value is not None and value not in choices:
            self._forbid(name, "is not known", value, listed(choices), nearest(value, choices))

    def _check_ship(self, mode: ShipMode) -> None:
        if mode == ShipMode.PR or self.profile_unknown or self.parsed.is_bad("profile"):
            return
        allowed = self.profile.allows_ship if self.profile else (ShipMode.BRANCH,)
        who = self._label if self.profile else "a job without a profile"
        if mode not in allowed:
            hint = "a profile that allows it, such as `profile: solo`" if mode == ShipMode.BASE else listed(allowed)
            self._forbid("ship", f"is not allowed for {who}", mode.value, hint)
        elif mode == ShipMode.BASE and not self.policy.allow_base:
            self._forbid(
                "ship", "is not allowed by this installation", mode.value, "`ship: branch`, or `allow_base: true`"
            )

    def _widened(self, theirs: tuple[str, ...], ours: tuple[str, ...], kept: tuple[str, ...]) -> None:
        """Complain about each glob of the job that the profile's scope does not contain."""
        exclusions = tuple(glob for glob in (*ours, *kept) if glob.startswith("!"))
        included = {f"[{n}]": glob for n, glob in enumerate(ours) if not glob.startswith("!")} or {"": "**"}
        for index, glob in included.items():
            example = widening_example(theirs, (glob, *exclusions))
            if example is not None:
                such_as = f", for example by `{example}`" if example else ""
                self._forbid(
                    f"allowed-scope{index}",
                    f"is wider than the scope of {self._label}{such_as}",
                    glob,
                    f"paths within {' '.join(theirs)}",
                )

    # --- keeping what was found ---

    @property
    def _label(self) -> str:
        return self.profile.label if self.profile else DEFAULT

    def _own(
        self,
        name: str,
        key: str,
        value: object,
        default: object,
        *,
        note: str = "",
        shown: Callable[[Any], object] = lambda value: value,
    ) -> None:
        """Keep a value that only the job can give."""
        self._set(name, value, DEFAULT if value == default else JOB, key=key, note=note, shown=shown)

    def _inherited(self, name: str, key: str, ours: object, theirs: object, default: object) -> None:
        """Keep a value that the job gives, else the profile, else the default."""
        if ours is not None:
            note = f"instead of {_plain(theirs)!r} of {self._label}" if theirs is not None and theirs != ours else ""
            self._set(name, ours, JOB, key=key, note=note)
        elif theirs is not None:
            self._set(name, theirs, self._label, key=key)
        else:
            self._set(name, default, DEFAULT, key=key)

    def _set(
        self,
        name: str,
        value: object,
        source: str,
        *,
        key: str = "",
        note: str = "",
        shown: Callable[[Any], object] = lambda value: value,
    ) -> None:
        self.values[key or name] = value
        self._show(name, shown(value) if value is not None else None, source, note)

    def _show(self, name: str, value: object, source: str, note: str = "") -> None:
        self.provenance.append(Provenance(field=name, value=_plain(value), source=source, note=note))

    def _forbid(self, path: str, message: str, value: object, expected: str, suggestion: str = "") -> None:
        line = line_of(path, self.parsed.lines)
        self.problems.append(FieldProblem(path, message, value, expected, suggestion, line))


def _plain(value: object) -> object:
    """Return `value` as JSON."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, str | ProfileRef) else value


def _shown_retry(retry: RetrySpec) -> dict[str, object]:
    backoff = format_duration(Decimal(str(retry.backoff_s)))
    return {"max": retry.max, "backoff": backoff, "on": [str(kind) for kind in retry.on]}


def _shown_budget(budget: BudgetSpec) -> dict[str, object]:
    shown: dict[str, object] = {}
    if budget.usd is not None:
        shown["usd"] = format_usd(budget.usd)
    if budget.tokens is not None:
        shown["tokens"] = format_count(budget.tokens)
    if budget.wall_s is not None:
        shown["wall"] = format_duration(budget.wall_s)
    return shown
