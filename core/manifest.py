"""The job manifest: every field of a job file, read with all its mistakes at once. *Pure.*

One model serves files, API and queue. `read_manifest` never raises and keeps what was good, so that the mistakes of
later steps (unknown profile, scope too wide) can be told together with these; `parse_manifest` raises them. Fields that
mean nothing yet are named by `unbuilt`, refused or warned about; none is silently ignored.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
)
from pydantic.json_schema import GenerateJsonSchema

from core.attempt import content_hash
from core.engine_classes import ENGINE_CLASSES, engine_info, known_engines
from core.errors import FieldProblem, InvalidManifest
from core.field_problems import field_names, field_problems, line_of, merged, render_problem
from core.field_types import (
    JOB_REFERENCE,
    WEIGHT,
    Backoff,
    Branch,
    Capabilities,
    Commands,
    Directory,
    Globs,
    Key,
    Label,
    Labels,
    Name,
    RepositoryUrl,
    Retries,
    Seconds,
    Slug,
    Switch,
    Title,
    Tokens,
    Usd,
    Weight,
    as_list,
    as_mapping,
    distinct,
    job_reference,
    members,
    nearest,
    one_of,
    one_or_more,
    refuse,
    some,
)
from core.front_matter import BODY, FRONT_MATTER, body_problems, normal_body, read_front_matter
from core.job import RETRYABLE_BY_MANIFEST, FailureKind, LeaseLoss, Message, Priority, ShipMode
from core.quantities import kind_of
from core.router_policy import Weights

LONGEST_TITLE = 72
DEFAULT_TIMEOUT_S = 3600
REFERENCE = "docs/reference/manifest.md"
SCHEMA_ID = "urn:gigafactory:schema:manifest"


class Section(BaseModel):
    """Base of what a file may hold: frozen, and unknown names are mistakes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Budget(Section):
    """Ceilings of one job."""

    usd: Usd | None = Field(default=None, description="US dollars for all attempts together.")
    tokens: Tokens | None = Field(default=None, description="Tokens for all attempts together.")
    wall_s: Seconds | None = Field(default=None, alias="wall", description="Time from the first attempt to the end.")


FailureName = Annotated[FailureKind, BeforeValidator(one_of(kind.value for kind in RETRYABLE_BY_MANIFEST))]
FailureNames = Annotated[
    tuple[FailureName, ...],
    BeforeValidator(as_list),
    AfterValidator(distinct),
    AfterValidator(some),
    one_or_more({"enum": [kind.value for kind in RETRYABLE_BY_MANIFEST]}),
]


class Retry(Section):
    """How often a failed attempt is repeated."""

    max: Retries = Field(default=1, description="Further attempts after the first one; 0 for none.")
    backoff_s: Backoff = Field(
        default=Decimal(30),
        alias="backoff",
        json_schema_extra={"default": "30s"},
        description="Wait before the first further attempt; doubles each time, up to an hour.",
    )
    on: FailureNames = Field(
        default=RETRYABLE_BY_MANIFEST, description="Kinds of failure that are worth another attempt."
    )


class DependsOn(Section):
    """A job that must have got somewhere before this one starts."""

    job: Annotated[str, BeforeValidator(job_reference)] = Field(
        description="Id of the job, or `key:` and its idempotency-key."
    )
    until: Annotated[Literal["shipped", "testing"], BeforeValidator(one_of(("shipped", "testing")))] = Field(
        default="shipped", description="Stage that the other job must have reached."
    )


class Reviewers(Section):
    """People who must approve; not built yet, so every use is refused."""

    reviewers: tuple[str, ...]


def _dependency(value: object) -> object:
    return value if isinstance(value, dict | DependsOn) else {"job": job_reference(value)}


def _dependencies(value: object) -> object:
    return [value] if isinstance(value, dict) else as_list(value)


_REFERENCE = {"type": ["string", "integer"], "pattern": f"^({JOB_REFERENCE})$"}
Dependencies = Annotated[
    tuple[Annotated[DependsOn, BeforeValidator(_dependency)], ...],
    BeforeValidator(_dependencies),
    one_or_more(
        {
            "anyOf": [
                _REFERENCE,
                {
                    "type": "object",
                    "properties": {"job": _REFERENCE, "until": {"enum": ["shipped", "testing"], "default": "shipped"}},
                    "required": ["job"],
                    "additionalProperties": False,
                },
            ]
        }
    ),
]


