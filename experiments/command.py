"""Command line of the tables: run, resume, plan, print and draw.

A script declares a :class:`Table` and calls :func:`main`. Every cell (a row with a seed) has its
own run folder. Finished cells are skipped, interrupted ones resume, and several processes may
work on one table at the same time. Rows of a results file whose runs are on another machine are
kept.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_vae.core import files
from pyro_vae.core.validation import did_you_mean

from .cells import FAILURES, Cell, find_cells, format_error, lock
from .plan import format_plan
from .reporting import Results, collect_results, format_results, read_results
from .tables import HERE, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["RESULTS", "main", "parse_args", "write_results"]

RESULTS = HERE / "results"


def main(
    tables: Table | Sequence[Table],
    argv: Sequence[str] | None = None,
    *,
    draw: Callable[[Results, Sequence[Any]], Figure] | None = None,
    collect: Callable[..., Results] = collect_results,
    show: Callable[[Results], str] = format_results,
    cell: type[Cell] = Cell,
) -> int:
    """Run the missing cells of a table, then write, print and draw the results.

    Arguments:
        tables: the table, or several that differ in ``variant``. The first that has the options
            of the command line is run.
        argv: the command-line arguments; ``sys.argv[1:]`` if not given.
        draw: makes a figure from the results and the complete cells.
        collect: makes the contents of the results file, as ``collect_results`` does.
        show: formats them for a terminal.
        cell: class of the cells.

    Returns:
        0, or 1 after printing a one-line error, or 130 if interrupted.
    """
    tables = [tables] if isinstance(tables, Table) else tables
    options = parse_args(tables, argv)
    try:
        table = _select_variant(tables, options)
    except ValueError as error:
        print(f"{tables[0].name}: {error}", file=sys.stderr)
        return 1
    preset, stem = options.preset, table.stem(options.preset)
    file, command = options.results / f"{stem}.json", table.command(preset)
    try:
        if options.table:
            print(show(read_results(file, command)))
            return 0
        requested = _requested_cells(table, options, cell)
        if options.plan:
            print(format_plan(table, preset, requested, options.device))
            return 0
        failed = _run_cells(requested, options, options.folder / stem / "jobs")
        # of two processes that finish together, the later one must see the results of the earlier
        with lock(options.folder / stem / "results", wait=math.inf):
            found = {(c.row, c.seed): c for c in find_cells(cell, table, preset, options.folder)}
            found |= {(c.row, c.seed): c for c in requested}
            rows = table.rows(preset)
            cells = sorted(found.values(), key=lambda c: (rows.index(c.row), c.seed))
            # figures need the run folders, so their numbers must come from the same runs
            earlier = None if draw else _read_earlier_results(file, command)
            results = collect(table, preset, cells, earlier)
            complete = [c for c in cells if draw and c.incomplete_reason() is None]
            written = write_results(file, results, draw and partial(draw, results, complete))
        print(f"{show(results)}\nresults: {', '.join(map(str, written))}")
        return int(failed)
    except FAILURES as error:
        print(f"{table.name}: {format_error(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{table.name}: interrupted; repeat the command to resume", file=sys.stderr)
        return 130


def parse_args(tables: Sequence[Table], argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line of :func:`main`."""
    table = tables[0]
    parser = argparse.ArgumentParser(
        prog=f"python -m {table.module}",
        description=table.title,
        epilog=f"rows: {', '.join(table.cells)}",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--preset", choices=list(table.presets), default="small", help="budget; default: small")
    add("--only", nargs="+", metavar="ROW", help="rows to run; default: all")
    add("--seeds", nargs="+", type=int, default=[0], metavar="SEED", help="seeds; default: 0")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: auto")
    add("--folder", type=Path, default=Path("runs"), help="folder of the runs")
    add("--results", type=Path, default=RESULTS, metavar="FOLDER", help="folder of the results")
    add("--table", action="store_true", help="print existing results, run nothing")
    add("--plan", action="store_true", help="print cells, their hours and the command for Slurm")
    for key, default in table.variant.items():
        choices = list(dict.fromkeys(variant.variant[key] for variant in tables))
        add(f"--{key}", choices=choices, help=f"default: {default}, or as the other options allow")
    jobs = "run rows as submitit jobs, N at a time: on Slurm if available, else locally"
    add("--jobs", type=int, metavar="N", help=jobs)
    slurm = "options of jobs: timeout_min=600 mem_gb=16 gpus_per_node=1 slurm_partition=NAME …"
    add("--slurm", nargs="+", default=[], metavar="KEY=VALUE", help=slurm)
    return parser.parse_args(argv)


def _select_variant(tables: Sequence[Table], options: argparse.Namespace) -> Table:
    """Return the first table with the given options."""
    given = {key: getattr(options, key) for key in tables[0].variant}
    given = {key: value for key, value in given.items() if value is not None}
    for table in tables:
        if given.items() <= dict(table.variant).items():
            return table
    known = [" ".join(f"--{key} {table.variant[key]}" for key in given) for table in tables]
    got = " ".join(f"--{key} {value}" for key, value in given.items())
    raise ValueError(f"expected one of {'; '.join(dict.fromkeys(known))}; got {got}")


def _requested_cells(table: Table, options: argparse.Namespace, cell: type[Cell]) -> list[Cell]:
    """Return the cells given by the options, checked before any of them runs."""
    rows = table.rows(options.preset)
    unknown = [name for name in options.only or [] if name not in rows]
    if unknown:
        raise ValueError(
            f"expected --only to name rows ({', '.join(rows)}); got "
            f"{unknown[0]!r}{did_you_mean(unknown[0], rows)}"
        )
    cells = [
        cell(table, options.preset, row, seed, options.folder)
        for seed in options.seeds
        for row in options.only or rows
    ]
    for requested in cells:
        try:
            requested.check()
        except FAILURES as error:
            raise ValueError(f"{requested}: {error}") from error
    return cells


def _run_cells(cells: Sequence[Cell], options: argparse.Namespace, logs: Path) -> bool:
    """Run the cells, and return whether one of them failed."""
    if options.slurm and options.jobs is None:
        raise ValueError(
            "expected --jobs with --slurm; got none: give the number of jobs at a time"
        )
    if options.jobs is None:
        return any([cell.attempt(options.device) is not None for cell in cells])
    if options.jobs < 1:
        raise ValueError(f"expected --jobs of at least 1; got {options.jobs}")
    from . import jobs  # needs submitit, an optional dependency

    slurm = jobs.parse_slurm_options(options.slurm)
    return jobs.run_jobs(cells, logs, options.jobs, options.device, slurm)


def _read_earlier_results(file: Path, command: str) -> Results | None:
    """Return the results in an existing file; their runs may be on another machine."""
    if not file.is_file():
        return None
    try:
        return read_results(file, command)
    except ValueError as error:
        print(error, file=sys.stderr)
        return None


def write_results(
    file: Path, results: Results, draw: Callable[[], Figure] | None = None
) -> list[Path]:
    """Write results and figure if they have changed. Return the existing files."""
    picture = file.with_suffix(".png")
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    unchanged = file.is_file() and file.read_text(encoding="utf-8") == text
    if not unchanged:
        files.atomic_write_text(file, text)
    has_results = any(results.get(key) for key in ("rows", "models"))
    if draw and has_results and not (unchanged and picture.is_file()):
        figure = draw()
        files.atomic_write(picture, lambda path: figure.savefig(path, dpi=150))
    return [path for path in (file, picture) if path == file or (draw and path.is_file())]
