"""The product's version, in one place that needs no installed package. *Pure.*

`pyproject.toml` carries the same number; a test keeps them equal.
"""

from __future__ import annotations

VERSION = "0.1.0"