def review_policy(value: object) -> Literal["auto", "manual"] | Reviewers:
    """Return a review policy: `auto`, `manual`, `reviewers:[a, b]` or the mapping that JSON has for the last."""
    expected = "auto, manual or reviewers:[name, …]"
    if isinstance(value, Reviewers):
        return value
    names: object = None
    if isinstance(value, dict) and list(value) == ["reviewers"]:
        names = value["reviewers"]
    elif isinstance(value, str) and (match := re.fullmatch(r"reviewers:\s*\[(.*)\]", value.strip())):
        names = [name.strip() for name in match[1].split(",")]
    elif isinstance(value, str) and value.strip() in {"auto", "manual"}:
        return "auto" if value.strip() == "auto" else "manual"
    if isinstance(names, list | tuple) and names and all(isinstance(name, str) and name for name in names):
        return Reviewers(reviewers=tuple(names))
    near = nearest(value, ("auto", "manual")) if isinstance(value, str) else ""
    raise refuse("is not a review policy", expected=expected, suggestion=near)


_NAMED = {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1}
ReviewPolicy = Annotated[
    Literal["auto", "manual"] | Reviewers,
    PlainValidator(review_policy),
    PlainSerializer(lambda value: {"reviewers": list(value.reviewers)} if isinstance(value, Reviewers) else value),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": r"^(auto|manual|reviewers:\s*\[.*\])$"},
                {"type": "object", "properties": {"reviewers": _NAMED}, "required": ["reviewers"]},
            ]
        }
    ),
]


PARTS = tuple(Weights.model_fields)
JobWeights = Annotated[
    dict[Annotated[str, BeforeValidator(one_of(PARTS))], Weight],
    BeforeValidator(as_mapping),
    WithJsonSchema({"type": "object", "propertyNames": {"enum": list(PARTS)}, "additionalProperties": WEIGHT}),
]


class Manifest(Section):
    """A job's front matter. None means: not written, so that the profile or the default decides."""

    title: Title | None = Field(
        default=None, description="One line that names the job; otherwise the body's first heading or line."
    )
    engine: Name | None = Field(
        default=None,
        json_schema_extra={"examples": list(known_engines())},
        description="The engine that does the work; overrides profile and engine-class.",
    )
    engine_class: Name | None = Field(
        default=None,
        alias="engine-class",
        json_schema_extra={"examples": list(ENGINE_CLASSES)},
        description="A kind of engine; the router picks one. Default: the profile's, else agentic-coder.",
    )
    model: Label | None = Field(default=None, description="Model the engine is asked to use. Default: the profile's.")
    allowed_tools: Labels | None = Field(
        default=None,
        alias="allowed-tools",
        description="Tools the engine may use, in its own words. Default: the profile's, else its own.",
    )
    cwd: Directory | None = Field(
        default=None, description="Directory to work on, absolute or relative to the job file; excludes `repo`."
    )
    repo: RepositoryUrl | None = Field(
        default=None, description="Git repository to work on: URL, path, or scratch:<name>; excludes `cwd`."
    )
    base: Branch | None = Field(
        default=None,
        description="Branch the work starts from. Default: the one checked out, or the remote's default.",
    )
    product: Slug = Field(default="default", description="Product that the job belongs to.")
    profile: Name | None = Field(default=None, description="Profile that does the work: persona and defaults.")
    capabilities: Capabilities = Field(
        default=(), description="What the factory must have, beside what the profile asks for."
    )
    prefers: Capabilities = Field(default=(), description="What the factory should have; only a hint.")
    weights: JobWeights = Field(
        default_factory=dict, description="Parts of a factory's score that count otherwise for this job."
    )
    priority: Annotated[Priority, BeforeValidator(one_of(members(Priority)))] = Field(
        default=Priority.MEDIUM, description="Order of service."
    )
    yolo: Switch = Field(default=False, description="Lets the engine act without asking for approval.")
    lock: Label | None = Field(default=None, description="Jobs with the same lock never run at the same time.")
    timeout_s: Seconds = Field(
        default=DEFAULT_TIMEOUT_S,
        alias="timeout",
        json_schema_extra={"default": "1h"},
        description="Longest time of one attempt.",
    )
    retry: Retry | None = Field(
        default=None, description="Repeats failed attempts; without it the first failure ends the job in `failed`."
    )
    on_lease_loss: Annotated[LeaseLoss, BeforeValidator(one_of(members(LeaseLoss)))] = Field(
        default=LeaseLoss.STOP,
        alias="on-lease-loss",
        description="What an engine does whose attempt does not count any more.",
    )
    verify: Commands | None = Field(
        default=None, description="Shell commands that must succeed on the result. Default: the profile's, else none."
    )
    review_policy: ReviewPolicy | None = Field(
        default=None,
        alias="review-policy",
        description="Who lets the result through. Default: the profile's, else manual.",
    )
    ship: Annotated[ShipMode, BeforeValidator(one_of(members(ShipMode)))] = Field(
        default=ShipMode.BRANCH, description="Where an approved result goes."
    )
    allowed_scope: Globs | None = Field(
        default=None,
        alias="allowed-scope",
        description="Paths the job may change. Default: the profile's, else everything.",
    )
    shares_scope: Switch = Field(
        default=False,
        alias="shares-scope",
        description="Lets other jobs work on the same paths of the repository at the same time.",
    )
    artifacts: Globs | None = Field(default=None, description="Files that are kept beside the commit.")
    deps: Dependencies = Field(default=(), description="Jobs that must be done before this one starts.")
    idempotency_key: Key | None = Field(
        default=None,
        alias="idempotency-key",
        description="The same key with the same content is the same job, however often it is sent.",
    )
    budget: Budget = Field(
        default=Budget(), json_schema_extra={"default": {}}, description="Ceilings for the whole job."
    )
    tracker_item: Label | None = Field(
        default=None, alias="tracker-item", description="Item of a tracker that the job belongs to."
    )


