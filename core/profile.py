"""Profiles: who does a job, with which defaults and within which limits. *Pure*: texts in, models out.

A profile is a Markdown file like a job: front matter with defaults and limits, and a body that is the persona, put
before the prompt of engines that read prose. `core.resolution` lays a job over a profile.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from core.attempt import content_hash
from core.engine_classes import ENGINE_CLASSES
from core.errors import FieldProblem, InvalidInput
from core.field_problems import field_names, field_problems, line_of, merged, render_problem
from core.field_types import (
    Capabilities,
    Commands,
    Globs,
    Label,
    Labels,
    Name,
    Names,
    Version,
    as_list,
    distinct,
    listed,
    nearest,
    one_of,
    one_or_more,
    some,
)
from core.front_matter import body_problems, read_front_matter
from core.job import ProfileRef, ShipMode

REFERENCE = "docs/reference/profiles.md"
Risk = Literal["low", "medium", "high"]

_BUILT_SHIP_MODES = (ShipMode.BRANCH, ShipMode.BASE)
AllowedShips = Annotated[
    tuple[Annotated[ShipMode, BeforeValidator(one_of(mode.value for mode in _BUILT_SHIP_MODES))], ...],
    BeforeValidator(as_list),
    AfterValidator(distinct),
    AfterValidator(some),
    one_or_more({"enum": [mode.value for mode in _BUILT_SHIP_MODES]}),
]


class Profile(BaseModel):
    """A profile's front matter and persona; None means: the profile has no opinion."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name = Field(description="Name that jobs ask for it by; the file is `<name>.md`.")
    version: Version = Field(default=1, description="Raised with every change; a job keeps the version it got.")
    description: Label = Field(description="One line that says what it is for.")
    capabilities: Capabilities = Field(default=(), description="What its factory must have; the job's are added.")
    default_verify: Commands = Field(
        default=(), alias="default-verify", description="`verify` of jobs that have none of their own."
    )
    engine_class: Name | None = Field(
        default=None, alias="engine-class", description="`engine-class` of jobs that have none of their own."
    )
    prefers_engine: Names = Field(
        default=(), alias="prefers-engine", description="Engines in the order in which they suit it; only a hint."
    )
    model: Label | None = Field(default=None, description="`model` of jobs that have none of their own.")
    allowed_tools: Labels = Field(
        default=(), alias="allowed-tools", description="`allowed-tools` of jobs that have none of their own."
    )
    allowed_scope: Globs | None = Field(
        default=None, alias="allowed-scope", description="Paths its jobs may change; a job may narrow them, not widen."
    )
    review_policy: Annotated[Literal["auto", "manual"], BeforeValidator(one_of(("auto", "manual")))] | None = Field(
        default=None, alias="review-policy", description="`review-policy` of jobs that have none of their own."
    )
    allows_ship: AllowedShips = Field(
        default=(ShipMode.BRANCH,), alias="allows-ship", description="Values of `ship` that its jobs may have."
    )
    risk: Annotated[Risk, BeforeValidator(one_of(("low", "medium", "high")))] = Field(
        default="medium", description="How much harm its work can do; recorded with the job."
    )
    persona: str = Field(default="", description="The file's body: how it works, in words to the engine.")

    @property
    def sha256(self) -> str:
        """Return the hash of everything that the profile says, persona included."""
        return content_hash(self.model_dump(mode="json", by_alias=True, exclude_defaults=True))

    @property
    def ref(self) -> ProfileRef:
        """Return how a job's snapshot names this profile."""
        return ProfileRef(name=self.name, version=self.version, sha256=self.sha256)

    @property
    def label(self) -> str:
        """Return how people are told where a value came from: `profile qa@1`."""
        return f"profile {self.name}@{self.version}"


def parse_profile(text: str, source: str = "") -> Profile:
    """Read one profile file; `source` is its path, whose stem must be the profile's name.

    Raises:
        InvalidInput: every mistake at once, each with its line.

    """
    profile, problems = read_profile(text, source)
    if problems or profile is None:
        rest = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InvalidInput(
            f"{source or 'the profile'} is not valid: {render_problem(problems[0])}{rest}",
            problems,
            hint=f"every field is described in {REFERENCE}",
        )
    return profile


def read_profile(text: str, source: str = "") -> tuple[Profile | None, tuple[FieldProblem, ...]]:
    """Read one profile file and return it, or what is wrong with it; never raises."""
    front = read_front_matter(text)
    if not front.readable:
        return None, front.problems
    values = {name: value for name, value in front.values.items() if value is not None or name not in _NAMES}
    problems = list(_unfit(values, source, front.lines))
    profile = None
    try:
        profile = Profile.model_validate({**values, "persona": front.body.strip()})
    except ValidationError as error:
        problems += field_problems(error, Profile, {}, front.lines, reference=REFERENCE)
    found = merged(front.problems, problems, body_problems(front.body, front.body_line))
    return (None if found else profile), found


_NAMES = field_names(Profile)


def _unfit(values: Mapping[str, Any], source: str, lines: Mapping[str, int]) -> Iterator[FieldProblem]:
    """Yield what the field types cannot see: a persona among the fields, a name that is not the file's, a class."""
    if "persona" in values:
        yield FieldProblem(
            "persona",
            "is the file's body, not a field",
            expected="it below the front matter",
            line=lines.get("persona"),
        )
    name, stem = values.get("name"), posixpath.splitext(posixpath.basename(source.replace("\\", "/")))[0]
    if stem and isinstance(name, str) and name != stem:
        yield FieldProblem("name", "is not the file's name", name, stem, stem, line_of("name", lines))
    engine_class = values.get("engine-class")
    if isinstance(engine_class, str) and engine_class not in ENGINE_CLASSES:
        yield FieldProblem(
            "engine-class",
            "is not known",
            engine_class,
            listed(ENGINE_CLASSES),
            nearest(engine_class, ENGINE_CLASSES),
            line_of("engine-class", lines),
        )


def profile_fields() -> tuple[str, ...]:
    """Return the names of all front matter fields of a profile."""
    return tuple(name for name in _NAMES if name != "persona")
