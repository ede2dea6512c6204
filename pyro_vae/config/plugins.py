"""Plugins: user modules whose classes can be used in a configuration.

A plugin is code. It is imported only if the call names it (``--plugin``, or ``plugin=`` in
Python). A YAML file, such as the ``config.yaml`` of a run, states which plugins it uses; that
alone imports nothing.
"""

from __future__ import annotations

import importlib.util
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ..core.links import see
from ..core.validation import as_path
from .classes import allow_imports

__all__ = ["PluginError", "find_plugin", "load_plugins", "plugin_path"]


class PluginError(ValueError):
    """Raised if a plugin is not named in this call, or if it cannot be imported."""


def load_plugins(names: Sequence[str], used: Sequence[str] = (), source: str = "") -> None:
    """Import the named modules and allow their classes in a configuration.

    A name is a file, or a module in the current folder or among the installed ones. A run stores
    the path of the file.

    Arguments:
        names: the plugins that this call names.
        used: the plugins that the YAML files use.
        source: the YAML files, for the message.

    Raises:
        PluginError: if ``names`` lacks one of ``used``, or if a module cannot be imported.
    """
    modules = {_module_name(name) for name in names}
    missing = [name for name in used if _module_name(name) not in modules]
    if missing:
        option = shlex.join(["--plugin", missing[0] if len(used) == 1 else f"[{', '.join(used)}]"])
        raise PluginError(
            f"expected the plugin {missing[0]!r}, which {source} uses, to be named in this call, "
            f"because its code is executed; got no such --plugin: if you trust the code, add "
            f"{option} ({see('SECURITY.md#not-trusted')})"
        )
    allow_imports([_import_plugin(name) for name in names])


def find_plugin(name: str) -> Path | None:
    """Return the absolute path of a plugin's file or package; ``None`` for an installed module."""
    path = as_path(name)
    is_path = path.suffix == ".py" or len(path.parts) > 1
    candidates = [path] if is_path else [Path(f"{name}.py"), path]
    return next((p.resolve() for p in candidates if _is_module(p)), None)


def _import_plugin(name: str) -> str:
    """Import a plugin by module name or file and return the module name."""
    module, path = _module_name(name), find_plugin(name)
    file = path / "__init__.py" if path and path.is_dir() else path
    try:
        if file is None:
            importlib.import_module(name)
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
            raise PluginError(f"could not import plugin {file}: {error}") from error
        raise PluginError(
            f"expected plugin {name!r} to be a Python file, or a module in the current folder or "
            f"installed; it could not be imported: {error}"
        ) from error
    return module


def _is_module(path: Path) -> bool:
    return (path.suffix == ".py" and path.is_file()) or (path / "__init__.py").is_file()


def _module_name(plugin: str) -> str:
    return Path(plugin).stem if plugin.endswith(".py") else Path(plugin).name


def plugin_path(plugin: str) -> str:
    """Return the path of a plugin's file, or the module name if the plugin is installed."""
    module = _module_name(plugin)
    file = Path(getattr(sys.modules.get(module), "__file__", None) or module)
    if not file.is_absolute() or "site-packages" in file.parts:
        return module
    return str(file.parent if file.name == "__init__.py" else file)
