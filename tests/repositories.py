"""Real repositories for the tests of the flesh on the machine."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Checkout:
    """A working tree (or bare repository) and the commands a user would type in it."""

    path: Path

    def git(self, *arguments: str, stdin: str | None = None) -> str:
        """Run git there as a user would and return what it said."""
        done = subprocess.run(
            ["git", *arguments], cwd=self.path, check=True, capture_output=True, text=True, input=stdin
        )
        return done.stdout.strip()

    def write(self, name: str, text: str) -> None:
        """Write a file."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def commit(self, message: str = "change", **files: str) -> str:
        """Write files (`a_txt` is `a.txt`), commit everything, return the commit."""
        for name, text in files.items():
            self.write(name.replace("_", "."), text)
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")

    def ref(self, name: str) -> str:
        """Return what a ref holds; empty when there is none."""
        return self.git("for-each-ref", "--format=%(objectname)", name)


@pytest.fixture(autouse=True)
def own_git_configuration(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests away from the git configuration of whoever runs them."""
    home = tmp_path_factory.mktemp("home")
    (home / ".gitconfig").write_text(
        "[user]\n\tname = Ada\n\temail = ada@example.org\n[init]\n\tdefaultBranch = main\n"
    )
    monkeypatch.setenv("HOME", str(home))
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def remote(tmp_path: Path) -> Checkout:
    """A bare repository with one commit on `main`, as a server would hold it."""
    bare = tmp_path / "remote.git"
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(bare)], check=True)
    seed = Checkout(tmp_path / "seed")
    subprocess.run(["git", "init", "-q", "-b", "main", str(seed.path)], check=True)
    seed.commit("Begin", README_md="hello\n", keep_txt="one\ntwo\nthree\n")
    seed.git("push", "-q", str(bare), "main")
    return Checkout(bare)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A user's own working tree with one commit on `main` and no remote."""
    tree = Checkout(tmp_path / "project")
    subprocess.run(["git", "init", "-q", "-b", "main", str(tree.path)], check=True)
    tree.commit("Begin", README_md="hello\n")
    return tree
