"""The environment that an engine gets: built up from nothing, never inherited. *Pure*: the factory's is an argument.

What passes: the search path and language, proxy and trust-store settings, the engine's own allow-list, and the
variables that the operator named in the setting `engine_env`. Nothing of Gigafactory's own ever does; the supervisor
adds the one marker GIGAFACTORY_ATTEMPT.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from engines.base import EngineRun

FALLBACK_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

PROXY_AND_TRUST = (
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    "GIT_SSL_CAINFO",
)
"""How this machine reaches the network; not secret, and without it nothing works behind a company proxy."""

GIT_IDENTITY = {
    "GIT_AUTHOR_NAME": "Gigafactory",
    "GIT_AUTHOR_EMAIL": "gigafactory@localhost",
    "GIT_COMMITTER_NAME": "Gigafactory",
    "GIT_COMMITTER_EMAIL": "gigafactory@localhost",
}
"""For commits that an agent makes on its own; the candidate is sealed with an identity of the factory's."""

OWN_PREFIX = "GIGAFACTORY_"


class HasAllowList(Protocol):
    """What of an engine decides its environment."""

    @property
    def env_allow(self) -> tuple[str, ...]:
        """Return the variables of the provider that pass."""
        ...


def temporary_directory(run: EngineRun) -> Path:
    """Return the directory for temporary files of this attempt."""
    return run.attempt_dir / "tmp"


def engine_environment(
    engine: HasAllowList,
    run: EngineRun,
    factory_env: Mapping[str, str] | None = None,
    extra_allow: tuple[str, ...] = (),
) -> dict[str, str]:
    """Return the whole environment for `run` of `engine`.

    `factory_env` and `extra_allow` default to those of the run. An allow-list names variables; `NAME*` names all that
    begin so. Variables that begin with GIGAFACTORY_ never pass, whoever asks for them.
    """
    source = run.factory_env if factory_env is None else factory_env
    wanted = (*PROXY_AND_TRUST, *engine.env_allow, *run.extra_env_allow, *extra_allow)
    return {
        **{name: value for name, value in source.items() if _allowed(name, wanted)},
        **GIT_IDENTITY,
        "PATH": source.get("PATH") or FALLBACK_PATH,
        "LANG": source.get("LANG") or "C.UTF-8",
        "TERM": "dumb",
        "NO_COLOR": "1",
        "HOME": str(run.home),
        "TMPDIR": str(temporary_directory(run)),
        "GIT_TERMINAL_PROMPT": "0",
    }


def _allowed(name: str, wanted: tuple[str, ...]) -> bool:
    if name.startswith(OWN_PREFIX):
        return False
    return any(name.startswith(item[:-1]) if item.endswith("*") else name == item for item in wanted)
