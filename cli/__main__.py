"""`gf`: parse, run, and leave with the command's own exit code. *Does I/O: terminal.*"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn

from cli.exit_codes import ExitCode


def main() -> NoReturn:
    """Run the command line that this process was started with."""
    code = _run()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the reader may be gone: `gf jobs | head -1`
            stream.flush()
    # Some commands use Temporal's SDK, whose threads may abort a normal interpreter exit (sdk-python issue 300).
    os._exit(code)


def _run() -> int:
    from cli.app import app  # noqa: PLC0415 - so that Ctrl-C during imports also ends quietly

    try:
        app(prog_name="gf")
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(bool(leaving.code))
    except KeyboardInterrupt:
        return int(ExitCode.DETACHED)
    except BrokenPipeError:
        return int(ExitCode.DONE)
    except Exception:  # noqa: BLE001 - a bug: be loud, and still leave by our own door
        import traceback  # noqa: PLC0415

        traceback.print_exc()
        return int(ExitCode.UNEXPECTED)
    return int(ExitCode.DONE)


if __name__ == "__main__":
    main()
