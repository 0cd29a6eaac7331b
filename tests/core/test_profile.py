"""Profiles: every field with its default, mistakes with their lines, and the catalogue that comes along."""

from __future__ import annotations

import re

import pytest

from core.errors import InvalidInput
from core.field_problems import render_problem
from core.job import ShipMode
from core.profile import Profile, parse_profile, profile_fields, read_profile
from store.profile_files import load_profiles

PERSONA = "You are careful.\n"


def profile_of(front: str = "", persona: str = PERSONA) -> Profile:
    """Return a profile with these fields beside the required ones."""
    required = "" if "name:" in front else "name: x\n"
    required += "" if "description:" in front else "description: For tests.\n"
    return parse_profile(f"---\n{required}{front}\n---\n\n{persona}")


FIELDS = [
    ("name", "name", None, "name: shop-backend", "shop-backend"),
    ("version", "version", 1, "version: 7", 7),
    ("description", "description", None, "description: Does it.", "Does it."),
    ("capabilities", "capabilities", (), "capabilities: [node>=20, has:pnpm]", ("node>=20", "has:pnpm")),
    ("default-verify", "default_verify", (), "default-verify: [a, b]", ("a", "b")),
    ("engine-class", "engine_class", None, "engine-class: script", "script"),
    ("prefers-engine", "prefers_engine", (), "prefers-engine: [codex, claude]", ("codex", "claude")),
    ("model", "model", None, "model: m-1", "m-1"),
    ("allowed-tools", "allowed_tools", (), "allowed-tools: [Read]", ("Read",)),
    ("allowed-scope", "allowed_scope", None, 'allowed-scope: ["docs/**"]', ("docs/**",)),
    ("review-policy", "review_policy", None, "review-policy: auto", "auto"),
    ("allows-ship", "allows_ship", (ShipMode.BRANCH,), "allows-ship: [branch, base]", (ShipMode.BRANCH, ShipMode.BASE)),
    ("risk", "risk", "medium", "risk: high", "high"),
]


@pytest.mark.req("P1")
@pytest.mark.parametrize(("front", "attribute", "value"), [(row[3], row[1], row[4]) for row in FIELDS])
def test_profile_field_is_read_as_written(front: str, attribute: str, value: object) -> None:
    """Every field is taken."""
    assert getattr(profile_of(front), attribute) == value


@pytest.mark.req("P1")
@pytest.mark.parametrize(("attribute", "default"), [(row[1], row[2]) for row in FIELDS if row[2] is not None])
def test_profile_field_that_is_left_out_has_its_default(attribute: str, default: object) -> None:
    """Every field that may be left out has its default."""
    assert getattr(profile_of(), attribute) == default


def test_table_of_profile_fields_is_complete() -> None:
    """No field is without a test."""
    assert {row[0] for row in FIELDS} == set(profile_fields())


def test_persona_is_the_body() -> None:
    """The text below the front matter is the persona, without blank lines around it."""
    assert profile_of(persona="\n\nYou are *careful*.\n\n- Always.\n\n").persona == "You are *careful*.\n\n- Always."


WRONG = [
    (
        (
            "---\nname: qa\nversion: zero\ndescription: x\nriskk: low\nengine-class: agentic-coders\n"
            "allows-ship: [pr]\nallowed-scope: [a/**b]\nreview-policy: reviewers:[ann]\n---\n"
        ),
        [
            "line 3: version is not a whole number: `zero`; expected a whole number from 1 to 1000000",
            (
                "line 5: riskk is an unknown field: `low`; expected a field that docs/reference/profiles.md describes; "
                "did you mean `risk`?"
            ),
            (
                "line 6: engine-class is not known: `agentic-coders`; expected agentic-coder, script or demo; "
                "did you mean `agentic-coder`?"
            ),
            "line 7: allows-ship[0] is not a choice: `pr`; expected branch or base",
            (
                "line 8: allowed-scope[0] has `**` beside other characters: `a/**b`; expected `**` alone between "
                "slashes; did you mean `a/**/*b`?"
            ),
            "line 9: review-policy is not a choice: `reviewers:[ann]`; expected auto or manual",
            "line 11: body is empty; expected text: it is the prompt",
        ],
    ),
    (
        "---\nname: other\npersona: You are careful.\n---\nYou are careful.\n",
        [
            "description is missing",
            "line 2: name is not the file's name: `other`; expected qa; did you mean `qa`?",
            "line 3: persona is the file's body, not a field; expected it below the front matter",
        ],
    ),
    (
        "You are careful.\n",
        [
            (
                "line 1: front-matter is missing: `You are careful.`; expected a first line ---, then fields such as "
                "`engine: claude`, then a line ---"
            )
        ],
    ),
]