SECTIONS: Mapping[str, type[BaseModel]] = {"budget": Budget, "retry": Retry, "deps": DependsOn}
"""The fields that have fields, for the spelling of unknown names."""


@dataclass(frozen=True, slots=True)
class ParsedManifest:
    """A job file or JSON document as read: manifest, body, title, and where each field stands."""

    manifest: Manifest
    body: str
    title: str
    source: str = ""
    lines: Mapping[str, int] = field(default_factory=dict)
    body_line: int | None = None
    problems: tuple[FieldProblem, ...] = ()
    """What is wrong with it; the manifest then holds defaults in place of what could not be read."""
    readable: bool = True
    """False when no field could be read at all, so that nothing may be concluded from the manifest."""

    def is_bad(self, *fields: str) -> bool:
        """Whether one of these top-level fields already has a problem."""
        roots = {re.split(r"[.\[]", problem.path, maxsplit=1)[0] for problem in self.problems}
        return not self.readable or not roots.isdisjoint(fields)


# --- reading ----------------------------------------------------------------------------------------------------------


def parse_manifest(text: str, *, source: str = "", base_dir: str = "", home_dir: str = "") -> ParsedManifest:
    """Read a job file; see `read_manifest` for the arguments.

    Raises:
        InvalidManifest: every mistake at once.

    """
    return checked(read_manifest(text, source=source, base_dir=base_dir, home_dir=home_dir))


def parse_manifest_object(
    document: object, *, source: str = "", base_dir: str = "", home_dir: str = ""
) -> ParsedManifest:
    """Read a job sent as JSON: the manifest's fields and `body` in one object.

    Raises:
        InvalidManifest: every mistake at once.

    """
    return checked(read_manifest_object(document, source=source, base_dir=base_dir, home_dir=home_dir))


def checked(parsed: ParsedManifest) -> ParsedManifest:
    """Return `parsed` if nothing is wrong with it.

    Raises:
        InvalidManifest: every mistake at once.

    """
    if parsed.problems:
        raise invalid(parsed.source, parsed.problems)
    return parsed


def invalid(source: str, problems: tuple[FieldProblem, ...]) -> InvalidManifest:
    """Return the error that carries `problems`; its message names the first."""
    rest = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return InvalidManifest(
        f"{source or 'the job'} is not valid: {render_problem(problems[0])}{rest}",
        problems,
        hint=f"every field is described in {REFERENCE}",
    )


def read_manifest(text: str, *, source: str = "", base_dir: str = "", home_dir: str = "") -> ParsedManifest:
    """Read a job file and return what is good of it together with all problems; never raises.

    Args:
        text: The file's text.
        source: Its path, for messages and for the title of last resort.
        base_dir: Absolute directory that a relative `cwd` or `repo` is resolved against; empty refuses relative ones.
        home_dir: What `~` stands for; empty refuses it.

    """
    front = read_front_matter(text)
    values = front.values if front.readable else {"cwd": "/"}
    manifest, problems = _validated(values, front.lines, base_dir, home_dir)
    closed = front.readable or front.body_line > 1
    wrong_body = tuple(body_problems(front.body, front.body_line)) if closed else ()
    return ParsedManifest(
        manifest=manifest,
        body=front.body,
        title=manifest.title or title_of(front.body, source),
        source=source,
        lines=front.lines,
        body_line=front.body_line,
        problems=merged(front.problems, problems, wrong_body),
        readable=front.readable,
    )


