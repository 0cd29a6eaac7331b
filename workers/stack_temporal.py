"""Becomes the embedded Temporal server. Does I/O: replaces this process by the server's.

The steward does not build the command itself: that takes the Temporal SDK, which a process that only watches others
should not carry. The pid stays the same through the replacement.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from workers.temporal_server import server_command


def main() -> None:
    """Start the server with what the command line says."""
    parser = argparse.ArgumentParser(prog="workers.stack_temporal")
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--db-file", type=Path, required=True)
    parser.add_argument("--namespace", required=True)
    for flag in ("--port", "--ui-port", "--http-port"):
        parser.add_argument(flag, type=int, required=True)
    given = parser.parse_args()
    command = server_command(
        given.binary,
        port=given.port,
        ui_port=given.ui_port,
        http_port=given.http_port,
        db_file=given.db_file,
        namespace=given.namespace,
    )
    os.execv(command[0], command)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
