"""A job laid over its profile: which value counts, where it came from, and what is forbidden."""

from __future__ import annotations

from typing import Any

import pytest

from core.engine_classes import ENGINE_CLASSES, ENGINES
from core.errors import InvalidManifest
from core.field_problems import render_problem
from core.job import BudgetSpec, FailureKind, JobSpec, Priority, Repository, RetrySpec, ShipMode
from core.manifest import parse_manifest
from core.profile import parse_profile
from core.resolution import Policy, Resolution, build_spec, prepare, prepare_object, resolve

BACKEND = parse_profile(
    "---\nname: backend\nversion: 3\ndescription: x\ncapabilities: [node>=20]\ndefault-verify: [pnpm -s test]\n"
    "engine-class: agentic-coder\nprefers-engine: [codex, claude, shell, home-made]\nmodel: m-1\n"
    'allowed-scope: ["backend/**", "packages/**", "!packages/legacy/"]\nreview-policy: auto\nrisk: high\n---\n'
    "You are a backend engineer.\n"
)
SOLO = parse_profile("---\nname: solo\ndescription: x\nallows-ship: [branch, base]\n---\nYou work alone.\n")
PROFILES = {profile.name: profile for profile in (BACKEND, SOLO)}
REPOSITORY = Repository(url="/srv/shop", base="main", base_sha="a" * 40)


def resolved(front: str, policy: Policy | None = None, body: str = "Do it.") -> Resolution:
    """Return the resolution of a job with this front matter."""
    place = "" if "cwd:" in front or "repo:" in front else "repo: /srv/shop\n"
    return prepare(f"---\n{place}{front}\n---\n{body}\n", source="job.md", profiles=PROFILES, policy=policy or Policy())


def spec_of(front: str, policy: Policy | None = None) -> JobSpec:
    """Return the snapshot of a job with this front matter."""
    return build_spec(resolved(front, policy), REPOSITORY)


def came_from(resolution: Resolution) -> dict[str, tuple[Any, str]]:
    """Return value and source of each field."""
    return {entry.field: (entry.value, entry.source) for entry in resolution.provenance}


def mistakes(front: str, policy: Policy | None = None) -> list[str]:
    """Return the problems of a job, as lines."""
    with pytest.raises(InvalidManifest) as caught:
        resolved(front, policy)
    return [render_problem(problem) for problem in caught.value.problems]


def test_job_without_profile_has_the_defaults() -> None:
    """Every value of the snapshot is there when the job names only its place."""
    spec = spec_of("")
    assert spec == JobSpec(
        title="Do it.",
        body="Do it.\n",
        repository=REPOSITORY,
        engine_class="agentic-coder",
        manifest_sha256=spec.manifest_sha256,
    )
    assert len(spec.manifest_sha256) == 64


def test_every_value_of_the_job_arrives_in_its_snapshot() -> None:
    """Quantities arrive in base units, and nothing is lost on the way."""
    resolution = resolved(
        "title: T\nengine: codex\nmodel: m\nallowed-tools: [Read]\nproduct: shop\ncapabilities: gpu\n"
        "prefers: factory:a\nweights: {load: 0}\npriority: high\nyolo: true\nlock: l\ntimeout: 45m\nverify: make\n"
        "retry: {max: 2, backoff: 0.5s, on: [timeout]}\n"
        "review-policy: auto\nallowed-scope: src/\nshares-scope: true\nartifacts: coverage\n"
        "deps: [{job: j-1, until: testing}]\n"
        "idempotency-key: k\nbudget: {usd: 5, tokens: 2M, wall: 4h}\ntracker-item: X-1\nprofile: solo\nship: base"
    )
    spec = build_spec(resolution, REPOSITORY)
    assert (spec.title, spec.engine, spec.engine_class, spec.engine_preference) == ("T", "codex", None, ())
    assert (spec.model, spec.allowed_tools, spec.product_id) == ("m", ("Read",), "shop")
    assert (spec.capabilities, spec.prefers, spec.priority) == (("gpu",), ("factory:a",), Priority.HIGH)
    assert spec.weights == {"load": 0}
    assert came_from(resolution)["weights"] == ({"load": 0}, "job")
    assert (spec.yolo, spec.lock, spec.timeout_s) == (True, "l", 2700)
    assert spec.retry == RetrySpec(max=2, backoff_s=0.5, on=(FailureKind.TIMEOUT,))
    assert (spec.verify, spec.review_policy, spec.ship) == (("make",), "auto", ShipMode.BASE)
    assert (spec.allowed_scope, spec.shares_scope, spec.artifacts) == (("src/",), True, ("coverage",))
    assert [(dep.job_id, dep.until) for dep in spec.deps] == [("j-1", "testing")]
    assert (spec.idempotency_key, spec.tracker_item) == ("k", "X-1")
    assert (resolution.idempotency_key, resolution.dependencies) == ("k", spec.deps)
    assert spec.budget == BudgetSpec.model_validate({"usd": "5", "tokens": 2_000_000, "wall_s": 14_400})
    assert spec.profile == SOLO.ref
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.req("P3", "P4")
def test_job_that_leaves_things_open_gets_them_from_its_profile() -> None:
    """Verify, class, preference, model, scope and review policy come from the profile, and the provenance says so."""
    resolution = resolved("profile: backend")
    spec = build_spec(resolution, REPOSITORY)
    assert spec.verify == ("pnpm -s test",)
    assert spec.engine_preference == ("codex", "claude", "home-made")  # shell is no coding agent
    assert (spec.model, spec.review_policy) == ("m-1", "auto")
    assert spec.allowed_scope == BACKEND.allowed_scope
    assert spec.profile == BACKEND.ref
    sources = came_from(resolution)
    for name in (
        "verify",
        "engine-class",
        "engine-preference",
        "model",
        "allowed-scope",
        "review-policy",
        "capabilities",
    ):
        assert sources[name][1] == "profile backend@3", name
    assert sources["profile"] == ("backend@3", "job")
    assert sources["timeout"] == ("1h", "default")


