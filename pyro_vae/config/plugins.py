"""The user's own modules, whose classes may be named."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from .raw_settings import configs, given_in, listed

__all__ = ["load_plugins", "located"]


def load_plugins(argv: Sequence[str]) -> list[str]:
    """Imports the modules that ``--plugin`` or the YAML file's ``plugin`` names.

    They are looked for beside the YAML file, in the current folder and among the installed
    ones. A run records the file it found, so that it is found again from another folder.

    Returns:
        The names of the modules.

    Raises:
        ValueError: if one cannot be imported.
    """
    folders = [*(Path(f).resolve().parent for f in configs(argv)), Path.cwd()]
    return [_import_plugin(name, folders) for name in listed(given_in(argv).get("plugin", []))]


def _import_plugin(name: str, folders: list[Path]) -> str:
    """Imports a plugin given by its module's name or file, and returns the module's name."""
    module = Path(name).stem if name.endswith(".py") else Path(name).name
    places = [Path(name), *(f / file for f in folders for file in (f"{module}.py", module))]
    found = next((p.resolve() for p in places if _is_module(p)), None)
    file = found / "__init__.py" if found and found.is_dir() else found
    try:
        if file is None:
            importlib.import_module(module)
        elif getattr(sys.modules.get(module), "__file__", None) != str(file):
            # what the plugin itself imports may lie beside it
            sys.path.append(str(file.parent if file is found else file.parent.parent))
            spec = importlib.util.spec_from_file_location(module, file)
            assert spec is not None and spec.loader is not None
            sys.modules[module] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[module])
    except Exception as error:
        if file is not None:
            sys.modules.pop(module, None)
            raise ValueError(f"could not import plugin {file}: {error}") from error
        raise ValueError(
            f"expected plugin {name!r} to be a Python module beside the YAML file, in the current "
            f"folder or installed; got none: {error}"
        ) from error
    return module


def _is_module(path: Path) -> bool:
    return (path.suffix == ".py" and path.is_file()) or (path / "__init__.py").is_file()


def located(plugin: str) -> str:
    """The file of a plugin that lies beside somebody's YAML; the name of an installed one."""
    module = Path(plugin).stem if plugin.endswith(".py") else Path(plugin).name
    file = Path(getattr(sys.modules.get(module), "__file__", None) or module)
    if not file.is_absolute() or "site-packages" in file.parts:
        return module
    return str(file.parent if file.name == "__init__.py" else file)
