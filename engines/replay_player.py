"""Plays a list of recorded steps in the present directory, one JSON line for each, like an agent would.

Standard library only: it runs as `python -I -S replay_player.py STEPS.json`, without Gigafactory's own environment.
Does I/O: writes and deletes files below the present directory and runs commands there. A path that would leave it, also
over a symbolic link, is refused, and so is git's own directory.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LONGEST_OUTPUT = 16_000
"""Characters of a command's output that are told; the end matters most."""


class StepError(Exception):
    """A step cannot be played."""


def tell(kind: str, **fields: Any) -> None:
    """Write one line of the stream."""
    sys.stdout.write(json.dumps({"type": kind, **fields}, ensure_ascii=True) + "\n")
    sys.stdout.flush()


def inside(root: Path, path: str) -> Path:
    """Return the absolute path of `path`, which must lie below `root` and not in git's directory."""
    parts = path.replace("\\", "/").split("/")
    if path.startswith("/") or ".." in parts:
        raise StepError(f"{path}: leaves the worktree")
    if not path.strip("/. ") or any(part.lower() == ".git" for part in parts):
        raise StepError(f"{path}: is no file of the worktree")
    target = root / path
    real = target.parent.resolve() / target.name
    if not real.is_relative_to(root) or ".git" in real.relative_to(root).parts:
        raise StepError(f"{path}: leaves the worktree over a symbolic link")
    return real


def write(root: Path, path: str, text: str) -> None:
    """Write a file, and the directories above it; a symbolic link in its place is not followed."""
    target = inside(root, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink():
        raise StepError(f"{path}: is a symbolic link")
    target.write_text(text, encoding="utf-8")
    tell("write", path=path, bytes=len(text.encode()))


def delete(root: Path, path: str) -> None:
    """Delete a file or a symbolic link; one that is not there is a mistake in the recording."""
    try:
        inside(root, path).unlink()
    except OSError as error:
        raise StepError(f"{path}: cannot be deleted: {error.strerror}") from None
    tell("delete", path=path)


def run(root: Path, command: str) -> None:
    """Run a shell command in the worktree; another exit code than 0 ends the replay."""
    tell("run", command=command)
    done = subprocess.run(  # noqa: S602 - a recorded shell line is what this step is
        command,
        shell=True,
        cwd=root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    output = done.stdout.decode("utf-8", "replace")[-LONGEST_OUTPUT:]
    tell("ran", command=command, exit_code=done.returncode, output=output)
    if done.returncode != 0:
        raise StepError(f"`{command}` ended with exit code {done.returncode}")


def play(root: Path, step: dict[str, Any]) -> None:
    """Play one step."""
    kind, value = next(iter(step.items()))
    if kind == "say":
        tell("say", text=value)
    elif kind == "write":
        write(root, value["path"], value["text"])
    elif kind == "delete":
        delete(root, value)
    elif kind == "run":
        run(root, value)
    elif kind == "wait":
        tell("wait", seconds=value)
        time.sleep(value)
    else:
        raise StepError(f"there is no step `{kind}`")


def main(path: str) -> int:
    """Play the steps in the file at `path`; return the exit code."""
    steps = json.loads(Path(path).read_text(encoding="utf-8"))
    root = Path.cwd().resolve()
    for number, step in enumerate(steps, 1):
        try:
            play(root, step)
        except (StepError, OSError) as error:
            tell("failed", step=number, message=str(error))
            return 1
    tell("done", steps=len(steps))
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1]))
    sys.exit(130)
