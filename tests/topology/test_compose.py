"""docker-compose.yml and what lies beside it fit the program, and keep the promises that their comments make.

That its commands and environments work is shown by the other tests of this folder, which run them.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.settings import PREFIX, Settings
from core.version import VERSION
from tests.topology.compose import COMPOSE_FILE, ROOT, Service, interpolate, read_services, variables_of
from workers.temporal_full_server import VERSION as TEMPORAL_VERSION

TEXT = COMPOSE_FILE.read_text()
SERVICES = read_services(TEXT, {"POSTGRES_PASSWORD": "p"})
DOCUMENT: dict[str, Any] = yaml.safe_load(interpolate(TEXT, {"POSTGRES_PASSWORD": "p"}))
LASTING = [service for service in SERVICES.values() if not service.once]
TEMPLATE = (ROOT / "docker" / "temporal" / "production.yaml").read_text()
SCHEMA_SCRIPT = (ROOT / "docker" / "temporal" / "setup-schema.sh").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
EVERY = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)


def volumes_of(service: Service) -> list[str]:
    """Return the volumes that the service mounts, as `name:path`."""
    return list(service.document.get("volumes", ()))


def modules_of(service: Service) -> list[str]:
    """Return the modules of ours that the service starts, its health check included."""
    check = service.document.get("healthcheck", {}).get("test", ())
    commands = (service.command, tuple(check[1:]))
    return [command[command.index("-m") + 1] for command in commands if "python" in command]


@EVERY
def test_every_module_that_is_started_exists(service: Service) -> None:
    """A renamed module must not be found out by a container that does not start."""
    for module in modules_of(service):
        found = importlib.util.find_spec(module)
        assert found is not None, module
        assert found.origin is not None
        path = Path(found.origin)
        main = path.with_name("__main__.py") if path.name == "__init__.py" else path
        assert 'if __name__ == "__main__":' in main.read_text(), module


@EVERY
def test_every_variable_of_ours_is_a_setting(service: Service) -> None:
    """An unknown GIGAFACTORY_ variable would be ignored in silence."""
    ours = {name.removeprefix(PREFIX).lower() for name in service.environment if name.startswith(PREFIX)}
    assert ours <= set(Settings.model_fields)


@EVERY
def test_images_are_pinned(service: Service) -> None:
    """The same file starts the same versions tomorrow."""
    image = service.document["image"]
    _, _, tag = image.partition(":")
    assert re.match(r"\d+\.\d+", tag), image
    if image.startswith("gigafactory:"):
        assert tag == VERSION
    if image.startswith(("temporalio/server:", "temporalio/admin-tools:")):
        assert tag.split("-")[0] == TEMPORAL_VERSION, "the tests run another Temporal server"


def test_base_image_is_pinned() -> None:
    """The same for our own image."""
    assert re.search(r"^FROM python:3\.\d+\.\d+-slim-\w+$", DOCKERFILE, re.MULTILINE)


@EVERY
def test_no_container_has_more_rights_than_it_needs(service: Service) -> None:
    """Nothing privileged, nothing of the host; all but PostgreSQL (which changes its user) without capabilities."""
    body = service.document
    assert not {"privileged", "pid", "ipc", "network_mode", "cap_add", "devices", "userns_mode"} & body.keys()
    assert "docker.sock" not in str(body)
    if service.name != "postgres":
        assert body["cap_drop"] == ["ALL"]
        assert body["security_opt"] == ["no-new-privileges:true"]


def test_what_asks_for_tokens_is_published_and_on_loopback() -> None:
    """Temporal and PostgreSQL trust whoever reaches them; Temporal's Web UI and the gateway have to be asked for."""
    published = {name: service.document["ports"] for name, service in SERVICES.items() if "ports" in service.document}
    assert set(published) == {"api", "gateway", "temporal-ui"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    profiles = {name: body.document["profiles"] for name, body in SERVICES.items() if "profiles" in body.document}
    assert profiles == {"temporal-ui": ["ui"], "gateway": ["gateway"]}
    assert DOCUMENT["networks"]["inside"]["internal"] is True
    assert all("inside" in service.document["networks"] for service in SERVICES.values())
    assert not {"postgres", "temporal"} & {
        name for name, service in SERVICES.items() if "outside" in service.document["networks"]
    }


@pytest.mark.parametrize("service", LASTING, ids=lambda service: service.name)
def test_what_lasts_has_a_health_check_and_comes_back(service: Service) -> None:
    """Docker can tell whether each part works, and starts it again. Temporal's Web UI only shows."""
    assert service.document["restart"] == "unless-stopped"
    assert service.name == "temporal-ui" or "test" in service.document["healthcheck"]


def test_everything_that_is_named_is_there_and_used() -> None:
    """Volumes, networks and dependencies."""
    for kind in ("volumes", "networks"):
        assert all(name in TEXT.partition("\nservices:")[2] for name in DOCUMENT[kind])
    for service in SERVICES.values():
        assert set(service.document.get("depends_on", {})) <= set(SERVICES)
        named = {volume.split(":")[0] for volume in service.document.get("volumes", ()) if volume[0] not in "./"}
        assert named <= set(DOCUMENT["volumes"])
        assert all((ROOT / "docker") in path.parents and path.is_dir() for path in service.mounts.values())


def test_control_plane_alone_knows_the_ledger() -> None:
    """A factory never opens it, and sees no token but its own: the others lie in a volume that it has not."""
    with_ledger = {name for name, service in SERVICES.items() if f"{PREFIX}DATABASE_URL" in service.environment}
    assert with_ledger == {"migration", "api", "control", "gateway"}
    with_tokens = {name for name, service in SERVICES.items() if any("home:" in v for v in volumes_of(service))}
    assert with_tokens == {"api", "factory-token", "gateway"}
    assert volumes_of(SERVICES["factory"]) == ["factory:/var/lib/gigafactory"]


def test_volumes_are_mounted_where_the_image_has_directories_of_our_user() -> None:
    """Docker gives a new volume the owner of what it covers; any other place would be root's, and not writable."""
    made = re.search(r"install -d -o gigafactory -g gigafactory -m 0700 (.+)$", DOCKERFILE, re.MULTILINE)
    assert made is not None
    ours = [service for service in SERVICES.values() if service.document["image"].startswith("gigafactory:")]
    places = {volume.split(":")[1] for service in ours for volume in volumes_of(service)}
    assert places == set(made[1].split())


def test_file_holds_no_secret_and_says_what_it_needs() -> None:
    """Secrets come from `.env`, which git ignores; docker/env.example lists every variable."""
    with pytest.raises(KeyError, match=r"make-secrets\.sh"):
        read_services(TEXT, {})
    listed = set(re.findall(r"^#?(\w+)=", (ROOT / "docker" / "env.example").read_text(), re.MULTILINE))
    assert variables_of(TEXT) == listed
    assert "/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_temporal_reads_every_variable_that_it_is_given() -> None:
    """Between the compose file, the server's configuration and the schema script no name is misspelt."""
    in_template = set(re.findall(r'env "(\w+)"', TEMPLATE))
    for name in SERVICES["temporal"].environment:
        assert name in in_template
    read_by_tool = {"SQL_HOST", "SQL_PORT", "SQL_USER", "SQL_PASSWORD"}
    for name in SERVICES["temporal-schema"].environment:
        assert name in read_by_tool or f"${{{name}:-" in SCHEMA_SCRIPT
    needed = {name for name in in_template if f'env "{name}" | default' not in TEMPLATE}
    assert needed <= set(SERVICES["temporal"].environment)


def test_image_has_every_room_that_runs() -> None:
    """The ignore list names what goes into the image; a new room must not be forgotten there."""
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert rooms | {"profiles", "requirements.lock"} <= kept


def test_secrets_are_made_once_and_kept(tmp_path: Path) -> None:
    """The script makes what is missing, random and out of other users' reach, and never replaces anything."""
    shutil.copytree(ROOT / "docker", tmp_path / "docker")
    script = ["sh", str(tmp_path / "docker" / "make-secrets.sh")]
    subprocess.run(script, check=True)
    made = (tmp_path / ".env").read_text()
    assert re.fullmatch(r"POSTGRES_PASSWORD=[A-Za-z0-9]{43}\n", made)
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    subprocess.run(script, check=True)
    assert (tmp_path / ".env").read_text() == made


@pytest.mark.parametrize(
    ("text", "expected"),
    [("${A}", "1"), ("${B:-2}", "2"), ("${B}", ""), ("${A:-2}", "1"), ("x${A}y${B:-z}", "x1yz"), ("$A", "$A")],
)
def test_variables_are_replaced_as_compose_does(text: str, expected: str) -> None:
    """The reader of the tests understands what Compose understands."""
    assert interpolate(text, {"A": "1"}) == expected
