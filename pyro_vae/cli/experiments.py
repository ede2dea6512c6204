"""The command ``experiment``, which runs the scripts in the repository folder ``experiments``."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..core.validation import did_you_mean

__all__ = ["experiment"]

#: The script run by ``experiment --table``.
_VERDICTS = "verdicts"


def experiment(args: list[str]) -> int:
    """Reproduce a table or figure of a paper, or compare all results with the papers (--table)."""
    folder = _experiments_folder()
    names = _script_names(folder)
    if not args or args[0] in ("-h", "--help"):
        print(
            "usage: pyro-vae experiment NAME ...   (pyro-vae experiment NAME --help: its options)"
        )
        print("       pyro-vae experiment --table    (all results next to those of the papers)")
        print(f"\nNAME is one of {', '.join(names)}")
        return 0
    name, *script_args = [_VERDICTS, *args[1:]] if args[0] == "--table" else args
    if name not in names:
        raise ValueError(
            f"expected the name of an experiment, {', '.join(names)}, or --table; got "
            f"{name!r}{did_you_mean(name, names)}"
        )
    with _script_environment(folder.parent, [name, *script_args]):
        try:
            runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
        except SystemExit as exit_:
            return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    return 0


@contextmanager
def _script_environment(folder: Path, args: list[str]) -> Iterator[None]:
    """Set up ``sys`` as for ``python -m experiments.NAME …`` run in ``folder``."""
    module = f"experiments.{args[0]}"
    before = sys.path[:], sys.argv, sys.modules.pop(module, None)
    sys.path.insert(0, str(folder))
    sys.argv = args
    try:
        yield
    finally:
        sys.path[:], sys.argv, imported = before
        if imported is not None:
            sys.modules[module] = imported


def _experiments_folder() -> Path:
    """Return the folder ``experiments`` in the current folder or on Python's path.

    Raises:
        ValueError: if it is not found.
    """
    spec = importlib.util.find_spec("experiments")
    locations = (spec and spec.submodule_search_locations) or ()
    for folder in (Path.cwd() / "experiments", *map(Path, locations)):
        if (folder / f"{_VERDICTS}.py").is_file():
            return folder
    raise ValueError(
        f"expected the folder experiments, which is not installed with the package; found none in "
        f"{Path.cwd()}: run this command from a clone of the repository"
    )


def _script_names(folder: Path) -> list[str]:
    """Return the names of the modules in ``folder`` that can be run as scripts."""
    return sorted(
        file.stem
        for file in folder.glob("*.py")
        if '\nif __name__ == "__main__":' in file.read_text(encoding="utf-8")
    )
