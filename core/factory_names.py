"""Memorable names for factories: an adjective and a noun. *Pure*: the seed is an argument; standard library only."""

from __future__ import annotations

import hashlib
from typing import Final

ADJECTIVES: Final = (
    "amber ancient bold brave bright brisk calm candid clever cobalt copper coral crimson daring deft eager early "
    "fabled fair gentle gilded golden grand granite hardy honest humble indigo ivory jolly keen kind lively lucid "
    "lucky mellow merry mighty nimble noble olive patient plucky polar proud quick quiet rapid ready robust rosy "
    "royal rustic sage scarlet silent silver sleek solar steady sturdy sunny swift tidy tireless trusty violet "
    "vivid warm wise witty zesty"
)
NOUNS: Final = (
    "anvil badger beaver bellows bison bobbin bobcat camel castor chisel condor crane dingo dolphin dynamo eagle "
    "egret elk falcon ferret finch forge fox furnace gasket gecko gibbon girder goose hammer hare hawk heron "
    "hornet husky ibex ibis jackal jaguar kestrel kiln koala lark lathe lemur leopard lever llama loom lynx magpie "
    "mallet marlin marten mill mole moose newt ocelot orca osprey otter owl panda pelican piston planer puffin "
    "pulley puma quail rabbit raven rivet robin rotor salmon seal shrew sparrow sprocket stork swan tapir tiger "
    "tiller toucan trout trowel turbine turtle wagon walrus weaver weasel wheel wolf wombat wren yak zebra"
)


def memorable_name(seed: str) -> str:
    """Return an adjective and a noun, such as `brisk-otter`; the same seed gives the same name."""
    adjectives, nouns = ADJECTIVES.split(), NOUNS.split()
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big")
    return f"{adjectives[number % len(adjectives)]}-{nouns[number // len(adjectives) % len(nouns)]}"
