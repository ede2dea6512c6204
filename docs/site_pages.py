"""Sphinx extension: pages generated from the code, and references to public names.

Before the build it writes to ``docs/generated/``: the API from the packages' ``__all__``, the
command line from its parsers, the configuration from the options of ``fit`` and of the components,
and copies of the repository's own documents. After the build it writes ``llms.txt``.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import os
import re
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_origin

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

import pyro_vae
from pyro_vae import cli
from pyro_vae.config import catalogue
from pyro_vae.config.classes import class_types, component_names
from pyro_vae.config.experiment import EXPERIMENT_OPTIONS
from pyro_vae.config.signatures import REQUIRED, Option, literal_choices, union_members

ROOT = Path(__file__).parents[1]
GENERATED = ROOT / "docs" / "generated"
#: Documents of the repository that are pages of the site, by their names there.
DOCUMENTS = {
    "CONTRIBUTING.md": "contributing",
    "SECURITY.md": "security",
    "CHANGELOG.md": "changelog",
    "examples": "examples",
}
#: Packages with a page of the API, in this order, and their titles. A name that several packages
#: export is documented on the first page that has it.
PACKAGES = {
    "pyro_vae": "Top level",
    "pyro_vae.data": "Data",
    "pyro_vae.models": "Programs",
    "pyro_vae.models.inference": "Inference of hierarchical programs",
    "pyro_vae.priors": "Priors",
    "pyro_vae.likelihoods": "Likelihoods",
    "pyro_vae.posteriors": "Posteriors",
    "pyro_vae.networks": "Networks",
    "pyro_vae.learning": "Training",
    "pyro_vae.learning.objectives": "Objectives",
    "pyro_vae.learning.trackers": "Trackers",
    "pyro_vae.evaluation": "Evaluation",
    "pyro_vae.queries": "Queries",
    "pyro_vae.interop": "Models of other code",
    "pyro_vae.runs": "Runs",
    "pyro_vae.core.distributed": "Several processes",
}


def public_names(package: str) -> list[str]:
    """Return the names that a package exports, without modules."""
    module = importlib.import_module(package)
    # the top level has no __all__: its docstring lists its exports
    words = {*re.findall(r"\w+", module.__doc__ or "")}
    names = getattr(module, "__all__", None) or [n for n in dir(module) if n in words]
    return [n for n in names if not inspect.ismodule(getattr(module, n))]


def documented_names() -> dict[str, list[str]]:
    """Return the names that are documented on the page of each package, each object once."""
    seen: set[int] = set()
    pages: dict[str, list[str]] = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        pages[package] = []
        for name in public_names(package):
            value = getattr(module, name)
            if id(value) not in seen:
                seen.add(id(value))
                pages[package].append(name)
    return pages


def write_api() -> None:
    """Write a page for each package, and their index."""
    pages = documented_names()
    index = ["API", "===", "", ".. toctree::", "   :maxdepth: 1", ""]
    for package, title in PACKAGES.items():
        module = importlib.import_module(package)
        heading = f"{title}: ``{shown_name(package)}``"
        lines = [heading, "=" * len(heading), "", f".. py:module:: {package}", ""]
        # the docstring of the top level is a table in plain text
        if package == "pyro_vae":
            lines += ["::", "", *indent(inspect.getdoc(module) or ""), ""]
        else:
            lines += [inspect.getdoc(module) or "", ""]
        elsewhere = [n for n in public_names(package) if n not in pages[package]]
        if elsewhere:
            links = ", ".join(f":py:obj:`~{package}.{name}`" for name in elsewhere)
            lines += [f"Documented on other pages: {links}.", ""]
        for name in sorted(pages[package], key=str.lower):
            lines += [*directive(f"{package}.{name}", getattr(module, name)), ""]
        write(f"api/{package}.rst", lines)
        index.append(f"   {package}")
    write("api/index.rst", index)


def shown_name(package: str) -> str:
    """Return a package as users write it after ``import pyro_vae as pv``."""
    short = re.sub(r"(?<=pyro_vae\.)(learning|core)\.", "", package)
    return short if package == "pyro_vae" else short.replace("pyro_vae", "pv")


def directive(name: str, value: Any) -> list[str]:
    """Return the autodoc directive of a public name."""
    if inspect.isclass(value):
        lines = [f".. autoclass:: {name}", "   :members:", "   :show-inheritance:"]
        return [*lines, "   :inherited-members:"] if value is pyro_vae.Run else lines
    if callable(value) and inspect.isfunction(value):
        return [f".. autofunction:: {name}"]
    return [f".. autodata:: {name}", "   :no-value:"]


def write_command_line() -> None:
    """Write the options of every verb, from the help pages of their parsers."""
    usage = help_page()
    lines = ["# Options of the command line", "", "Generated from the parsers.", ""]
    for verb, summary in re.findall(r"^  ([a-z][\w-]*) +(\S.*)$", usage, re.MULTILINE):
        lines += [f"## pyro-vae {verb}", "", escape(summary), ""]
        for line in help_page(verb).splitlines()[1:]:
            option = re.match(r" {2}(\S.*?)(?: {2,}(.*))?$", line)
            group = re.match(r"(\S.*):$", line)
            if option:
                lines += ["", f"`{option[1].strip()}`", f": {escape(option[2] or '')}"]
            elif line.startswith("   "):
                lines[-1] += f" {escape(line.strip())}"
            elif group and group[1] not in ("options", "positional arguments"):
                lines += ["", f"**{group[1]}**"]
        lines.append("")
    write("command-line.md", lines)


def help_page(*verb: str) -> str:
    """Return the help page of the command line, or of a verb."""
    os.environ["COLUMNS"] = "1000"
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        cli.main([*verb, "--help"])
    return output.getvalue()


def write_configuration() -> None:
    """Write the keys of a YAML file, and the arguments of every component."""
    lines = ["# Configuration", "", "The keys of a YAML file of `pyro-vae fit --config FILE`.", ""]
    plain = [o for o in EXPERIMENT_OPTIONS if not o.group and not o.expand and o.name != "config"]
    lines += ["## Top level", "", *option_table(plain)]
    for option in EXPERIMENT_OPTIONS:
        if option.group:
            lines += [f"## `{option.name}`", "", *option_table(option.group)]
        elif option.expand:
            text = "A program, `VAE` by default, with its arguments: [Models](#models)."
            lines += [f"## `{option.name}`", "", text, ""]
    lines += [
        "## Components",
        "",
        "The arguments of a class stand under `init_args`, or beside its `class_path`.",
        "",
    ]
    for kind, module in catalogue.COMPONENT_KINDS.items():
        lines += [f"### {kind.capitalize()}", ""]
        for name in component_names(module):
            component = getattr(module, name)
            summary = (inspect.getdoc(component) or "").splitlines()[0].replace("``", "`")
            lines += [f"#### {name}", "", escape(summary, code=True), ""]
            lines += option_table(catalogue.component_options(component))
    write("configuration.md", lines)


def option_table(options: tuple[Option, ...] | list[Option]) -> list[str]:
    """Return a table of options: key, type, default, meaning."""
    if not options:
        return ["No arguments.", ""]
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for option in options:
        default = "required" if option.default is REQUIRED else f"`{show(option.default)}`"
        value = escape(describe_type(option.hint))
        rows.append(f"| `{option.name}` | {value} | {default} | {escape(option.help)} |")
    return [*rows, ""]


def show(value: Any) -> str:
    """Return a default as it is written in YAML."""
    if inspect.isclass(value):
        return value.__name__
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(list(value) if isinstance(value, tuple) else value)


def describe_type(hint: Any) -> str:
    """Return the type of a value in a few words."""
    if class_types(hint):
        return "class"
    names = {int: "integer", float: "number", str: "text", bool: "true or false", dict: "mapping"}
    names |= {type(None): "null", Path: "path", Any: "any", Sequence: "list", tuple: "list"}
    choices = literal_choices(hint)
    members = [get_origin(m) or m for m in union_members(hint)]
    words = [names.get(m, getattr(m, "__name__", str(m))) for m in members if m is not Literal]
    return " or ".join(dict.fromkeys([*([", ".join(choices)] if choices else []), *words]))


def escape(text: str, code: bool = False) -> str:
    """Return plain text with the characters escaped that Markdown would interpret."""
    return re.sub(r"([\\*_<>|\[\]$]" + ("" if code else "|`") + ")", r"\\\1", text)


def write_documents() -> None:
    """Copy the documents of the repository, with their links as seen from the new place."""
    for file, page in DOCUMENTS.items():
        if file == "examples":
            continue
        text = (ROOT / file).read_text(encoding="utf-8")
        link = re.compile(r"\]\((?!\w+://|#)([^)\s]+)\)")
        write(f"{page}.md", [link.sub(lambda m: f"](../../{m[1]})", text)])
    lines = ["# Examples", "", "Stand-alone scripts in the folder `examples/`.", ""]
    for script in sorted((ROOT / "examples").glob("*.py")):
        summary = script.read_text(encoding="utf-8").split('"""')[1].splitlines()[0]
        lines += [
            f"## {script.name}",
            "",
            summary,
            "",
            f"```{{literalinclude}} ../../{script.relative_to(ROOT)}",
        ]
        lines += [":language: python", "```", ""]
    write("examples.md", lines)


