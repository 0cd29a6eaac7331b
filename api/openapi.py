"""Writes the OpenAPI document into the reference: `python -P -m api.openapi`. *Does I/O: a file.*"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from api.app import bare_app

PLACE: Final = Path(__file__).resolve().parent.parent / "docs" / "reference" / "openapi.json"


def openapi_text() -> str:
    """Return the OpenAPI document of this version as text."""
    return json.dumps(bare_app().openapi(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PLACE.write_text(openapi_text(), encoding="utf-8")
