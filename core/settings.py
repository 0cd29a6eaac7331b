"""All settings of one installation, with their defaults and reasons. *Pure*: the environment is an argument.

Read in this order, later wins: default, `$GIGAFACTORY_HOME/settings.yaml`, environment variable
`GIGAFACTORY_<NAME>`. `docs/reference/settings.md` is checked against this class.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.errors import FieldProblem, InvalidInput
from core.router_policy import RoutingPolicy

PREFIX = "GIGAFACTORY_"
LISTS = ("engine_env", "capabilities", "sensitive_capabilities")
"""Settings that are lists: in a variable, words separated by spaces."""
MAPPINGS = ("seats_per_engine",)
"""Settings that are mappings: in a variable, words `name=value` separated by spaces."""


class Settings(BaseModel):
    """Settings of one stack; every field is documented where it stands."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path = Field(description="Everything the stack keeps: ledger, logs, tokens, mirrors, attempts.")
    database_url: str = Field(
        default="",
        description="SQLAlchemy URL of the ledger; empty means SQLite at `<home>/ledger.db`.",
    )
    temporal_address: str = Field(
        default="", description="host:port of a Temporal server to use; empty starts the embedded one."
    )
    enrol_temporal_address: str = Field(
        default="", description="host:port of Temporal that enrolling machines are told; empty: `temporal_address`."
    )
    enrol_gateway_url: str = Field(
        default="",
        pattern=r"^(https?://[^/\s]+)?$",
        description="Gateway that enrolling machines are told to use; empty lets them meet Temporal itself.",
    )
    temporal_namespace: str = Field(default="default", description="Temporal namespace of the workflows.")
    api_url: str = Field(default="", description="URL of the API for clients; empty means the local stack's.")
    enrolled_as: str = Field(
        default="", description="The factory that this home was enrolled as; `gf up` then starts that factory alone."
    )
    api_host: str = Field(default="127.0.0.1", description="Address the API binds to; loopback by default.")
    api_port: int = Field(default=4410, description="First port the API tries; the next free one is taken.")
    temporal_port: int = Field(default=4420, description="First port the embedded Temporal server tries.")
    temporal_ui_port: int = Field(default=4430, description="First port Temporal's Web UI tries.")
    factories: int = Field(default=1, ge=0, le=64, description="Local factories that `up` starts.")
    seats_per_factory: int = Field(default=3, ge=1, le=1000, description="Jobs at once on one factory.")
    seats_per_engine: dict[str, Annotated[int, Field(ge=0, le=1000)]] = Field(
        default_factory=dict,
        description="Jobs at once with one engine on one factory; engines not named: as many as the factory has seats.",
    )
    lease_ttl_s: float = Field(
        default=30.0,
        gt=0,
        description="Seconds without an acknowledged heartbeat after which an attempt is lost.",
    )
    beat_s: float = Field(default=5.0, gt=0, description="Seconds between heartbeats of an attempt.")
    factory_beat_s: float = Field(
        default=5.0, gt=0, description="Longest time between heartbeats of a factory, in seconds."
    )
    factory_link: bool = Field(default=True, description="Whether an agent keeps a WebSocket to the API.")
    checkpoint_s: float = Field(
        default=30.0, gt=0, description="Longest time between two checkpoints while files change."
    )
    stop_grace_s: float = Field(
        default=2.0,
        ge=0,
        description="Seconds an engine gets after SIGTERM before SIGKILL at a wall timeout or drain.",
    )
    drain_grace_s: float = Field(
        default=0.0,
        ge=0,
        description="Seconds a draining factory waits for running attempts before it checkpoints them.",
    )
    reclaim_limit: int = Field(
        default=5, ge=1, description="Lost leases that a job may have; with the next it is taken for a poison job."
    )
    quarantine_failures: int = Field(
        default=3,
        ge=0,
        description="Times that a factory may spoil work which others do well before it is set aside; 0: never.",
    )
    quarantine_window_s: float = Field(
        default=3600.0, gt=0, description="Seconds within which they count, and what others did is compared."
    )
    reconcile_s: float = Field(default=60.0, gt=0, description="Seconds between two passes of the reconciler.")
    seat_wait_s: float = Field(
        default=60.0,
        ge=0,
        description="Seconds that a new job waits for a seat before its workflow is started without one.",
    )
    outbox_retry_s: float = Field(default=1.0, gt=0, description="Seconds until an undelivered message is tried again.")
    allow_base: bool = Field(
        default=True,
        description="Lets `ship: base` merge into base branches (also needs a profile that allows it).",
    )
    allow_yolo: bool = Field(default=True, description="Lets jobs ask for auto-approval of every engine action.")
    scope_mode: Literal["deny", "warn"] = Field(
        default="deny", description="What an edit outside `allowed-scope` does: block the ship gate, or warn."
    )
    locks_until: Literal["end", "verdict"] = Field(
        default="end",
        description="Whether a job's locks are held until it ends or until its gates are decided.",
    )
    sqlite_synchronous: Literal["normal", "full"] = Field(
        default="normal",
        description="`normal` survives the death of any process; `full` also a loss of power.",
    )
    engine_env: tuple[str, ...] = Field(
        default=(), description="Further environment variables that pass from a factory to its engines."
    )
    capabilities: tuple[str, ...] = Field(
        default=(), description="Capabilities that a factory is declared to have, beside those that it detects."
    )
    sensitive_capabilities: tuple[str, ...] = Field(
        default=("credential:*", "cred:*", "network:*"),
        description="Capabilities that count for routing only where an operator attested them.",
    )
    routing: RoutingPolicy = Field(
        default=RoutingPolicy(), description="Weights and limits of the router, and the shares of products."
    )
    engines_dir: Path | None = Field(
        default=None, description="Directory of YAML-described engines; default `<home>/engines`."
    )
    payload_codec: str = Field(
        default="",
        description="Payload codec, for encryption in Temporal: `module:attribute` or `/path/file.py:attribute`.",
    )
    gateway: bool = Field(default=False, description="Whether `up` also starts a gateway for untrusted factories.")
    gateway_host: str = Field(default="127.0.0.1", description="Address the gateway binds to; loopback by default.")
    gateway_port: int = Field(default=4440, description="Port of the gateway; `up` takes the next free one.")
    gateway_tls_cert: Path | None = Field(
        default=None, description="Certificate of the gateway with its chain, PEM; nothing means no TLS."
    )
    gateway_tls_key: Path | None = Field(default=None, description="Private key of that certificate, PEM.")
    gateway_seal_key: Path | None = Field(
        default=None,
        description="Key that task tokens are sealed with; default `<home>/gateway-key`, made when missing.",
    )
    gateway_calls_per_s: float = Field(
        default=50.0, gt=0, description="Calls per second of one factory that the gateway lets through."
    )
    gateway_polls: int = Field(default=32, ge=1, description="Polls of one factory that may be open at once.")
    gateway_result_kib: int = Field(
        default=256, ge=16, le=2048, description="Largest result of an activity that passes the gateway, KiB."
    )
    gateway_url: str = Field(
        default="",
        pattern=r"^(https?://[^/\s]+)?$",
        description="Gateway that the factories of this home go through; empty lets them meet Temporal itself.",
    )
    gateway_ca: Path | None = Field(
        default=None, description="Certificate authority of that gateway, PEM; nothing means the system's."
    )

    @property
    def ledger_url(self) -> str:
        """Return the SQLAlchemy URL of the ledger."""
        return self.database_url or f"sqlite:///{self.home / 'ledger.db'}"


