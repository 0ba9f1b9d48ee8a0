"""Recipes: `load` a file into frozen dataclasses, `check` them, and write them back (`to_dict`, `to_yaml`)."""

from qoqmed.config.check import check, nodes
from qoqmed.config.deep import PROVIDED
from qoqmed.config.dump import to_dict, to_yaml
from qoqmed.config.load import load
from qoqmed.config.overrides import parse
from qoqmed.config.schema import Node, Recipe

__all__ = ["PROVIDED", "Node", "Recipe", "check", "load", "nodes", "parse", "to_dict", "to_yaml"]
