"""Reference, schema and examples stay true: each is checked against the code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from core.job import Repository, ShipMode
from core.manifest import manifest_fields, manifest_schema, parse_manifest
from core.profile import Profile, parse_profile, profile_fields
from core.quantities import format_duration
from core.resolution import Policy, build_spec, prepare
from core.scope import scope_of
from store.profile_files import load_profiles

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = (ROOT / "docs/reference/manifest.md").read_text()
PROFILES = (ROOT / "docs/reference/profiles.md").read_text()
EXAMPLES = sorted([*(ROOT / "examples").glob("*.md"), *(ROOT / "examples/dag").glob("[0-9]*.md")])
BROKEN = Path(__file__).parent / "fixtures" / "manifests"


def section(document: str, name: str) -> str:
    """Return what a reference says about one field."""
    match = re.search(rf"^### `{re.escape(name)}`\n(.*?)(?=^#|\Z)", document, re.MULTILINE | re.DOTALL)
    assert match, f"{name} has no section"
    return match[1]


def example(text: str) -> str:
    """Return the YAML example of a section."""
    match = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert match, "no example"
    return match[1]


@pytest.mark.parametrize("name", manifest_fields())
def test_manifest_field_is_documented_with_default_and_valid_example(name: str) -> None:
    """Each field has a section; its example is a valid manifest that uses the field."""
    text = section(REFERENCE, name)
    assert re.search(r"^Default: ", text, re.MULTILINE)
    front = example(text)
    assert name.rpartition(".")[2] in front
    place = "" if name in {"cwd", "repo"} else "repo: /srv/shop\n"
    parse_manifest(f"---\n{place}{front}---\nbody\n", base_dir="/jobs", home_dir="/home/ann")


def concrete_defaults() -> list[tuple[str, str]]:
    """Return each field that has a value when it is not written, with that value as the reference spells it."""
    manifest = parse_manifest("---\nrepo: /r\nretry: {}\n---\nx").manifest
    found = []
    assert manifest.retry is not None
    for prefix, model in (("", manifest), ("retry.", manifest.retry)):
        for name, info in type(model).model_fields.items():
            value = getattr(model, name)
            if name.endswith("_s"):
                value = format_duration(value)
            if isinstance(value, str | int) and name != "repo":
                found.append((prefix + (info.alias or name), str(value).lower()))
    return found


@pytest.mark.parametrize(("name", "value"), [*concrete_defaults(), ("deps.until", "shipped")])
def test_documented_default_is_the_real_one(name: str, value: str) -> None:
    """Where a field has a value of its own when it is not written, the reference names it."""
    assert f"\nDefault: `{value}`." in section(REFERENCE, name)


def test_reference_describes_no_field_that_is_not_there() -> None:
    """Sections and fields correspond."""
    assert set(re.findall(r"^### `(.*)`$", REFERENCE, re.MULTILINE)) == set(manifest_fields())
    assert set(re.findall(r"^### `(.*)`$", PROFILES, re.MULTILINE)) == set(profile_fields())


@pytest.mark.parametrize("name", profile_fields())
def test_profile_field_is_documented_with_default_and_valid_example(name: str) -> None:
    """Each field has a section; its example is a valid profile that uses the field."""
    text = section(PROFILES, name)
    assert re.search(r"^Default: ", text, re.MULTILINE)
    front = example(text)
    needed = {"name": "name: x\n", "description": "description: x\n"}
    rest = "".join(line for field, line in needed.items() if field != name)
    parse_profile(f"---\n{rest}{front}---\npersona\n")
    info = next(i for n, i in Profile.model_fields.items() if (i.alias or n) == name)
    assert info.alias is None or info.alias in front


def test_every_profile_that_comes_along_is_in_the_table_as_it_is() -> None:
    """Name, allowed ship modes and risk of the catalogue are those of the files."""
    rows = {
        row[0]: row
        for row in re.findall(r"^\| `([a-z-]+)` \| [^|]+ \| [^|]+ \| ([^|]+) \| (\w+) \|$", PROFILES, re.MULTILINE)
    }
    expected = {
        name: (name, ", ".join(f"`{mode}`" for mode in profile.allows_ship), profile.risk)
        for name, profile in load_profiles().items()
    }
    assert rows == expected


GLOB_ROWS = [
    ("src/app.py", "src/app.py", "src/app.py/x"),
    ("src", "src/a/b", "srcs"),
    ("src/", "src/a/b", "src"),
    ("docs/*.md", "docs/a.md", "docs/b/a.md"),
    ("docs/**", "docs/b/a.md", "docs"),
    ("**/tests/*.py", "tests/a.py", "tests/b/a.py"),
    ("/README.md", "README.md", "docs/README.md"),
    ("!docs/legal/", "docs/a", "docs/legal/a"),
]


@pytest.mark.req("G3")
def test_table_of_globs_is_true() -> None:
    """Each row of the table is shown by a path that it covers and one that it does not."""
    assert re.findall(r"^\| `(\S+)` \|", REFERENCE.partition("## Globs")[2], re.MULTILINE) == [
        row[0] for row in GLOB_ROWS
    ]
    for glob, inside, outside in GLOB_ROWS:
        assert scope_of((glob,)).allows(inside)
        assert not scope_of((glob,)).allows(outside)


# --- schema -----------------------------------------------------------------------------------------------------------


@pytest.mark.req("M1")
def test_published_schema_is_in_step_with_the_model() -> None:
    """The file is what the code says; to write it anew, dump `core.manifest.manifest_schema()` with indent 2."""
    published = json.loads((ROOT / "docs/reference/manifest.schema.json").read_text())
    assert published == json.loads(json.dumps(manifest_schema()))


def front_of(path: Path) -> Any:
    """Return the front matter as YAML 1.2, which editors read, has it: there `on` is a name."""
    return json.loads(json.dumps(yaml.safe_load(re.sub(r"\bon:", "'on':", path.read_text().split("---\n")[1]))))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_satisfies_the_published_schema(path: Path) -> None:
    """What runs is also valid to an editor that checks by the schema."""
    jsonschema_rs.validate(manifest_schema(), front_of(path))


@pytest.mark.parametrize("name", ["unknown-fields", "wrong-types", "wrong-choices", "cwd-and-repo", "no-place"])
def test_broken_file_violates_the_published_schema(name: str) -> None:
    """An editor that checks by the schema sees mistakes of names, types and choices."""
    assert not jsonschema_rs.is_valid(manifest_schema(), front_of(BROKEN / f"{name}.md"))


# --- examples ---------------------------------------------------------------------------------------------------------


@pytest.mark.req("U2")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_can_be_submitted_without_a_warning(path: Path) -> None:
    """Each example resolves under the default policy with the profiles that come along."""
    resolution = prepare(
        path.read_text(), source=str(path), base_dir=str(path.parent), profiles=load_profiles(), policy=Policy()
    )
    assert resolution.notices == ()
    assert build_spec(resolution, Repository(url="/r")).title == resolution.title


def test_first_example_needs_nothing_and_ends_on_the_base_branch() -> None:
    """`hello.md` runs anywhere: a replay in a scratch repository, verified, in scope, merged."""
    manifest = parse_manifest((ROOT / "examples/hello.md").read_text()).manifest
    assert (manifest.engine, manifest.repo, manifest.profile) == ("replay", "scratch:hello", "solo")
    assert manifest.ship == ShipMode.BASE
    assert manifest.verify
    assert manifest.capabilities == ()


def test_old_runner_example_has_only_the_old_fields() -> None:
    """`phase0.md` shows that such a file is whole."""
    path = ROOT / "examples/phase0.md"
    assert set(front_of(path)) == {"engine", "cwd", "yolo"}
    assert parse_manifest(path.read_text(), base_dir="/x/examples").manifest.cwd == "/x/examples"


def test_dag_example_names_parents_that_are_there() -> None:
    """Every parent is the key of an earlier file, so that the three can be sent in order."""
    known: set[str] = set()
    for path in sorted((ROOT / "examples/dag").glob("[0-9]*.md")):
        manifest = parse_manifest(path.read_text()).manifest
        assert {dep.job for dep in manifest.deps} <= known
        known.add(f"key:{manifest.idempotency_key}")
    assert len(known) == 3