def escape_docstring(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Escape what docstrings mean literally: ``|x|`` and ``*args`` after other arguments."""
    for i, line in enumerate(lines):
        parts = line.split("``")
        for j in range(0, len(parts), 2):
            parts[j] = re.sub(r"\|(?=\S)", r"\\|", parts[j])
            parts[j] = re.sub(r"(?<=, )(\*{1,2})(?=\w)", lambda m: "\\*" * len(m[0]), parts[j])
        lines[i] = "``".join(parts)


def link_documents(app: Sphinx, page: str, content: list[str]) -> None:
    """Turn links to documents of the repository into links to their pages."""
    up = "../" * page.count("/")
    for file, name in DOCUMENTS.items():
        pattern = rf"\]\((?:\.\./)+{re.escape(file)}(#[^)\s]*)?\)"
        content[0] = re.sub(pattern, rf"]({up}generated/{name}.md\1)", content[0])


def resolve_reference(
    app: Sphinx, env: BuildEnvironment, node: nodes.Element, contnode: nodes.Element
) -> nodes.Node | None:
    """Resolve a reference to an object of this package by any name under which it can be imported.

    A name that does not exist stays unresolved, which is a warning. A private object has no page,
    and its name no link.
    """
    if node.get("refdomain") != "py":
        return None
    domain = env.get_domain("py")
    target = node["reftarget"]
    module = node.get("py:module") or "pyro_vae"
    for name in (target, f"{module}.{target}", f"{module}.{node.get('py:class')}.{target}"):
        found = import_name(name)
        if found is None:
            continue
        for candidate in documented_as(*found):
            entry = domain.objects.get(candidate)  # type: ignore[attr-defined]
            if entry is not None:
                return make_refnode(
                    app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, candidate
                )
        return contnode
    return None


def import_name(name: str) -> tuple[Any, str] | None:
    """Return the innermost class or module-level object of a dotted name, and the rest of it."""
    parts = name.split(".")
    if parts[0] != "pyro_vae":
        return None
    value: Any = pyro_vae
    owner, rest = value, ""
    for part in parts[1:]:
        try:
            inner = getattr(value, part, None)
            if inner is None and isinstance(value, types.ModuleType):
                inner = importlib.import_module(f"{value.__name__}.{part}")
        except ImportError:
            return None
        known = inspect.isclass(value) and part in all_annotations(value)
        if inner is None and not known:
            return None
        if inspect.isclass(value):
            rest = part
        else:
            owner = inner
        value = inner
    return owner, rest


def all_annotations(cls: type) -> set[str]:
    """Return the annotated attributes of a class and of its bases."""
    return {name for base in cls.__mro__ for name in vars(base).get("__annotations__", {})}


def documented_as(value: Any, member: str) -> list[str]:
    """Return the names under which an object, or a member of it, is documented."""
    if isinstance(value, types.ModuleType):
        return [value.__name__]
    names = [
        f"{package}.{name}"
        for package, names in documented_names().items()
        for name in names
        if getattr(importlib.import_module(package), name) is value
    ]
    return [f"{name}.{member}" if member else name for name in names]


def write_llms(app: Sphinx, error: Exception | None) -> None:
    """Write ``llms.txt``: every page with its first sentence, as language models read sites."""
    if error is not None or app.builder.name != "html":
        return
    sections = {
        "Tutorials": "generated/tutorials/",
        "How-to guides": "how-to/",
        "Reference": "reference/",
        "API": "generated/api/",
        "Explanation": "explanation/",
        "Generated": "generated/",
    }
    lines = ["# pyro_vae", "", "> Variational autoencoders as Pyro programs, trained by SVI and"]
    lines[-1] += " evaluated by importance sampling."
    left = sorted(app.env.found_docs)
    for title, folder in sections.items():
        pages = [page for page in left if page.startswith(folder)]
        left = [page for page in left if page not in pages]
        lines += ["", f"## {title}", ""]
        for page in pages:
            name = app.env.titles[page].astext()
            sentence = first_sentence(app.env.get_doctree(page))
            lines.append(f"- [{name}]({page}.html)" + (f": {sentence}" if sentence else ""))
    (Path(app.outdir) / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def first_sentence(page: nodes.document) -> str:
    """Return the first sentence of the text of a page, outside of tables and notes."""
    found = (p for p in page.findall(nodes.paragraph) if isinstance(p.parent, nodes.section))
    text = next((p.astext() for p in found), "").replace("\n", " ")
    return re.split(r"(?<=[.]) ", text)[0]


def indent(text: str) -> list[str]:
    return [f"    {line}" for line in text.splitlines()]


def write(name: str, lines: list[str]) -> None:
    """Write a generated page, unless it is up to date."""
    file = GENERATED / name
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(lines) + "\n"
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        file.write_text(text, encoding="utf-8")


def write_pages(app: Sphinx) -> None:
    write_api()
    write_command_line()
    write_configuration()
    write_documents()


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("builder-inited", write_pages)
    app.connect("source-read", link_documents)
    app.connect("autodoc-process-docstring", escape_docstring, priority=400)
    app.connect("missing-reference", resolve_reference)
    app.connect("build-finished", write_llms)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