@pytest.mark.req("P3")
def test_persona_is_put_before_the_prompt() -> None:
    """The engine reads the persona first, then the job's own words."""
    assert spec_of("profile: backend").prompt == "You are a backend engineer.\n\nDo it.\n"
    assert spec_of("").prompt == "Do it.\n"


@pytest.mark.req("P3")
def test_own_values_of_the_job_win_and_capabilities_add_up() -> None:
    """What the job says replaces the profile's default, except that capabilities are joined."""
    front = "profile: backend\nverify: make\nmodel: m-2\nreview-policy: manual\ncapabilities: [gpu, node>=20]"
    resolution = resolved(front)
    spec = build_spec(resolution, REPOSITORY)
    assert (spec.verify, spec.model, spec.review_policy) == (("make",), "m-2", "manual")
    assert spec.capabilities == ("node>=20", "gpu")
    sources = came_from(resolution)
    assert sources["verify"] == (["make"], "job")
    assert sources["capabilities"] == (["node>=20", "gpu"], "profile backend@3 + job")
    notes = {entry.field: entry.note for entry in resolution.provenance}
    assert notes["model"] == "instead of 'm-1' of profile backend@3"


def test_empty_verify_overrules_the_profile() -> None:
    """`verify: []` asks for none."""
    assert spec_of("profile: backend\nverify: []").verify == ()


def test_named_engine_overrides_class_and_preference() -> None:
    """With an engine there is nothing left to choose."""
    resolution = resolved("profile: backend\nengine: claude")
    spec = build_spec(resolution, REPOSITORY)
    assert (spec.engine, spec.engine_class, spec.engine_preference) == ("claude", None, ())
    assert came_from(resolution)["engine-class"] == (None, "job")


def test_class_of_the_job_filters_the_preference_of_the_profile() -> None:
    """Preferred engines of another class are left out, and the note says which."""
    resolution = resolved("profile: backend\nengine-class: script")
    assert resolution.values["engine_preference"] == ("shell", "home-made")
    note = next(entry.note for entry in resolution.provenance if entry.field == "engine-preference")
    assert note == "without codex or claude: not script"


@pytest.mark.req("M5")
def test_unknown_names_are_refused_with_the_nearest_one() -> None:
    """A typing error in engine, class or profile never waits for a machine that will not come."""
    assert mistakes("engine: cluade")[0].endswith("did you mean `claude`?")
    assert mistakes("engine-class: agent-coder") == [
        (
            "line 3: engine-class is not known: `agent-coder`; expected agentic-coder, script or demo; "
            "did you mean `agentic-coder`?"
        )
    ]
    assert mistakes("profile: bakend") == [
        "line 3: profile is not known: `bakend`; expected backend or solo; did you mean `backend`?"
    ]


def test_engine_that_a_factory_offers_is_known() -> None:
    """Engines described elsewhere are known by the policy."""
    assert spec_of("engine: home-made", Policy(engines=("home-made",))).engine == "home-made"
    assert resolved("engine: devin", Policy(engines=("devin",))).notices == ()


