"""`host.inspect`: the tree of everything that lives, walked by path, as values, as lines or as JSON. Root side."""

from __future__ import annotations

from partitions.inspect.answers import Form, look, update, write_out
from partitions.inspect.host_tree import host_tree
from partitions.inspect.path import InspectError

__all__ = ["Form", "InspectError", "host_tree", "look", "update", "write_out"]
