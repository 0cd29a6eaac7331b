"""Where settings come from: the process environment and `settings.yaml`. Does I/O: reads both.

The one place that looks at `os.environ` for settings; everything else is handed a `Settings`. It lies in `store`
because the API and the workers both need it and may not import each other.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import yaml

from core.errors import InvalidInput
from core.settings import PREFIX, Settings, load_settings

ROOT: Final = Path(__file__).resolve().parent.parent
"""Directory of the application's packages: the checkout, the image's /app, or site-packages."""

FILE_NAME: Final = "settings.yaml"


def default_home(environ: Mapping[str, str] | None = None) -> Path:
    """Return the home that an environment (default: this process's) names, absolute; it may not exist yet."""
    named = (os.environ if environ is None else environ).get(PREFIX + "HOME")
    return Path(named).expanduser().resolve() if named else Path.home() / ".gigafactory"


def read_settings(home: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings of the stack in `home` (default: the one that the environment names).

    Raises:
        InvalidInput: every unknown name and bad value, all at once; or where the file is no YAML.

    """
    environment = dict(os.environ if environ is None else environ)
    home = home.expanduser().resolve() if home is not None else default_home(environment)
    environment[PREFIX + "HOME"] = str(home)
    try:
        text = (home / FILE_NAME).read_text(encoding="utf-8")
    except FileNotFoundError:
        text = None
    try:
        return load_settings(environment, text, default_home=home)
    except yaml.YAMLError as error:
        raise InvalidInput(f"{home / FILE_NAME} is not valid YAML: {error}", hint="mend or remove the file") from None
