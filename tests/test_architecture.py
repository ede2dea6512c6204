"""The import graph of the package, read from its source: layers, cycles, private names."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "pyro_vae"
#: The packages from the lowest layer to the highest: each imports only from those before it.
#: Packages of one layer are independent of each other.
LAYERS = (
    {"core"},
    {"compiler"},
    {"data"},
    {"distributions", "networks"},
    {"likelihoods", "priors", "posteriors"},
    {"models"},
    {"programs"},
    {"evaluation"},
    {"queries"},
    {"learning"},
    {"interop"},
    {"config"},
    {"runs"},
    {"report"},
    {"cli"},
)


class Import(NamedTuple):
    """One imported name: which module imports what from where."""

    importer: str
    module: str
    name: str | None
    line: int


def modules(root: Path, package: str) -> dict[str, Path]:
    """The modules of a package by their dotted names."""
    found = {}
    for file in sorted((root / package).rglob("*.py")):
        name = ".".join(file.relative_to(root).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = file
    return found


def imports(known: Mapping[str, Path], package: str) -> Iterator[Import]:
    """Every import of the package's own names, in functions and under ``TYPE_CHECKING`` too."""
    for importer, file in known.items():
        parents = importer.split(".") if file.name == "__init__.py" else importer.split(".")[:-1]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] == package:
                        yield Import(importer, alias.name, None, node.lineno)
            elif isinstance(node, ast.ImportFrom):
                base = parents[: len(parents) - node.level + 1] if node.level else []
                module = ".".join([*base, *([node.module] if node.module else [])])
                if module.split(".")[0] != package:
                    continue
                for alias in node.names:
                    submodule = f"{module}.{alias.name}"
                    if submodule in known:
                        yield Import(importer, submodule, None, node.lineno)
                    else:
                        yield Import(importer, module, alias.name, node.lineno)


def cycle(edges: Iterator[Import] | list[Import]) -> list[str]:
    """The modules of an import cycle; empty if there is none."""
    graph: dict[str, set[str]] = {}
    for edge in edges:
        if edge.module != edge.importer:
            graph.setdefault(edge.importer, set()).add(edge.module)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def layer(module: str) -> int:
    """The layer of a module; the package itself and ``__main__`` are above all layers."""
    _, *rest = module.split(".")
    for level, packages in enumerate(LAYERS):
        if rest and rest[0] in packages:
            return level
    assert not rest or rest[0] == "__main__", f"{module} is in no layer: add its package to LAYERS"
    return len(LAYERS)


def subpackage(module: str) -> str:
    return ".".join(module.split(".")[:2])


MODULES = modules(ROOT, PACKAGE)
IMPORTS = list(imports(MODULES, PACKAGE))


def test_no_import_cycle():
    assert cycle(IMPORTS) == []


def test_imports_run_downwards():
    upwards = [
        edge
        for edge in IMPORTS
        if layer(edge.module) > layer(edge.importer)
        or (
            layer(edge.module) == layer(edge.importer)
            and subpackage(edge.module) != subpackage(edge.importer)
        )
    ]
    assert upwards == []


def test_no_private_name_of_another_package():
    def private(edge: Import) -> bool:
        path = [*edge.module.split("."), *([edge.name] if edge.name else [])]
        return any(part.startswith("_") and not part.startswith("__") for part in path)

    taken = [e for e in IMPORTS if private(e) and subpackage(e.module) != subpackage(e.importer)]
    assert taken == []


def test_no_private_attribute_of_another_module():
    """``module._name`` is as private as ``from module import _name``."""
    found = []
    for importer, file in MODULES.items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        bound = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.level
            for alias in node.names
        }
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in bound
                and node.value.id.islower()
                and node.attr.startswith("_")
                and not node.attr.startswith("__")
            ):
                found.append((importer, node.lineno, f"{node.value.id}.{node.attr}"))
    assert found == []


def test_no_private_module():
    private = [m for m in MODULES if any(p.startswith("_") for p in m.split(".")[1:])]
    assert private == [f"{PACKAGE}.__main__"]


def test_no_module_is_named_after_what_it_defines():
    """``package.name`` would be the module or the function, whichever was imported last."""
    clashes = []
    for module, file in MODULES.items():
        own = module.rsplit(".", 1)[-1]
        tree = ast.parse(file.read_text(encoding="utf-8"))
        exported = {
            alias.asname or alias.name
            for n in tree.body
            if isinstance(n, ast.ImportFrom)
            for alias in n.names
        }
        defined = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        if own in defined or (file.name == "__init__.py" and own in exported):
            clashes.append(module)
        if file.name == "__init__.py":
            children = {m.rsplit(".", 1)[-1] for m in MODULES if m.rpartition(".")[0] == module}
            shadowed = {
                alias.asname or alias.name
                for n in tree.body
                if isinstance(n, ast.ImportFrom)
                for alias in n.names
                if (alias.asname or alias.name) in children
                and not imports_the_module(n, alias, children)
            }
            clashes += [f"{module}.{name}" for name in sorted(shadowed)]
    assert clashes == []


def imports_the_module(node: ast.ImportFrom, alias: ast.alias, children: set[str]) -> bool:
    """Whether ``from . import name`` names the submodule itself."""
    return node.level == 1 and node.module is None and alias.name in children


def test_entries_of_the_package():
    entries = {p.name for p in (ROOT / PACKAGE).iterdir() if p.name != "__pycache__"}
    assert len(entries) <= 21, sorted(entries)


def test_experiments_have_no_cycle():
    known = modules(ROOT, "experiments")
    assert cycle(list(imports(known, "experiments"))) == []


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a": "from . import b", "b": "import os"}, []),
        (
            {"a": "from . import b", "b": "from .c import x", "c": "from .a import y"},
            ["a", "b", "c"],
        ),
        ({"a": "def f():\n    from .b import x", "b": "import pkg.a"}, ["a", "b"]),
        (
            {
                "a": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .b import X",
                "b": "from .a import Y",
            },
            ["a", "b"],
        ),
    ],
)
def test_the_graph_finds_cycles(tmp_path, files, expected):
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").write_text("")
    for name, text in files.items():
        (tmp_path / "pkg" / f"{name}.py").write_text(text)
    found = cycle(list(imports(modules(tmp_path, "pkg"), "pkg")))
    assert sorted(set(found)) == [f"pkg.{name}" for name in expected]
