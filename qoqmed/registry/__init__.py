"""Plugins, found through the entry points `qoqmed.<group>` of every installed distribution, ours included.

`available` and `find` read metadata only. `load`, `bind`, `make` and `describe` import the one plugin that is named.
"""

from qoqmed.registry.annotations import fits, spell
from qoqmed.registry.binding import Argument, Description, bind, describe, make
from qoqmed.registry.discovery import PluginInfo, available, find, load, unreadable

__all__ = [
    "Argument",
    "Description",
    "PluginInfo",
    "available",
    "bind",
    "describe",
    "find",
    "fits",
    "load",
    "make",
    "spell",
    "unreadable",
]
