"""The factory's side of the API, one method per call. Does I/O: HTTP.

Answers that are no success become our own errors again, by their `code`; an API that is away, or in trouble itself, is
`Unavailable`. Nothing is retried here: the spool and the agent know what waiting costs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

import httpx

from core.attempt import DeathCertificate
from core.errors import (
    Conflict,
    Forbidden,
    GigafactoryError,
    InvalidInput,
    NotFound,
    StaleEpoch,
    Unauthenticated,
    Unavailable,
)
from core.job import Message
from core.switch import SwitchState
from workers.link import FactoryLink, LinkDown

TIMEOUT_S: Final = 10.0
UPLOAD_TIMEOUT_S: Final = 60.0
CONNECTIONS: Final = 8

_BY_CODE: Final[dict[str, type[GigafactoryError]]] = {
    error.code: error for error in (StaleEpoch, Conflict, NotFound, Unauthenticated, Forbidden)
}


class OwnToken(Message):
    """What a factory needs to know of its token."""

    created_at: datetime
    expires_at: datetime | None = None
    successor: str | None = None
    """The token that took its place already."""


class BeatOrders(Message):
    """What a factory hears when it beats."""

    hand_over: bool = False
    """What runs is to end now with a checkpoint and go on elsewhere."""
    switch: SwitchState = SwitchState()


class FactoryApi:
    """The API as a factory uses it; the token is read again when it is refused, since it may have been rotated."""

    def __init__(self, url: str, token_file: Path) -> None:
        self.url = url.rstrip("/")
        self._token_file = token_file
        self._http = httpx.AsyncClient(
            base_url=self.url,
            timeout=TIMEOUT_S,
            limits=httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS),
            trust_env=not self.url.startswith(("http://127.0.0.1", "http://localhost", "http://[::1]")),
        )
        self._token = ""
        self.link: FactoryLink | None = None
        """The quicker way, when the agent keeps one."""

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def report(self, job_id: str, epoch: int, body: Mapping[str, Any]) -> None:
        """Tell what an attempt did since its last report, over the link when it is there.

        Raises:
            StaleEpoch: the attempt's lease is gone; nothing of the report was taken.
            Unavailable: the API is away.

        """
        if await self._linked("report", body, job_id=job_id, epoch=epoch) is None:
            await self._post(f"/fleet/attempts/{job_id}/{epoch}/report", json=body)

    async def confirm(self, job_id: str, epoch: int) -> Literal["", "cancelled"]:
        """Tell that an attempt lives although Temporal cannot say so; return why it is to stop, if it is.

        Raises:
            StaleEpoch: the attempt's lease is gone.
            Unavailable: the API is away.

        """
        answer = await self._post(f"/fleet/attempts/{job_id}/{epoch}/alive", json={})
        return "cancelled" if answer.get("stop") == "cancelled" else ""

    async def quarantined(self, job_id: str, epoch: int, *, ref: str, sha: str, message: str) -> None:
        """Tell where the work of an attempt lies that was finished after its lease was lost."""
        body = {"ref": ref, "sha": sha, "message": message}
        await self._post(f"/fleet/attempts/{job_id}/{epoch}/quarantined", json=body)

    async def upload(
        self,
        job_id: str,
        epoch: int,
        path: str,
        body: bytes,
        *,
        kind: Literal["file", "diff", "log"],
        media_type: str,
    ) -> None:
        """Store a captured file."""
        query = {"path": path, "kind": kind, "sha256": hashlib.sha256(body).hexdigest()}
        await self._post(
            f"/fleet/attempts/{job_id}/{epoch}/artifacts",
            content=body,
            params=query,
            headers={"Content-Type": media_type},
            timeout=UPLOAD_TIMEOUT_S,
        )

    async def certify(self, certificate: DeathCertificate) -> None:
        """Tell that nothing of an attempt lives any more."""
        path = f"/fleet/attempts/{certificate.job_id}/{certificate.epoch}/death"
        await self._post(path, json=certificate.model_dump(mode="json"))

    async def register(self, body: Mapping[str, Any]) -> str:
        """Report for work and return the state that the factory has now."""
        return str((await self._post("/fleet/factories", json=body))["state"])

    async def beat(self, name: str, body: Mapping[str, Any]) -> BeatOrders:
        """Tell that the factory lives and return what it has to do.

        Raises:
            NotFound: it is not known (any more): register again.
            Conflict: another agent has its name now.

        """
        answer = await self._linked("beat", body)
        if answer is None:
            answer = await self._post(f"/fleet/factories/{name}/heartbeat", json=body)
        return BeatOrders.model_validate(answer)

    async def state(self, name: str) -> str:
        """Return the state that the factory has.

        Raises:
            NotFound: it is not known (any more).

        """
        return str((await self._call("GET", f"/fleet/factories/{name}"))["state"])

    async def drain(self, name: str, instance: str) -> None:
        """Ask for no further jobs."""
        await self._post(f"/fleet/factories/{name}/drain", json={"instance": instance})

    async def leave(self, name: str, instance: str) -> None:
        """Tell that the factory is gone."""
        await self._post(f"/fleet/factories/{name}/leave", json={"instance": instance})

    async def own_token(self) -> OwnToken:
        """Return what the API knows of the token that we show."""
        return OwnToken.model_validate(await self._call("GET", "/fleet/tokens/self"))

    async def rotate_own_token(self) -> str:
        """Return a new token in the place of the one that we show, which stays good for a while."""
        return str((await self._post("/fleet/tokens/self/rotate", json={}))["secret"])

    async def _linked(
        self, name: Literal["report", "beat"], body: Mapping[str, Any], **attempt: Any
    ) -> dict[str, Any] | None:
        """Make a call over the link and return its answer; None when it has to be made over HTTP.

        A call whose answer was lost is made again: all that go over the link may come twice.
        """
        if self.link is None or not self.link.up:
            return None
        try:
            answer = await self.link.call(name, body, **attempt)
        except LinkDown:
            return None
        if answer.status < 400:
            return answer.body
        if answer.status == 401:
            return None
        raise error_from(answer.status, answer.body)

    async def _post(self, path: str, *, headers: Mapping[str, str] | None = None, **body: Any) -> dict[str, Any]:
        return await self._call("POST", path, headers=headers, **body)

    async def _call(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **body: Any
    ) -> dict[str, Any]:
        given = dict(headers or {})
        try:
            response = await self._http.request(method, path, headers=given | self._credentials(), **body)
            if response.status_code == httpx.codes.UNAUTHORIZED:
                self._token = ""
                response = await self._http.request(method, path, headers=given | self._credentials(), **body)
        except httpx.TransportError as error:
            raise Unavailable(f"the API at {self.url} does not answer: {str(error) or type(error).__name__}") from error
        if response.is_success:
            answer: dict[str, Any] = response.json() if response.content else {}
            return answer
        raise error_of(response)

    def fresh_credentials(self) -> dict[str, str]:
        """Return the header that shows the token that is in our file now.

        Raises:
            Unavailable: there is none yet.

        """
        self._token = ""
        return self._credentials()

    def _credentials(self) -> dict[str, str]:
        if not self._token:
            try:
                self._token = self._token_file.read_text(encoding="utf-8").strip()
            except FileNotFoundError as error:
                raise Unavailable(f"there is no token at {self._token_file} yet") from error
        return {"Authorization": f"Bearer {self._token}"}


def error_of(response: httpx.Response) -> GigafactoryError:
    """Return the error that an answer stands for."""
    try:
        problem = dict(response.json())
    except (ValueError, TypeError):
        problem = {}
    return error_from(response.status_code, problem)


def error_from(status: int, problem: Mapping[str, Any]) -> GigafactoryError:
    """Return the error that a status with its problem document stands for."""
    message = str(problem.get("detail") or f"the API answered {status}")
    code = str(problem.get("code", ""))
    if status >= 500 or status == httpx.codes.TOO_MANY_REQUESTS:
        return Unavailable(message)
    known = _BY_CODE.get(code) or {401: Unauthenticated, 403: Forbidden, 404: NotFound, 409: Conflict}.get(status)
    return known(message) if known else InvalidInput(f"the API refused the call ({status}): {message}")
