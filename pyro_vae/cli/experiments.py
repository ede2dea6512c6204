"""The command ``experiment``: the scripts of the repository's folder ``experiments``."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..core.validation import did_you_mean

__all__ = ["experiment"]

#: The script that ``experiment --table`` stands for.
_VERDICTS = "verdicts"


def experiment(words: list[str]) -> int:
    """run a paper's table or figure: `experiment NAME …`; ours and theirs: `experiment --table`"""
    folder = _folder()
    scripts = _scripts(folder)
    if not words or words[0] in ("-h", "--help"):
        print("usage: pyro-vae experiment NAME …   (pyro-vae experiment NAME --help: its options)")
        print("       pyro-vae experiment --table   (ours and the papers')")
        print(f"\nNAME is one of {', '.join(scripts)}")
        return 0
    name, *rest = [_VERDICTS, *words[1:]] if words[0] == "--table" else words
    if name not in scripts:
        raise ValueError(
            f"expected the name of an experiment, {', '.join(scripts)}, or --table; got "
            f"{name!r}{did_you_mean(name, scripts)}"
        )
    with _called(folder.parent, [name, *rest]):
        try:
            runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


@contextmanager
def _called(folder: Path, words: list[str]) -> Iterator[None]:
    """As by ``python -m experiments.NAME …`` in that folder, whatever was imported before."""
    module = f"experiments.{words[0]}"
    before = sys.path[:], sys.argv, sys.modules.pop(module, None)
    sys.path.insert(0, str(folder))
    sys.argv = words
    try:
        yield
    finally:
        sys.path[:], sys.argv, imported = before
        if imported is not None:
            sys.modules[module] = imported


def _folder() -> Path:
    """The folder ``experiments``: below the current one, or wherever Python finds it.

    Raises:
        ValueError: if there is none of this project.
    """
    spec = importlib.util.find_spec("experiments")
    known = (spec and spec.submodule_search_locations) or ()
    for folder in (Path.cwd() / "experiments", *map(Path, known)):
        if (folder / f"{_VERDICTS}.py").is_file():
            return folder
    raise ValueError(
        "expected the folder experiments, which is no part of the installed package; found none in "
        f"{Path.cwd()}: call this from the folder of the repository"
    )


def _scripts(folder: Path) -> list[str]:
    """The modules there that can be run."""
    return sorted(
        file.stem
        for file in folder.glob("*.py")
        if '\nif __name__ == "__main__":' in file.read_text(encoding="utf-8")
    )
