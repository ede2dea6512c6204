"""YAML and JSON documents, read with limits on the size that a small text can expand to.

Only plain values are built: no tag or key of a document names code. Aliases, which make a YAML text
of a few hundred bytes stand for billions of values, count as often as they are used.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

__all__ = ["load_json", "load_yaml", "read_text"]

#: Largest text file, in bytes.
MAX_BYTES = 64 * 2**20
#: Limits of a YAML document: characters, nested levels, and values with all aliases expanded.
MAX_YAML_CHARACTERS, MAX_DEPTH, MAX_VALUES = 2**18, 50, 20_000


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        ValueError: if it is larger than 64 MiB, or not UTF-8.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"expected at most {MAX_BYTES} bytes; got more")
    return content.decode("utf-8")


def load_yaml(text: str) -> Any:
    """Return the plain value of a YAML document.

    Raises:
        yaml.YAMLError: if the text is not YAML.
        ValueError: if it exceeds a limit, or if a mapping has a key twice.
    """
    if len(text) > MAX_YAML_CHARACTERS:
        raise ValueError(f"expected at most {MAX_YAML_CHARACTERS} characters; got {len(text)}")
    try:
        return yaml.load(text, Loader=_Loader)
    except ValueError as error:  # also of a number or a date that Python cannot convert
        raise ValueError(str(error)) from None


def load_json(text: str) -> Any:
    """Return the value of a JSON document.

    Raises:
        ValueError: if the text is not JSON, is nested too deeply, or if an object has a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("expected fewer nested levels; got too many") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _check_unique([name for name, _ in pairs])
    return dict(pairs)


class _Loader(yaml.SafeLoader):
    """Safe loader that measures every node as soon as it is parsed, before any value is built."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = 0
        #: Number of values and depth of each finished node, with aliases expanded.
        self._measures: dict[yaml.Node, tuple[int, int]] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        is_alias = self.check_event(yaml.AliasEvent)
        line = self.peek_event().start_mark.line + 1
        self._level += 1
        _check_limits(0, self._level)  # before Python's own limit of recursion
        node = super().compose_node(parent, index)
        self._level -= 1
        if node is None or node in self._measures:
            return node
        if is_alias:
            raise ValueError(f"expected an alias of a finished value; line {line} contains itself")
        self._measures[node] = self._measure(node, line)
        return node

    def _measure(self, node: yaml.Node, line: int) -> tuple[int, int]:
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
            _check_unique([key.value for key, _ in node.value], f" below line {line}")
        measures = [self._measures[child] for child in children]
        size, depth = 1 + sum(s for s, _ in measures), 1 + max((d for _, d in measures), default=0)
        _check_limits(size, depth)
        return size, depth


def _check_limits(size: int, depth: int) -> None:
    if size > MAX_VALUES:
        raise ValueError(f"expected at most {MAX_VALUES} values, aliases expanded; got {size}")
    if depth > MAX_DEPTH:
        raise ValueError(f"expected at most {MAX_DEPTH} nested levels; got more")


def _check_unique(names: list[Any], where: str = "") -> None:
    known: set[str] = set()
    for name in names:
        if str(name) in known:
            raise ValueError(f"expected every key once; got {str(name)!r} twice{where}")
        known.add(str(name))
