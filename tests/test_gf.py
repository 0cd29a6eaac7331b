"""`gf`, the one entry on a bare machine: run for real, with lock files that list no packages, so without a network."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ECHO_CLI = """import os, sys
print(os.environ["GIGAFACTORY_ROOT"], *sys.argv[1:])
sys.exit(int(sys.argv[1]) if sys.argv[1:] and sys.argv[1].isdigit() else 0)
"""
TOOLS = ("sh", "uname", "cat", "cksum", "readlink", "mkdir", "rm", "mv", "sleep", "find", "grep", "tail", "git")


@dataclass
class Checkout:
    """A small checkout with gf in it, a private cache, and the environment that gf is started in."""

    root: Path
    cache: Path
    environ: dict[str, str] = field(default_factory=dict)

    def start(self, *arguments: str, program: Path | None = None) -> subprocess.Popen[str]:
        """Start gf as a process group of its own."""
        return subprocess.Popen(
            [str(program or self.root / "gf"), *arguments],
            env=self.environ,
            cwd=self.root.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, program: Path | None = None) -> tuple[int, str, str]:
        """Run gf to its end; return exit code, stdout, stderr."""
        process = self.start(*arguments, program=program)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def environments(self) -> list[str]:
        """List what lies in the cache."""
        return sorted(path.name for path in self.cache.iterdir()) if self.cache.exists() else []


def put_program(path: Path, text: str) -> Path:
    """Write an executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """Return a checkout in a folder with a space in its name, whose `cli` echoes its arguments."""
    root = tmp_path / "my checkout"
    (root / "cli").mkdir(parents=True)
    shutil.copy(ROOT / "gf", root / "gf")
    (root / "cli" / "__init__.py").write_text("")
    (root / "cli" / "__main__.py").write_text(ECHO_CLI)
    (root / "requirements.lock").write_text("# nothing\n")
    (root / "requirements-dev.lock").write_text("# nothing either\n")
    cache = tmp_path / "my cache"
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "GIGAFACTORY_CACHE": str(cache),
        "GIGAFACTORY_PYTHON": os.path.realpath(sys.executable),
    }
    return Checkout(root=root, cache=cache, environ=environ)


@pytest.fixture
def bare_path(tmp_path: Path) -> Path:
    """Return a folder for PATH that holds the shell's tools and git, but no Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found, tool
        (folder / tool).symlink_to(found)
    return folder


def test_first_run_makes_the_environment_and_the_second_uses_it(checkout: Checkout) -> None:
    """Standard output and the exit code are the command's; the steps are told on stderr, once."""
    code, out, err = checkout.run("3", "two words")
    assert (code, out) == (3, f"{checkout.root} 3 two words\n")
    assert "first run" in err
    made = checkout.environments()
    assert checkout.run("status") == (0, f"{checkout.root} status\n", "")
    assert checkout.environments() == made


def test_called_through_links_it_finds_its_checkout(checkout: Checkout, tmp_path: Path) -> None:
    """A link on PATH, relative or absolute, leads to the checkout it belongs to."""
    checkout.run()
    absolute = tmp_path / "gf-absolute"
    absolute.symlink_to(checkout.root / "gf")
    relative = tmp_path / "gf-relative"
    relative.symlink_to("gf-absolute")
    assert checkout.run(program=absolute)[1] == f"{checkout.root}\n"
    assert checkout.run(program=relative)[1] == f"{checkout.root}\n"


def test_concurrent_first_runs_share_one_environment(checkout: Checkout) -> None:
    """Whoever comes second waits, and uses what the first one made."""
    processes = [checkout.start(str(number)) for number in range(4)]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 1, 2, 3]
    assert sum("first run" in error for error in errors) == 1
    assert len(checkout.environments()) == 2  # the environment, and the file that names it


def test_changed_lock_makes_another_environment(checkout: Checkout) -> None:
    """Two checkouts at different versions never share packages."""
    checkout.run()
    (checkout.root / "requirements.lock").write_text("# another nothing\n")
    assert "first run" in checkout.run()[2]
    assert len([name for name in checkout.environments() if name.startswith("env-")]) == 2


def test_vanished_interpreter_makes_the_environment_anew(checkout: Checkout) -> None:
    """An upgrade that took the interpreter away is no reason to fail."""
    checkout.run()
    (environment,) = checkout.cache.glob("env-*")
    (environment / "bin" / "python").unlink()
    code, _, err = checkout.run()
    assert code == 0
    assert "first run" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_first_run_leaves_nothing(checkout: Checkout, tmp_path: Path, number: signal.Signals) -> None:
    """A first run that is stopped cleans up after itself, and the next one works."""
    real = checkout.environ["GIGAFACTORY_PYTHON"]
    slow = put_program(
        tmp_path / "slow-python", f'#!/bin/sh\ncase "$*" in "-m venv"*) sleep 2 ;; esac\nexec "{real}" "$@"\n'
    )
    checkout.environ["GIGAFACTORY_PYTHON"] = str(slow)
    process = checkout.start()
    wait_for_lock(checkout)
    os.killpg(process.pid, number)
    process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert checkout.environments() == []
    assert checkout.run()[0] == 0


def test_killed_first_run_is_taken_over(checkout: Checkout, tmp_path: Path) -> None:
    """After a SIGKILL nothing half made is used, and the lock of the dead process is no obstacle."""
    real = checkout.environ["GIGAFACTORY_PYTHON"]
    slow = put_program(tmp_path / "slow-python", f'#!/bin/sh\n[ "$1" != -m ] || sleep 2\nexec "{real}" "$@"\n')
    checkout.environ["GIGAFACTORY_PYTHON"] = str(slow)
    process = checkout.start()
    wait_for_lock(checkout)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=20)
    assert any(name.startswith(".lock") for name in checkout.environments())
    code, _, err = checkout.run()
    assert code == 0
    assert "first run" in err


