"""Command line of the tables: run, resume, print and draw.

A script declares a :class:`Table` and calls :func:`main`. Every cell (a row with a seed) has its
own run folder. Finished cells are skipped, interrupted ones resume, and several processes may
work on one table at the same time. Rows of a results file whose runs are on another machine are
kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_vae.core import files
from pyro_vae.core.validation import did_you_mean

from . import collect
from .attempts import FAILURES, attempt_cell, exclusive_lock, format_error
from .cells import Cell, Measure, Preset, Table, group_rows, slug

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "RESULTS",
    "Cell",
    "Measure",
    "Preset",
    "Table",
    "group_rows",
    "main",
    "parse_args",
    "select_table",
    "slug",
]

RESULTS = Path(__file__).parent / "results"


def main(
    table: Table | Sequence[Table],
    argv: Sequence[str] | None = None,
    *,
    extra: Callable[[Sequence[Any]], dict[str, Any]] | None = None,
    draw: Callable[[dict[str, Any], Sequence[Any]], Figure] | None = None,
) -> int:
    """Run the missing cells of a table, then write, print and draw the results.

    Arguments:
        table: the table, or several that differ in ``variant``; the first is the default.
        argv: the command-line arguments; ``sys.argv[1:]`` if not given.
        extra: makes further entries of the results file from the complete cells.
        draw: makes a figure from the results and the complete cells.

    Returns:
        0, or 1 after printing a one-line error, or 130 if interrupted.
    """
    options = parse_args(table, argv)
    table = select_table(table, options)
    file = options.results / f"{table.stem(options.preset)}.json"
    try:
        if options.table:
            print(collect.format_results(collect.read_results(file, table.command(options.preset))))
            return 0
        requested = _requested_cells(table, options)
        failed = _run_cells(table, options, requested)
        # of two processes that finish together, the later one must see the results of the earlier
        with exclusive_lock(options.folder / table.stem(options.preset) / "results", wait=True):
            cells = _all_cells(table, options, requested)
            # figures need the run folders, so their numbers must come from the same runs
            earlier = (
                None
                if extra or draw
                else _read_earlier_results(file, table.command(options.preset))
            )
            results = collect.collect_results(table, options.preset, cells, earlier)
            complete = [cell for cell in cells if cell.incomplete_reason() is None]
            results |= extra(complete) if extra else {}
            written = _write_results(
                file, results, partial(draw, results, complete) if draw else None
            )
        print(f"{collect.format_results(results)}\nresults: {', '.join(map(str, written))}")
        return int(failed)
    except FAILURES as error:
        print(f"{table.name}: {format_error(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{table.name}: interrupted; repeat the command to resume", file=sys.stderr)
        return 130


def select_table(table: Table | Sequence[Table], options: argparse.Namespace) -> Table:
    """Return the table of the variant given by the options."""
    tables = [table] if isinstance(table, Table) else table
    variant = {key: getattr(options, key) for key in tables[0].variant}
    return next(candidate for candidate in tables if candidate.variant == variant)


def parse_args(
    tables: Table | Sequence[Table], argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """Parse the command line of :func:`main`."""
    tables = [tables] if isinstance(tables, Table) else tables
    table = tables[0]
    parser = argparse.ArgumentParser(
        prog=f"python -m {table.module}",
        description=table.title,
        epilog=f"rows: {', '.join(table.cells)}",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--preset", choices=list(table.presets), default="small", help="budget; default: small"
    )
    parser.add_argument("--only", nargs="+", metavar="ROW", help="rows to run; default: all")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0], metavar="SEED", help="seeds; default: 0"
    )
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: auto"
    )
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="FOLDER", help="folder of the results"
    )
    parser.add_argument("--table", action="store_true", help="print existing results, run nothing")
    parser.add_argument(
        "--resume", action="store_true", help="no effect: interrupted tables always resume"
    )
    for key, default in table.variant.items():
        choices = list(dict.fromkeys(variant.variant[key] for variant in tables))
        parser.add_argument(f"--{key}", choices=choices, default=default)
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="run rows as submitit jobs, N at a time: on Slurm if available, else locally",
    )
    parser.add_argument(
        "--slurm",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="options of jobs: timeout_min=600 mem_gb=16 gpus_per_node=1 slurm_partition=NAME …",
    )
    return parser.parse_args(argv)


def _requested_cells(table: Table, options: argparse.Namespace) -> list[Cell]:
    """Return the cells given by the options, checked before any of them runs."""
    rows = table.rows(options.preset)
    unknown = [name for name in options.only or [] if name not in rows]
    if unknown:
        raise ValueError(
            f"expected --only to name rows ({', '.join(rows)}); got "
            f"{unknown[0]!r}{did_you_mean(unknown[0], rows)}"
        )
    cells = [
        table.cell(options.preset, row, seed, options.folder)
        for seed in options.seeds
        for row in options.only or rows
    ]
    for cell in cells:
        try:
            cell.check()
        except FAILURES as error:
            raise ValueError(f"{cell}: {error}") from error
    return cells


def _run_cells(table: Table, options: argparse.Namespace, cells: Sequence[Cell]) -> bool:
    """Run the cells, and return whether one of them failed."""
    if options.jobs is not None and options.jobs < 1:
        raise ValueError(f"expected --jobs of at least 1; got {options.jobs}")
    if options.slurm and options.jobs is None:
        raise ValueError(
            "expected --jobs with --slurm; got none: give the number of jobs at a time"
        )
    if options.jobs is not None:
        from . import grid  # needs submitit, an optional dependency

        logs = options.folder / table.stem(options.preset) / "jobs"
        slurm = grid.parse_slurm_options(options.slurm)
        return grid.run_jobs(cells, logs, options.jobs, options.device, slurm)
    problems = [attempt_cell(cell, options.device) for cell in cells]
    return any(problem is not None for problem in problems)


def _all_cells(table: Table, options: argparse.Namespace, requested: Sequence[Cell]) -> list[Cell]:
    """Return the requested and the existing cells in the order of the table."""
    rows = table.rows(options.preset)
    cells = {(c.row, c.seed): c for c in table.existing_cells(options.preset, options.folder)}
    cells |= {(cell.row, cell.seed): cell for cell in requested}
    return sorted(cells.values(), key=lambda cell: (rows.index(cell.row), cell.seed))


def _read_earlier_results(file: Path, command: str) -> collect.Results | None:
    """Return the results in an existing file; their runs may be on another machine."""
    if not file.is_file():
        return None
    try:
        return collect.read_results(file, command)
    except ValueError as error:
        print(error, file=sys.stderr)
        return None


def _write_results(
    file: Path, results: collect.Results, draw: Callable[[], Figure] | None
) -> list[Path]:
    """Write results and figure if they have changed. Return the existing files."""
    picture = file.with_suffix(".png")
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    unchanged = file.is_file() and file.read_text(encoding="utf-8") == text
    if not unchanged:
        files.atomic_write_text(file, text)
    if draw and results["rows"] and not (unchanged and picture.is_file()):
        figure = draw()
        files.atomic_write(picture, lambda path: figure.savefig(path, dpi=150))
    return [path for path in (file, picture) if path == file or (draw and path.is_file())]
