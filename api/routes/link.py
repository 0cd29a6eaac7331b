"""Where agents link up. *Does I/O: the ledger, files.*"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import structlog
from fastapi import APIRouter, Depends, WebSocket
from pydantic import BaseModel, ValidationError
from starlette.websockets import WebSocketDisconnect

from api.auth import Caller, check_attempt, identify, requires_of_socket
from api.backend import Backend
from api.link import POLICY_VIOLATION, Link
from api.problems import invalid_input_of
from api.routes.attempts import Report, take_report
from api.routes.factories import Heartbeat, Name, take_beat
from core.errors import Conflict, FieldProblem, GigafactoryError, InvalidInput
from core.link import Call
from core.roles import Permission

log = structlog.get_logger("api.link")

router = APIRouter(prefix="/fleet/factories", tags=["factories"])

LinkingCaller = Annotated[Caller, Depends(requires_of_socket(Permission.ACT_AS_FACTORY))]
DocumentT = TypeVar("DocumentT", bound=BaseModel)


@router.websocket("/{factory}/link")
async def link_factory(socket: WebSocket, caller: LinkingCaller, factory: Name) -> None:
    """Serve one agent's link; see `core.link` for what is said over it."""
    backend: Backend = socket.app.state.backend
    header = socket.headers.get("authorization")

    async def handle(call: Call) -> dict[str, Any]:
        return await _take(backend, caller, factory, call)

    async def still_known() -> None:
        await identify(header, backend.book)

    await socket.accept()
    link = Link(socket, factory, handle, still_known)
    try:
        hello = await link.hello()
        await _check_instance(backend, factory, hello.instance)
        log.info("link.up", factory=factory, running=len(hello.running))
        with backend.links.joined(link):
            await link.serve()
    except GigafactoryError as error:
        await link.close(POLICY_VIOLATION, error.message)
    except WebSocketDisconnect as left:
        log.info("link.down", factory=factory, code=left.code, reason=left.reason)


async def _check_instance(backend: Backend, factory: str, instance: str) -> None:
    row = await backend.ledger.factory(factory)
    if row.instance != instance:
        raise Conflict(f"factory {factory} is run by another agent (process {row.pid})", name=factory, pid=row.pid)


async def _take(backend: Backend, caller: Caller, factory: str, call: Call) -> dict[str, Any]:
    """Do what the request with the same meaning does.

    Raises:
        GigafactoryError: what that request would be answered with.

    """
    if call.name == "beat":
        heard = await take_beat(backend, factory, _checked(Heartbeat, call.body))
        return heard.model_dump(mode="json")
    if call.job_id is None or call.epoch is None:
        missing = tuple(
            FieldProblem(path=name, message="a report is for one attempt", expected="job id and epoch")
            for name in ("job_id", "epoch")
            if getattr(call, name) is None
        )
        raise InvalidInput("a report without its attempt", missing)
    await check_attempt(backend, caller, call.job_id, call.epoch)
    await take_report(backend, call.job_id, call.epoch, _checked(Report, call.body))
    return {}


def _checked(model: type[DocumentT], body: dict[str, Any]) -> DocumentT:
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise invalid_input_of(error, within="body") from None