@pytest.mark.parametrize(("text", "problems"), WRONG)
def test_broken_profile_tells_all_its_mistakes(text: str, problems: list[str]) -> None:
    """Every mistake at once, each with its line."""
    assert [render_problem(problem) for problem in read_profile(text, "profiles/qa.md")[1]] == problems
    with pytest.raises(InvalidInput, match=re.escape("profiles/qa.md is not valid: ")):
        parse_profile(text, "profiles/qa.md")


@pytest.mark.req("P4")
def test_hash_changes_with_everything_that_the_profile_says() -> None:
    """Persona, version and fields are all part of the snapshot's hash; spelled-out defaults are not."""
    original = profile_of()
    assert profile_of("risk: medium").sha256 == original.sha256
    others = [profile_of("risk: low"), profile_of("version: 2"), profile_of(persona="You are bold.\n")]
    assert len({original.sha256, *(other.sha256 for other in others)}) == 4
    assert original.ref.sha256 == original.sha256
    assert (original.ref.name, original.ref.version, original.label) == ("x", 1, "profile x@1")


# --- the catalogue ----------------------------------------------------------------------------------------------------

CATALOGUE = (
    "backend-engineer",
    "developer",
    "docs-writer",
    "frontend-engineer",
    "qa",
    "reviewer",
    "solo",
    "ui-designer",
    "ux-designer",
)


@pytest.mark.req("P2")
def test_catalogue_has_the_starter_profiles() -> None:
    """Eight roles, and one for a person alone with their own repository."""
    assert tuple(load_profiles()) == CATALOGUE


@pytest.mark.req("P2")
@pytest.mark.parametrize("name", CATALOGUE)
def test_starter_profile_says_how_to_work_and_how_to_end(name: str) -> None:
    """Each persona is a page of working instructions, with what the engine must know about its surroundings."""
    profile = load_profiles()[name]
    assert 150 < len(profile.persona.split()) < 450
    assert profile.persona.startswith("You are a ")
    assert "The working tree is the result" in profile.persona
    assert "Your last message" in profile.persona.replace("\n", " ")
    assert "Nobody is there to answer" in profile.persona.replace("\n", " ")


@pytest.mark.req("P2")
@pytest.mark.parametrize("name", CATALOGUE)
def test_starter_profile_can_be_routed_on_an_ordinary_machine(name: str) -> None:
    """No starter profile asks for more than git and a coding agent, and none is warned about."""
    profile = load_profiles()[name]
    assert profile.capabilities == ()
    assert profile.engine_class == "agentic-coder"
    assert profile.allowed_tools == ()


@pytest.mark.req("G4")
def test_only_solo_may_merge_into_the_base() -> None:
    """Merging straight into the base is for one person on their own repository."""
    allowing = [name for name, profile in load_profiles().items() if ShipMode.BASE in profile.allows_ship]
    assert allowing == ["solo"]


@pytest.mark.req("P5")
def test_profiles_that_cannot_touch_code_are_of_low_risk() -> None:
    """A low risk class goes with a scope."""
    low = {name for name, profile in load_profiles().items() if profile.risk == "low"}
    assert low == {name for name, profile in load_profiles().items() if profile.allowed_scope}