@pytest.mark.req("M5")
def test_mistakes_of_every_step_are_told_at_once() -> None:
    """Syntax, unknown names, forbidden ship and scope come together, by line, each once."""
    front = "engine: cluade\npriority: hgh\nprofile: backend\nallowed-scope: [other/]\nship: pr\nyolo: true\n"
    front += "budget: {usd: x}"
    with pytest.raises(InvalidManifest) as caught:
        resolved(front, Policy(allow_yolo=False))
    assert [(problem.line, problem.path) for problem in caught.value.problems] == [
        (3, "engine"),
        (4, "priority"),
        (6, "allowed-scope[0]"),
        (7, "ship"),
        (8, "yolo"),
        (9, "budget.usd"),
    ]


@pytest.mark.req("M5")
def test_unreadable_file_gives_its_own_mistake_only() -> None:
    """Where nothing could be read, nothing else is concluded."""
    with pytest.raises(InvalidManifest) as caught:
        prepare("---\na: 'b\n---\nx", profiles=PROFILES, policy=Policy())
    assert [problem.path for problem in caught.value.problems] == ["front-matter"]


def test_resolving_directly_raises_what_the_reader_found() -> None:
    """`resolve` of a well-read manifest works with a profile at hand, or without one."""
    parsed = parse_manifest("---\nrepo: /r\nship: base\n---\nx\n")
    assert resolve(parsed, SOLO, Policy()).values["ship"] == ShipMode.BASE
    with pytest.raises(InvalidManifest):
        resolve(parsed, None, Policy())


def test_json_document_is_resolved_like_a_file() -> None:
    """The API's object takes the same way."""
    document = {"repo": "/srv/shop", "profile": "backend", "body": "Do it."}
    found = prepare_object(document, profiles=PROFILES, policy=Policy())
    assert found.canonical == resolved("profile: backend").canonical


# --- scope ------------------------------------------------------------------------------------------------------------


@pytest.mark.req("P3")
def test_job_may_narrow_the_scope_and_the_exclusions_stay() -> None:
    """A narrower scope counts; what the profile takes out stays out."""
    resolution = resolved('profile: backend\nallowed-scope: ["packages/**", "backend/api/"]')
    assert resolution.values["allowed_scope"] == ("packages/**", "backend/api/", "!packages/legacy/")
    entry = next(entry for entry in resolution.provenance if entry.field == "allowed-scope")
    assert (entry.source, entry.note) == ("job + profile backend@3", "the profile's exclusions stay")
    repeated = resolved('profile: backend\nallowed-scope: ["packages/**", "!packages/legacy/"]')
    assert came_from(repeated)["allowed-scope"] == (["packages/**", "!packages/legacy/"], "job")


@pytest.mark.req("P3")
def test_job_may_not_widen_the_scope() -> None:
    """A wider glob is refused with a path that would be new; the others are not complained about."""
    assert mistakes('profile: backend\nallowed-scope: ["backend/x/", "**/*.md", "src/a.py"]') == [
        (
            "line 4: allowed-scope[1] is wider than the scope of profile backend@3, for example by `.md`: `**/*.md`; "
            "expected paths within backend/** packages/** !packages/legacy/"
        ),
        (
            "line 4: allowed-scope[2] is wider than the scope of profile backend@3, for example by `src/a.py`: "
            "`src/a.py`; expected paths within backend/** packages/** !packages/legacy/"
        ),
    ]


@pytest.mark.req("P3")
def test_exclusions_alone_widen_like_everything() -> None:
    """A list of exclusions means everything else, which a limited profile does not allow."""
    assert [line.split(" ")[2] for line in mistakes('profile: backend\nallowed-scope: ["!docs/"]')] == ["allowed-scope"]


@pytest.mark.req("P3")
def test_policy_may_let_jobs_widen_the_scope() -> None:
    """With leave the job's scope counts as it is, and the provenance says by whose leave."""
    resolution = resolved("profile: backend\nallowed-scope: [docs/]", Policy(widen_scope=True))
    assert resolution.values["allowed_scope"] == ("docs/",)
    assert came_from(resolution)["allowed-scope"] == (["docs/"], "job + policy")


# --- ship and yolo ----------------------------------------------------------------------------------------------------


@pytest.mark.req("G4")
def test_base_needs_the_leave_of_profile_and_installation() -> None:
    """`ship: base` is refused without either, and says what would allow it."""
    assert spec_of("profile: solo\nship: base").ship == ShipMode.BASE
    assert mistakes("profile: solo\nship: base", Policy(allow_base=False)) == [
        "line 4: ship is not allowed by this installation: `base`; expected `ship: branch`, or `allow_base: true`"
    ]
    assert mistakes("profile: backend\nship: base") == [
        (
            "line 4: ship is not allowed for profile backend@3: `base`; expected a profile that allows it, such as "
            "`profile: solo`"
        )
    ]
    assert mistakes("ship: base")[0].startswith("line 3: ship is not allowed for a job without a profile: `base`")


