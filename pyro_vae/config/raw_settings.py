"""Raw user settings from YAML and argv, before they are resolved."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

__all__ = ["GROUPS", "as_list", "collect_settings", "config_files", "read_configs"]

#: The option groups and their titles.
GROUPS = {"data": "data", "model": "model and guide", "fit": "training"}


def as_list(value: object) -> list[str]:
    """Return a name, a list of names or a YAML list in a string as a list."""
    content = yaml.safe_load(value) if isinstance(value, str) else value
    return [content] if isinstance(content, str) else list(content or [])  # type: ignore[call-overload]


def config_files(argv: Sequence[str]) -> list[str]:
    """Return the values of ``--config``."""
    files = [a.partition("=")[2] for a in argv if a.startswith("--config=")]
    return files + [b for a, b in pairwise(argv) if a == "--config"]


def read_configs(argv: Sequence[str]) -> list[dict[str, Any]]:
    """Return the contents of the files given by ``--config``.

    Raises:
        FileNotFoundError: if a file does not exist.
        ValueError: if a file is not the YAML of an experiment.
    """
    return [_read_config(Path(name)) for name in config_files(argv)]


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"expected a YAML file at {file}; the file does not exist")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"expected {file} to be YAML; {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"expected {file} to have keys such as data and model; got {content!r}")
    for key, value in content.items():
        is_model_name = key == "model" and isinstance(value, str)
        if key in GROUPS and not (isinstance(value, dict) or is_model_name):
            raise ValueError(f"expected {key} in {file} to be a mapping of options; got {value!r}")
    return content


def collect_settings(argv: Sequence[str]) -> dict[str, Any]:
    """Return the unresolved settings from YAML and the command line by dotted key."""
    settings: dict[str, Any] = {}
    for content in read_configs(argv):
        for key, value in content.items():
            settings[key] = value
            if isinstance(value, dict):
                settings |= {f"{key}.{inner}": v for inner, v in value.items()}
    for option, value in zip(argv, [*argv[1:], ""], strict=False):
        key, equals, inline = option.partition("=")
        if key.startswith("--"):
            settings[key[2:]] = inline if equals else value
    return settings
