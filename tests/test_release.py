"""The declarations of a release: dependencies, pinned versions, packed files, version numbers."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "pyro_vae"
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = SETTINGS["project"]
CORE = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRAS = {
    name: [Requirement(text) for text in texts]
    for name, texts in PROJECT["optional-dependencies"].items()
}
#: Distributions whose packages have another name; the others need not be installed here.
DISTRIBUTIONS = {name: found[0] for name, found in packages_distributions().items()}


def names(requirements):
    return {canonicalize_name(r.name) for r in requirements}


def imports(file):
    """Yield the packages that a file imports, and whether it does so when it is imported."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    lazy = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.If | ast.Try)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            modules = [node.module]
        for module in modules:
            yield module.split(".")[0], id(node) not in lazy


def test_every_imported_package_is_declared():
    declared = names(CORE) | {n for requirements in EXTRAS.values() for n in names(requirements)}
    missing = set()
    for file in SOURCE.rglob("*.py"):
        for package, is_needed in imports(file):
            if package in sys.stdlib_module_names or package == "pyro_vae":
                continue
            name = canonicalize_name(DISTRIBUTIONS.get(package, package))
            if name not in (names(CORE) if is_needed else declared):
                missing.add((str(file.relative_to(ROOT)), package))
    assert missing == set()


def test_named_extras_exist():
    """Messages and documents name extras of ``pyproject.toml`` only."""
    documents = [*SOURCE.rglob("*.py"), *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    found = {
        extra
        for file in documents
        for text in re.findall(r"(?:pyro-vae|'\.)\[([\w,-]+)\]", file.read_text(encoding="utf-8"))
        for extra in text.split(",")
    }
    assert {"own", "zuko", "data"} <= found <= EXTRAS.keys()


def test_pinned_versions_are_allowed():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    # extras that no environment of this repository installs
    names_of_extras = ("data", "own", "grid", "hub", "sweep", "zuko", "dev", "docs", "bench")
    checked = [EXTRAS[name] for name in names_of_extras]
    requirements = [r for part in [CORE, *checked] for r in part]
    requirements = [r for r in requirements if r.name != PROJECT["name"]]
    unpinned = {r.name for r in requirements if canonicalize_name(r.name) not in pins}
    assert unpinned == set()
    excluded = [
        f"{requirement}: {pins[canonicalize_name(requirement.name)]}"
        for requirement in requirements
        if (requirement.marker is None or requirement.marker.evaluate())
        and not requirement.specifier.contains(pins[canonicalize_name(requirement.name)])
    ]
    assert excluded == []


def test_every_file_is_packed():
    patterns = SETTINGS["tool"]["setuptools"]["package-data"]["pyro_vae"]
    packed = {file for pattern in patterns for file in SOURCE.glob(pattern)}
    others = {f for f in SOURCE.rglob("*") if f.is_file() and f.suffix not in (".py", ".pyc")}
    assert packed == others and SOURCE / "py.typed" in packed
    # setuptools finds packages by this file
    assert all((f.parent / "__init__.py").exists() for f in SOURCE.rglob("*.py"))


def test_versions_agree():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    headings = re.findall(
        r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert cited["version"] == headings[0] == PROJECT["version"]
    assert cited["license"] == PROJECT["license"]
