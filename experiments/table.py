"""A table of a paper: rows that differ in a few words of ``pyro-vae fit``, each a run folder.

A script declares a :class:`Table` and calls :func:`main`. Every cell (a row with a seed) is a
run of its own: one that is finished is skipped, one that was killed goes on, and several
processes may work on one table at the same time. Rows of a results file whose runs are not here
stay in it.
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
from .attempts import FAILURES, alone, attempt, sentence
from .cells import Cell, Measure, Preset, Table, group, slug

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "RESULTS",
    "Cell",
    "Measure",
    "Preset",
    "Table",
    "chosen",
    "group",
    "main",
    "parsed",
    "slug",
]

RESULTS = Path(__file__).parent / "results"


def main(
    table: Table | Sequence[Table],
    argv: Sequence[str] | None = None,
    *,
    told: Callable[[Sequence[Any]], dict[str, Any]] | None = None,
    draw: Callable[[dict[str, Any], Sequence[Any]], Figure] | None = None,
) -> int:
    """Runs what is missing of a table, writes and prints what there is, and draws it.

    Arguments:
        table: the table, or several whose ``variant`` chooses between them; the first is the one
            that is meant if nothing is said.
        argv: the words after the program's name; those it was started with if not given.
        told: what the results file says besides, of the cells that are complete.
        draw: makes a figure of the results and of the cells that are complete.

    Returns:
        0, or 1 after printing one sentence that says what went wrong and what to do.
    """
    options = parsed(table, argv)
    table = chosen(table, options)
    file = options.results / f"{table.stem(options.preset)}.json"
    try:
        if options.table:
            print(collect.text(collect.read(file, table.command(options.preset))))
            return 0
        asked = _asked(table, options)
        failed = _work(table, options, asked)
        # of two processes that end together, the later one must see what the earlier one did
        with alone(options.folder / table.stem(options.preset) / "results", wait=True):
            cells = _all(table, options, asked)
            # a figure is drawn of runs that are here: it and its numbers are of the same ones
            earlier = None if told or draw else _earlier(file, table.command(options.preset))
            results = collect.collect(table, options.preset, cells, earlier)
            complete = [cell for cell in cells if cell.missing() is None]
            results |= told(complete) if told else {}
            files = _write(file, results, partial(draw, results, complete) if draw else None)
        print(f"{collect.text(results)}\nresults: {', '.join(map(str, files))}")
        return int(failed)
    except FAILURES as error:
        print(f"{table.name}: {sentence(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{table.name}: interrupted; the same command goes on", file=sys.stderr)
        return 130


def chosen(table: Table | Sequence[Table], options: argparse.Namespace) -> Table:
    """The table whose variant was asked for."""
    every = [table] if isinstance(table, Table) else table
    asked = {key: getattr(options, key) for key in every[0].variant}
    return next(one for one in every if one.variant == asked)


def parsed(
    tables: Table | Sequence[Table], argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """What the words after the program's name ask for; see :func:`main`."""
    every = [tables] if isinstance(tables, Table) else tables
    table = every[0]
    made = argparse.ArgumentParser(
        prog=f"python -m experiments.{table.name}",
        description=table.title,
        epilog=f"rows: {', '.join(table.cells)}",
        allow_abbrev=False,
    )
    made.add_argument("--preset", choices=list(table.presets), default="small")
    made.add_argument("--only", nargs="+", metavar="ROW", help="only these rows")
    made.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED")
    made.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    made.add_argument("--folder", type=Path, default=Path("runs"), help="where the runs are")
    made.add_argument(
        "--results", type=Path, default=RESULTS, metavar="FOLDER", help="where the numbers go"
    )
    made.add_argument("--table", action="store_true", help="print the results there are, run none")
    made.add_argument(
        "--resume", action="store_true", help="go on where it stopped, as it does without, too"
    )
    for key, usual in table.variant.items():
        choices = list(dict.fromkeys(one.variant[key] for one in every))
        made.add_argument(f"--{key}", choices=choices, default=usual)
    made.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="rows as jobs of submitit, N at a time: on Slurm where there is one, else here",
    )
    made.add_argument(
        "--slurm",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="of each job: timeout_min=600 mem_gb=16 gpus_per_node=1 slurm_partition=NAME …",
    )
    return made.parse_args(argv)


def _asked(table: Table, options: argparse.Namespace) -> list[Cell]:
    """The cells that were asked for; what can be refused is refused before the hours of work."""
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


def _work(table: Table, options: argparse.Namespace, cells: Sequence[Cell]) -> bool:
    """Runs cells; whether one of them failed."""
    if options.jobs is not None and options.jobs < 1:
        raise ValueError(f"expected --jobs of at least 1; got {options.jobs}")
    if options.slurm and options.jobs is None:
        raise ValueError("expected --jobs beside --slurm; got none: say how many at a time")
    if options.jobs is not None:
        from . import grid  # needs submitit, an optional dependency

        logs = options.folder / table.stem(options.preset) / "jobs"
        told = grid.options(options.slurm)
        return grid.work(cells, logs, options.jobs, options.device, told)
    problems = [attempt(cell, options.device) for cell in cells]
    return any(problem is not None for problem in problems)


def _all(table: Table, options: argparse.Namespace, asked: Sequence[Cell]) -> list[Cell]:
    """The cells that were asked for and those that have a folder, in the order of the table."""
    rows = table.rows(options.preset)
    cells = {(c.row, c.seed): c for c in table.found(options.preset, options.folder)}
    cells |= {(cell.row, cell.seed): cell for cell in asked}
    return sorted(cells.values(), key=lambda cell: (rows.index(cell.row), cell.seed))


def _earlier(file: Path, command: str) -> collect.Results | None:
    """The results that are there: their runs may be on another machine."""
    if not file.is_file():
        return None
    try:
        return collect.read(file, command)
    except ValueError as error:
        print(error, file=sys.stderr)
        return None


def _write(file: Path, results: collect.Results, draw: Callable[[], Figure] | None) -> list[Path]:
    """Writes results and their figure, if something has changed; the files there are."""
    picture = file.with_suffix(".png")
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    same = file.is_file() and file.read_text(encoding="utf-8") == text
    if not same:
        files.write_text(file, text)
    if draw and results["rows"] and not (same and picture.is_file()):
        figure = draw()
        files.write(picture, lambda path: figure.savefig(path, dpi=150))
    return [path for path in (file, picture) if path == file or (draw and path.is_file())]