def read_manifest_object(
    document: object, *, source: str = "", base_dir: str = "", home_dir: str = ""
) -> ParsedManifest:
    """Read a job sent as JSON and return what is good of it together with all problems; never raises."""
    if not isinstance(document, Mapping):
        problem = FieldProblem(FRONT_MATTER, f"is {kind_of(document)}", expected="an object with fields and `body`")
        return ParsedManifest(Manifest(), "", "", source, problems=(problem,), readable=False)
    values = {str(key): value for key, value in document.items()}
    given = values.pop(BODY, None)
    text = given if isinstance(given, str) else ""
    body = normal_body(text)
    manifest, problems = _validated(values, {}, base_dir, home_dir)
    wrong_kind = () if isinstance(given, str) else (FieldProblem(BODY, f"is {kind_of(given)}", expected="the prompt"),)
    return ParsedManifest(
        manifest=manifest,
        body=body,
        title=manifest.title or title_of(body, source),
        source=source,
        problems=merged(problems, wrong_kind, body_problems(body, None)),
    )


def _validated(
    values: Mapping[str, Any], lines: Mapping[str, int], base_dir: str, home_dir: str
) -> tuple[Manifest, tuple[FieldProblem, ...]]:
    """Return the manifest of all good values, and the problems of the others."""
    known = field_names(Manifest)
    good = {name: value for name, value in values.items() if value is not None or name not in known}
    context = {"base_dir": base_dir, "home_dir": home_dir}
    problems: list[FieldProblem] = []
    try:
        manifest = Manifest.model_validate(good, context=context)
    except ValidationError as error:
        problems = field_problems(error, Manifest, SECTIONS, lines, reference=REFERENCE)
        bad = {str(item["loc"][0]) for item in error.errors(include_url=False, include_input=False)}
        good = {name: value for name, value in good.items() if name not in bad}
        manifest = Manifest.model_validate(good, context=context)
    meant = {problem.path for problem in problems} | {problem.suggestion for problem in problems}
    return manifest, merged(problems, _contradictions(manifest, lines, meant), _repeated(manifest, values, lines))


def _contradictions(manifest: Manifest, lines: Mapping[str, int], meant: set[str]) -> Iterator[FieldProblem]:
    """Yield what fields say against each other; `meant` are the fields that already have a problem."""
    if manifest.cwd and manifest.repo:
        yield FieldProblem(
            "repo", "contradicts `cwd`", manifest.repo, "`cwd` or `repo`, not both", line=line_of("repo", lines)
        )
    if not manifest.cwd and not manifest.repo and meant.isdisjoint({"cwd", "repo"}):
        yield FieldProblem(
            "cwd",
            "is missing",
            expected="`cwd: <directory>` or `repo: <git URL>`: the job needs a place to work on",
            line=line_of(FRONT_MATTER, lines),
        )


def _repeated(manifest: Manifest, values: Mapping[str, Any], lines: Mapping[str, int]) -> Iterator[FieldProblem]:
    """Yield the dependencies that are the job itself or there twice; looks at good and bad entries alike."""
    given = values.get("deps")
    seen: dict[str, str] = {}
    for index, item in enumerate(given if isinstance(given, list | tuple) else [given]):
        job = item.get("job") if isinstance(item, dict) else item
        if not isinstance(job, str):
            continue
        path = f"deps[{index}]"
        if job == f"key:{manifest.idempotency_key}":
            yield FieldProblem(path, "is the job itself", job, "another job", line=line_of(path, lines))
        elif job in seen:
            yield FieldProblem(path, f"repeats {seen[job]}", job, "each job once", line=line_of(path, lines))
        seen.setdefault(job, path)


_HEADING = re.compile(r" {0,3}#{1,6}[ \t]+(.*?)[ \t]*#*[ \t]*")
_FENCED = re.compile(r" {0,3}(`{3,}|~{3,})")


def title_of(body: str, source: str = "") -> str:
    """Return the first heading of `body` outside code, else its first line, else the file's stem; 72 characters."""
    first = heading = ""
    fence = ""
    for line in body.split("\n"):
        marker = _FENCED.match(line)
        if marker and (not fence or marker[1].startswith(fence)):
            fence = "" if fence else marker[1]
            continue
        match = None if fence else _HEADING.fullmatch(line)
        if match and match[1]:
            heading = match[1]
            break
        if not fence and not first and not line.startswith("#!"):
            first = line.strip()
    stem = posixpath.splitext(posixpath.basename(source.replace("\\", "/")))[0]
    text = "".join(c for c in heading or first or stem or "untitled" if c.isprintable())
    return text if len(text) <= LONGEST_TITLE else text[: LONGEST_TITLE - 1].rstrip() + "…"


