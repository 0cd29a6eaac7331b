"""Names for factories that nobody named. *Pure.*"""

from __future__ import annotations

import hashlib
from typing import Final

ADJECTIVES: Final = (
    *("amber", "brisk", "calm", "clever", "copper", "eager", "early", "gentle", "golden", "granite", "hardy"),
    *("honest", "humble", "jolly", "keen", "lively", "lucky", "mellow", "merry", "nimble", "patient", "plucky"),
    *("quick", "quiet", "rapid", "ready", "robust", "rustic", "silver", "sturdy", "swift", "tidy", "tireless"),
    *("trusty", "vivid", "warm", "wise", "witty", "zesty"),
)
NOUNS: Final = (
    *("anvil", "badger", "beaver", "bellows", "bobbin", "castor", "chisel", "crane", "dynamo", "falcon", "forge"),
    *("furnace", "gasket", "girder", "hammer", "heron", "kiln", "lathe", "lever", "loom", "magpie", "mallet"),
    *("marten", "mill", "otter", "piston", "planer", "pulley", "raven", "rivet", "rotor", "sprocket", "stork"),
    *("tiller", "trowel", "turbine", "wagon", "weaver", "wheel", "wren"),
)


def memorable_name(seed: str) -> str:
    """Return an adjective and a noun; the same seed (host and home, say) gives the same name."""
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big")
    return f"{ADJECTIVES[number % len(ADJECTIVES)]}-{NOUNS[number // len(ADJECTIVES) % len(NOUNS)]}"