def test_unknown_profile_is_one_mistake() -> None:
    """What the profile would have allowed is not complained about as well."""
    assert len(mistakes("profile: sollo\nship: base")) == 1
    assert len(mistakes("profile: So Lo\nship: base")) == 1


@pytest.mark.req("M2")
def test_yolo_is_allowed_by_the_default_policy() -> None:
    """Auto-approval works on one's own machine, and can be forbidden."""
    assert spec_of("yolo: true").yolo
    assert mistakes("yolo: true", Policy(allow_yolo=False)) == [
        "line 3: yolo is not allowed by this installation: `true`; expected `yolo: false`, or `allow_yolo: true`"
    ]


# --- notices ----------------------------------------------------------------------------------------------------------


@pytest.mark.req("M9")
def test_refused_fields_are_mistakes_and_warnings_stay_with_the_job() -> None:
    """What is not built is refused at the door or told with the job; never dropped."""
    lines = mistakes("ship: pr\nreview-policy: reviewers:[ann]")
    assert [line.split(";")[0] for line in lines] == [
        "line 3: ship asks for what is not there yet: `pr` is not built yet",
        "line 4: review-policy asks for what is not there yet: `reviewers` is not built yet",
    ]
    resolution = resolved("engine: devin\nbudget: {usd: 5}\ntracker-item: X")
    assert [notice.field for notice in resolution.notices] == ["budget.usd", "tracker-item", "engine"]


@pytest.mark.req("M9")
def test_hint_that_some_engine_of_the_class_ignores_is_warned_about() -> None:
    """A model or tool list from the job or its profile is checked against every engine that may get the job."""
    assert [(n.field, n.message) for n in resolved("allowed-tools: [Read]").notices] == [
        ("allowed-tools", "has no effect on codex")
    ]
    assert [(n.field, n.message) for n in resolved("profile: backend\nengine: shell").notices] == [
        ("model", "has no effect on shell")
    ]
    note = next(e.note for e in resolved("profile: backend\nengine: shell").provenance if e.field == "profile")
    assert note == "high risk; shell does not read its persona"


@pytest.mark.req("P3")
def test_provenance_shows_every_field_of_the_manifest_once() -> None:
    """`explain` has a line for every field that can matter."""
    names = [entry.field for entry in resolved("profile: backend").provenance]
    assert len(names) == len(set(names))
    assert set(names) == {
        "title", "profile", "product", "repo", "base", "engine", "engine-class", "engine-preference", "model",
        "allowed-tools", "capabilities", "prefers", "weights", "priority", "lock", "yolo", "timeout", "retry", "budget",
        "verify", "on-lease-loss", "review-policy", "allowed-scope", "shares-scope", "ship", "artifacts", "deps",
        "idempotency-key", "tracker-item",
    }  # fmt: skip


def test_provenance_is_json_in_humane_units() -> None:
    """What is shown reads like the file and can be sent."""
    resolution = resolved(
        "timeout: 5400\nretry: {backoff: 300s}\nbudget: {usd: 5.0, tokens: 2000k, wall: 90m}\ndeps: [j-1]"
    )
    sources = came_from(resolution)
    assert sources["timeout"] == ("1h30m", "job")
    assert sources["retry"][0]["backoff"] == "5m"
    assert sources["budget"][0] == {"usd": "5", "tokens": "2M", "wall": "1h30m"}
    assert sources["deps"][0] == ["j-1 until shipped"]
    assert Resolution.model_validate_json(resolution.model_dump_json()).provenance == resolution.provenance


def test_engine_classes_hold_every_engine_once() -> None:
    """Each known engine belongs to one class."""
    assert sorted(name for names in ENGINE_CLASSES.values() for name in names) == sorted(e.name for e in ENGINES)


def test_profile_is_no_part_of_the_content() -> None:
    """Editing a profile does not turn a repeated submission into another job."""
    parsed = parse_manifest("---\nrepo: /r\nprofile: backend\n---\nx\n")
    edited = BACKEND.model_copy(update={"persona": "You are new.", "version": 4})
    one, other = (resolve(parsed, each, Policy()) for each in (BACKEND, edited))
    assert one.canonical == other.canonical
    assert one.values["profile"] != other.values["profile"]