def wait_for_lock(checkout: Checkout) -> None:
    """Wait until a build has begun (its lock names its process), for at most 10 s."""
    deadline = time.monotonic() + 10
    while not list(checkout.cache.glob(".lock-*/pid")):
        assert time.monotonic() < deadline, checkout.environments()
        time.sleep(0.02)


def test_test_command_adds_the_dev_lock_once(checkout: Checkout) -> None:
    """`gf test` installs the checkers under a marker of their own; other commands do not."""
    assert "checks and tests" not in checkout.run("status")[2]
    assert "checks and tests" in checkout.run("test")[2]
    assert checkout.run("test") == (0, f"{checkout.root} test\n", "")


def test_package_that_cannot_be_had_is_said_and_not_kept(checkout: Checkout) -> None:
    """A failed installation shows pip's words and the next step, and leaves no environment."""
    checkout.environ |= {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    checkout.environ.pop("PIP_FIND_LINKS", None)
    (checkout.root / "requirements.lock").write_text(f"nothing-like-it==1.0 --hash=sha256:{'0' * 64}\n")
    code, out, err = checkout.run()
    assert (code, out) == (69, "")
    assert "nothing-like-it" in err
    assert "run the same command again" in err
    assert checkout.environments() == []


def test_no_python_says_what_to_install(checkout: Checkout, bare_path: Path) -> None:
    """One sentence that names the package."""
    del checkout.environ["GIGAFACTORY_PYTHON"]
    checkout.environ["PATH"] = str(bare_path)
    code, out, err = checkout.run()
    assert (code, out) == (69, "")
    assert err.startswith("gf: needs Python 3.11 or newer")
    assert err.count("\n") == 1


def test_old_and_broken_pythons_are_passed_over(checkout: Checkout, bare_path: Path) -> None:
    """A `python3` that is too old, or a version manager's stub, does not hide a good one further down the list."""
    real = checkout.environ.pop("GIGAFACTORY_PYTHON")
    put_program(bare_path / "python3", "#!/bin/sh\nexit 1\n")
    put_program(bare_path / "python3.13", "#!/bin/sh\necho no such version >&2; exit 127\n")
    put_program(bare_path / "python3.12", f'#!/bin/sh\nexec "{real}" "$@"\n')
    checkout.environ["PATH"] = str(bare_path)
    assert checkout.run("status")[:2] == (0, f"{checkout.root} status\n")


def test_bad_override_is_refused(checkout: Checkout) -> None:
    """GIGAFACTORY_PYTHON means that interpreter and no other."""
    checkout.environ["GIGAFACTORY_PYTHON"] = "/nonexistent/python"
    code, _, err = checkout.run()
    assert code == 69
    assert "GIGAFACTORY_PYTHON=/nonexistent/python" in err


def test_no_git_says_what_to_install(checkout: Checkout, bare_path: Path) -> None:
    """One sentence that names the package."""
    (bare_path / "git").unlink()
    checkout.environ["PATH"] = str(bare_path)
    code, _, err = checkout.run()
    assert code == 69
    assert err.startswith("gf: needs git")


@pytest.mark.parametrize(
    "hidden",
    [
        pytest.param("own", id="its own pip is missing: the wheel of ensurepip serves"),
        pytest.param("own wheels", id="ensurepip too, as on Debian without python3-venv: another pip on PATH serves"),
    ],
)
def test_without_its_usual_pip_another_serves(checkout: Checkout, tmp_path: Path, hidden: str) -> None:
    """Distributions split pip and ensurepip off; whatever pip the machine has is used for our environment."""
    checkout.environ["GIGAFACTORY_PYTHON"] = str(python_without_pip(checkout, tmp_path, hidden.split()))
    checkout.environ["PATH"] = f"{Path(os.path.realpath(sys.executable)).parent}:{checkout.environ['PATH']}"
    if "wheels" in hidden and not shutil.which("pip3", path=checkout.environ["PATH"]):
        pytest.skip("this machine has no pip3 on PATH to fall back to")
    assert checkout.run("status")[:2] == (0, f"{checkout.root} status\n")


def test_without_any_pip_the_package_is_named(checkout: Checkout, bare_path: Path, tmp_path: Path) -> None:
    """With no pip anywhere the error says which package brings one."""
    checkout.environ["GIGAFACTORY_PYTHON"] = str(python_without_pip(checkout, tmp_path, ["own", "wheels"]))
    checkout.environ["PATH"] = str(bare_path)
    code, _, err = checkout.run()
    assert code == 69
    assert "apt install python3-venv" in err
    assert checkout.environments() == []


def python_without_pip(checkout: Checkout, folder: Path, hidden: list[str]) -> Path:
    """Return an interpreter whose answer to "which pip came with you" lacks the hidden kinds."""
    real = checkout.environ["GIGAFACTORY_PYTHON"]
    pattern = "|".join({"own": "__pip-runner__", "wheels": r"\.whl/pip"}[kind] for kind in hidden)
    return put_program(
        folder / "python-without-pip",
        f"""#!/bin/sh
case "$*" in
    *__pip-runner__*) "{real}" "$@" | /bin/grep -Ev '{pattern}' || : ;;
    *) exec "{real}" "$@" ;;
esac
""",
    )
