"""A stack of tiny parts, run by the real steward: what `python fake_stack.py steward --home HOME` becomes.

Each part is a real process of this file. What a part does badly is written in `<home>/behave/<name>`: words of
`exit-at-once`, `ignore-term`, `never-ready`, `stray`, `stuck`, and of a factory `draining` or `quarantined`, the state
in which the API has it. Every part notes its end in `<home>/ends`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.stack_state import MARKER, READY_FD, announce_ready

if TYPE_CHECKING:
    from workers.stack_home import PortReservation
    from workers.stack_parts import PartSpec, StackPlan

ROOT = Path(__file__).resolve().parents[2]
FIRST_PORT = 23400
GRACE_S = 1.0


# --- the plan --------------------------------------------------------------------------------------------------------


def plan_fake(home: Path, factories: int, ports: PortReservation) -> StackPlan:
    """Lay out an API, a control worker, a migration and factories, all fakes; the guard is the real one."""
    from workers.stack_parts import FleetWatch, PartSpec, StackPlan, http_request  # the parts need not wait for it

    port = ports.take(FIRST_PORT)
    url = f"http://127.0.0.1:{port}"
    env = {"PYTHONPATH": str(ROOT), MARKER: str(home), READY_FD: None, "FAKE_API": url}
    fleet = FleetWatch(url, "")

    async def healthy(_pid: int) -> bool:
        return (await http_request("GET", f"{url}/fleet/health"))[0] == 200

    def spec(name: str, kind: str, rank: int, **more: Any) -> PartSpec:
        command = (sys.executable, "-P", __file__, kind, "--home", str(home), "--name", name, "--port", str(port))
        return PartSpec(name=name, kind=kind, command=command, env=env, rank=rank, grace_s=GRACE_S, **more)

    guard = PartSpec(
        name="guard",
        kind="guard",
        command=(sys.executable, "-P", "-m", "workers.stack_guard", "--home", str(home)),
        env=env,
        rank=9,
        lifeline=True,
    )
    return StackPlan(
        parts=(
            guard,
            spec("migration", "migration", 2, once=True, mend="call the smith"),
            spec("api", "api", 2, probe=healthy, stuck_after=2, url=url, mend="give it a port"),
            spec("control", "control", 1, announces=True),
        ),
        factory=lambda name: spec(name, "factory", 0, probe=partial(fleet.hears, name)),
        factories=factories,
        urls={"api": url},
        ports={"api": port},
    )


# --- the parts -------------------------------------------------------------------------------------------------------


class FakeApi(BaseHTTPRequestHandler):
    """Answers health, and keeps what factories register."""

    factories: dict[str, dict[str, Any]] = {}  # noqa: RUF012 - the one register of this process
    home: Path

    def do_GET(self) -> None:
        """Answer health and the list of factories; stuck, it has no good answer to anything."""
        if "stuck" in behaviour(self.home, "api"):
            self.send_error(503)
            return
        rows = list(self.factories.values())
        self._answer({"factories": rows} if self.path == "/fleet/factories" else {"status": "ok"})

    def do_POST(self) -> None:
        """Take a registration; an operator's word on the factory outlasts its agent."""
        row = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        ordered = [habit for habit in behaviour(self.home, row["name"]) if habit in {"draining", "quarantined"}]
        self.factories[row["name"]] = row | {"state": next(iter(ordered), "online")}
        self._answer({})

    def _answer(self, document: Mapping[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the base class's name
        """Keep quiet."""


def behaviour(home: Path, name: str) -> list[str]:
    """Return the bad habits of a part."""
    path = home / "behave" / name
    return path.read_text().split() if path.exists() else []


def run_part(kind: str, home: Path, name: str, port: int) -> int:
    """Be a part until SIGTERM."""
    habits = behaviour(home, name)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: None if "ignore-term" in habits else stop.set())
    sys.stderr.write(f"{name} begins\n")
    if "exit-at-once" in habits:
        sys.stderr.write(f"gf: {name} has no legs to stand on\n")
        return 7
    if kind == "migration":
        return 0
    if "never-ready" not in habits:
        FakeApi.home = home
        begin_work(kind, name, port)
    if "stray" in habits:  # a supervisor and its engine that a factory loses: in sessions of their own
        for environ in (dict(os.environ), {"HOME": f"{home}/factories/{name}/homes/fake"}):
            command = [sys.executable, "-c", "import time; time.sleep(600)"]
            subprocess.Popen(command, env=environ, start_new_session=True)
    while not stop.wait(0.5):
        pass
    with (home / "ends").open("a") as ends:
        ends.write(f"{name}\n")
    return 0


def begin_work(kind: str, name: str, port: int) -> None:
    """Do what readiness is seen by."""
    if kind == "api":
        server = ThreadingHTTPServer(("127.0.0.1", port), FakeApi)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    elif kind == "control":
        announce_ready()
    else:
        threading.Thread(target=keep_registered, args=(name,), daemon=True).start()


def keep_registered(name: str) -> None:
    """Register again and again: the API may be away, or have forgotten."""
    body = json.dumps({"name": name, "pid": os.getpid()}).encode()
    while True:
        try:
            request = urllib.request.Request(os.environ["FAKE_API"] + "/fleet/factories", body)  # noqa: S310
            urllib.request.urlopen(request, timeout=2).close()  # noqa: S310
            time.sleep(0.3)
        except OSError:
            time.sleep(0.02)


def main() -> int:
    """Be the steward or a part, as the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--name", default="")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--factories", type=int, default=1)
    parser.add_argument("--ready-timeout-s", type=float, default=30.0)
    parser.add_argument("--foreground", action="store_true")
    given = parser.parse_args()
    if given.kind != "steward":
        return run_part(given.kind, given.home, given.name, given.port)
    from workers.stack import run_steward
    from workers.stack_part import Limits

    limits = Limits(ready_timeout_s=given.ready_timeout_s, stray_grace_s=0.5, watch_pause_s=0.2)
    return run_steward(
        given.home, partial(plan_fake, given.home, given.factories), limits=limits, foreground=given.foreground
    )


if __name__ == "__main__":
    sys.exit(main())