# --- content ----------------------------------------------------------------------------------------------------------


def canonical(manifest: Manifest, body: str) -> dict[str, Any]:
    """Return manifest and body as the JSON object that idempotency compares.

    Values that equal their default are left out, so that a written default equals an omitted one and a field that a
    later version adds changes nothing. The idempotency key is no part of the content it is the key of.
    """
    fields = manifest.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude={"idempotency_key"})
    return fields | {BODY: normal_body(body)}


def manifest_sha256(manifest: Manifest, body: str) -> str:
    """Return the hash of the canonical content."""
    return content_hash(canonical(manifest, body))


# --- what is not built yet --------------------------------------------------------------------------------------------


class Notice(Message):
    """Something that the author should know about a field: refused, or accepted with a warning."""

    field: str
    severity: Literal["refused", "warning"]
    message: str


def unbuilt(manifest: Manifest) -> list[Notice]:
    """Return a notice for each written field whose behaviour is not, or not wholly, built yet."""
    notices = []
    if manifest.ship == ShipMode.PR:
        notices.append(_refused("ship", "`pr` is not built yet; use `branch`: it pushes a branch to open one from"))
    if isinstance(manifest.review_policy, Reviewers):
        notices.append(_refused("review-policy", "`reviewers` is not built yet; use `manual` or `auto`"))
    for name in ("usd", "tokens", "wall"):
        if getattr(manifest.budget, "wall_s" if name == "wall" else name) is not None:
            instead = "; `timeout` is enforced for each attempt" if name == "wall" else ""
            notices.append(_warning(f"budget.{name}", f"is recorded but not enforced yet{instead}"))
    if manifest.tracker_item:
        notices.append(_warning("tracker-item", "is recorded, but nothing is written back to a tracker yet"))
    return notices + engine_notices(
        manifest.engine,
        manifest.engine_class,
        hints={"model": bool(manifest.model), "allowed-tools": bool(manifest.allowed_tools)},
    )


def engine_notices(engine: str | None, engine_class: str | None, *, hints: Mapping[str, bool]) -> list[Notice]:
    """Return a warning for an engine without a built-in adapter, and for each given hint that is not honoured."""
    notices = []
    info = engine_info(engine) if engine else None
    if info and not info.adapter:
        message = f"{info.name} has no built-in adapter; the job waits until a factory offers this engine"
        notices.append(_warning("engine", message))
    candidates = (engine,) if engine else ENGINE_CLASSES.get(engine_class or "", ())
    known = [found for name in candidates if (found := engine_info(name)) and found.adapter]
    for hint, given in hints.items():
        deaf = [found.name for found in known if hint not in found.honours]
        if given and deaf:
            notices.append(_warning(hint, f"has no effect on {' and '.join(deaf)}"))
    return notices


def _refused(name: str, message: str) -> Notice:
    return Notice(field=name, severity="refused", message=message)


def _warning(name: str, message: str) -> Notice:
    return Notice(field=name, severity="warning", message=message)


# --- schema -----------------------------------------------------------------------------------------------------------


def manifest_schema() -> dict[str, Any]:
    """Return the JSON Schema of a job's front matter, for editors; the parser accepts a little more (empty fields)."""
    schema = Manifest.model_json_schema(by_alias=True)
    for section in (schema, *schema["$defs"].values()):
        section.pop("title", None)
        if "properties" in section:
            section["properties"] = {name: _plain_schema(value) for name, value in section["properties"].items()}
    place = {"oneOf": [{"required": ["cwd"]}, {"required": ["repo"]}]}
    head: dict[str, Any] = {
        "$schema": GenerateJsonSchema.schema_dialect,
        "$id": SCHEMA_ID,
        "title": "Gigafactory job manifest",
    }
    return head | {key: value for key, value in schema.items() if key != "title"} | place


def _plain_schema(value: dict[str, Any]) -> dict[str, Any]:
    """Return a property's schema without the null that only means "not written", and without generated titles."""
    plain = {key: item for key, item in value.items() if key != "title" and not (key == "default" and item is None)}
    choices = [choice for choice in plain.pop("anyOf", []) if choice != {"type": "null"}]
    if len(choices) == 1:
        return {**choices[0], **plain}
    return plain | ({"anyOf": choices} if choices else {})


def manifest_fields() -> tuple[str, ...]:
    """Return the names of all manifest fields, those of sections dotted (`retry.max`)."""
    nested = [f"{name}.{inner}" for name, model in SECTIONS.items() for inner in field_names(model)]
    return (*field_names(Manifest), *nested)
