"""Plugins: user modules whose classes can be used in a configuration."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from .classes import allow_imports

__all__ = ["load_plugins", "plugin_path"]


def load_plugins(names: Sequence[str], config_files: Sequence[str]) -> None:
    """Import modules and allow their classes in a configuration.

    They are searched next to the YAML files, in the current folder and among the installed
    modules. A run stores the path of the file, so that it can be opened from another folder.

    Raises:
        ValueError: if a module cannot be imported.
    """
    folders = [*(Path(f).resolve().parent for f in config_files), Path.cwd()]
    allow_imports([_import_plugin(name, folders) for name in names])


def _import_plugin(name: str, folders: list[Path]) -> str:
    """Import a plugin by module name or file and return the module name."""
    module = Path(name).stem if name.endswith(".py") else Path(name).name
    candidates = [Path(name), *(f / file for f in folders for file in (f"{module}.py", module))]
    path = next((p.resolve() for p in candidates if _is_module(p)), None)
    file = path / "__init__.py" if path and path.is_dir() else path
    try:
        if file is None:
            importlib.import_module(module)
        elif getattr(sys.modules.get(module), "__file__", None) != str(file):
            # the plugin may import modules from its own folder
            sys.path.append(str(file.parent if file is path else file.parent.parent))
            spec = importlib.util.spec_from_file_location(module, file)
            assert spec is not None and spec.loader is not None
            sys.modules[module] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[module])
    except Exception as error:
        if file is not None:
            sys.modules.pop(module, None)
            raise ValueError(f"could not import plugin {file}: {error}") from error
        raise ValueError(
            f"expected plugin {name!r} to be a Python module next to the YAML file, in the current "
            f"folder or installed; it could not be imported: {error}"
        ) from error
    return module


def _is_module(path: Path) -> bool:
    return (path.suffix == ".py" and path.is_file()) or (path / "__init__.py").is_file()


def plugin_path(plugin: str) -> str:
    """Return the path of a plugin's file, or the module name if the plugin is installed."""
    module = Path(plugin).stem if plugin.endswith(".py") else Path(plugin).name
    file = Path(getattr(sys.modules.get(module), "__file__", None) or module)
    if not file.is_absolute() or "site-packages" in file.parts:
        return module
    return str(file.parent if file.name == "__init__.py" else file)
