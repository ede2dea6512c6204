"""What the user wrote, in YAML and on the command line, before anything is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

__all__ = ["GROUPS", "configs", "contents", "given_in", "listed"]

#: The groups of options and what they describe.
GROUPS = {"data": "the data", "model": "the model and its guide", "fit": "learning"}


def listed(value: object) -> list[str]:
    """One name, a list of names, or a list as the command line writes it, as a list."""
    content = yaml.safe_load(value) if isinstance(value, str) else value
    return [content] if isinstance(content, str) else list(content or [])  # type: ignore[call-overload]


def configs(argv: Sequence[str]) -> list[str]:
    """The files that ``--config`` names."""
    files = [a.partition("=")[2] for a in argv if a.startswith("--config=")]
    return files + [b for a, b in pairwise(argv) if a == "--config"]


def contents(argv: Sequence[str]) -> list[dict[str, Any]]:
    """What those files hold.

    Raises:
        FileNotFoundError: if one is not there.
        ValueError: if one is no YAML of an experiment.
    """
    return [_content(Path(name)) for name in configs(argv)]


def _content(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"expected a YAML file at {file}; there is none")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"expected {file} to be YAML; {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"expected {file} to hold keys such as data and model; got {content!r}")
    for key, value in content.items():
        named = key == "model" and isinstance(value, str)
        if key in GROUPS and not (isinstance(value, dict) or named):
            raise ValueError(
                f"expected {key} in {file} to hold options and their values; got {value!r}"
            )
    return content


def given_in(argv: Sequence[str]) -> dict[str, Any]:
    """What the user wrote, in YAML and on the command line, by dotted key, unresolved."""
    given: dict[str, Any] = {}
    for content in contents(argv):
        for key, value in content.items():
            given[key] = value
            if isinstance(value, dict):
                given |= {f"{key}.{inner}": v for inner, v in value.items()}
    for option, value in zip(argv, [*argv[1:], ""], strict=False):
        key, equals, inline = option.partition("=")
        if key.startswith("--"):
            given[key[2:]] = inline if equals else value
    return given