def load_settings(environ: Mapping[str, str], file_text: str | None, *, default_home: Path) -> Settings:
    """Build the settings from an environment and the text of `settings.yaml` (None when there is no file).

    Raises:
        InvalidInput: every unknown name and every bad value, all at once.

    """
    values: dict[str, Any] = {"home": default_home}
    if file_text:
        loaded = yaml.safe_load(file_text) or {}
        if not isinstance(loaded, dict):
            raise InvalidInput("settings.yaml must be a mapping of setting names to values")
        values.update({str(key).replace("-", "_"): value for key, value in loaded.items()})
    for name in Settings.model_fields:
        text = environ.get(PREFIX + name.upper())
        if text is not None:
            values[name] = _read_variable(name, text)
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        problems = tuple(
            FieldProblem(
                path=".".join(str(part) for part in item["loc"]),
                message=item["msg"],
                value=str(item["input"]),
            )
            for item in error.errors(include_url=False)
        )
        raise InvalidInput(f"{len(problems)} bad setting(s)", problems) from None


def _read_variable(name: str, text: str) -> object:
    """Return what a variable's text says; a word that names no value is left for the model to complain of."""
    if name in LISTS:
        return tuple(text.split())
    if name in MAPPINGS:
        return dict(word.partition("=")[::2] for word in text.split())
    return text
