"""The HTML page that compares evaluated runs, a single self-contained file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..config.experiment import flatten_settings
from ..core import files
from ..core.figures import get_axes
from ..evaluation import EVALUATIONS, Bounds
from ..evaluation.bounds_plots import plot_bound_against_k
from ..evaluation.latent_diagnostics.summary import Latents
from ..evaluation.sections import Picture
from ..evaluation.tables import TextTable
from ..learning.history import plot_learning_curves
from ..runs.comparison import paired_difference, require_comparable
from ..runs.run import Run
from .headline import describe_training
from .html import Block, render, take_split
from .plots import plot_differences
from .run_pictures import make_latent_pictures, make_sample_pictures

__all__ = ["write_comparison"]


def write_comparison(runs: Sequence[Run], output: Path) -> Path:
    """Write a page with two or more runs side by side, and their paired differences of log p̂.

    The differences are those from the first run.

    Arguments:
        runs: runs that were evaluated on the same examples with the same settings.
        output: the file.

    Returns:
        The file.

    Raises:
        RunError: if a run has no bounds yet, or if a result is damaged.
        ValueError: if there are fewer than two runs, if one is given twice, or if log p̂ of two
            runs cannot be compared.
    """
    if len({run.folder.resolve() for run in runs}) < max(len(runs), 2):
        raise ValueError(
            f"expected two or more different runs to compare; got "
            f"{', '.join(str(run.folder) for run in runs)}: name each run once"
        )
    require_comparable(*runs)
    files.atomic_write_text(output, _render(_name(runs)))
    return output


def _name(runs: Sequence[Run]) -> dict[str, Run]:
    """Return the runs by a short name, or by their folders if two have the same."""
    names = [run.name for run in runs]
    if len({*names}) < len(names):
        names = [str(run.folder) for run in runs]
    return dict(zip(names, runs, strict=True))


def _render(runs: Mapping[str, Run]) -> str:
    bounds = {name: run.read_bounds() for name, run in runs.items()}
    results = {name: run.read_result() for name, run in runs.items()}
    settings = {name: flatten_settings(result["config"]) for name, result in results.items()}
    keys = dict.fromkeys(key for values in settings.values() for key in values)
    rows = {key: [values.get(key, "–") for values in settings.values()] for key in keys}
    first, *others = runs
    return render(
        "comparison.html.jinja",
        None,
        title=" and ".join(runs) if len(runs) == 2 else ", ".join(runs),
        names=list(runs),
        verdicts=[_judge(name, runs[name], first, runs[first]) for name in others],
        table=_make_table(runs, bounds),
        size=len(bounds[first]),
        split=bounds[first].provenance["split"],
        warnings={name: b.warning for name, b in bounds.items() if b.warning},
        changes=_find_changes(runs, results),
        blocks=list(_make_blocks(runs, bounds)),
        settings={
            key: (values, any(v != values[0] for v in values)) for key, values in rows.items()
        },
        results=results,
    )


def _judge(name: str, run: Run, first_name: str, first: Run) -> str:
    """Return the paired difference of log p̂ from the first run in a sentence."""
    paired = paired_difference(run, first)
    assert paired is not None
    difference, error = paired
    if not abs(difference) > 2 * error:
        return (
            f"log p̂ of {name} and {first_name} cannot be told apart: they differ by "
            f"{_format(difference, error)} nats (paired)."
        )
    word = "higher" if difference > 0 else "lower"
    return (
        f"log p̂ of {name} is {abs(difference):.3f} ± {error:.3f} nats {word} than that of "
        f"{first_name} (paired)."
    )


def _make_table(runs: Mapping[str, Run], bounds: Mapping[str, Bounds]) -> TextTable:
    estimates = [part.estimates for part in bounds.values()]
    first, *others = runs.values()
    paired = ["–", *(_format(*paired_difference(run, first) or (np.nan, np.nan)) for run in others)]
    rows = [
        ["ELBO", *(f"{e['elbo'].value:.3f}" for e in estimates)],
        ["log p̂", *(f"{e['log_evidence'].value:.3f}" for e in estimates)],
        ["± data", *(f"{e['log_evidence'].se_data:.3f}" for e in estimates)],
        ["± MC", *(f"{e['log_evidence'].se_monte_carlo:.3f}" for e in estimates)],
        ["log p̂ − ELBO", *(f"{e['gap'].value:.3f}" for e in estimates)],
        ["unreliable examples", *(f"{len(b.unreliable)} of {len(b)}" for b in bounds.values())],
        [f"log p̂ − that of {next(iter(runs))}, ± paired", *paired],
    ]
    return TextTable(["", *runs], rows)


def _find_changes(
    runs: Mapping[str, Run], results: Mapping[str, Mapping[str, Any]]
) -> TextTable | None:
    """Return the facts about the training that differ, or ``None``."""
    facts = [describe_training(run.program, results[name]) for name, run in runs.items()]
    labels = dict.fromkeys(label for part in facts for label in part)
    rows = [[label, *(part.get(label, "–") for part in facts)] for label in labels]
    rows = [row for row in rows if len({*row[1:]}) > 1]
    return TextTable(["", *runs], rows) if rows else None


def _make_blocks(runs: Mapping[str, Run], bounds: Mapping[str, Bounds]) -> Iterator[Block]:
    curves, first = get_axes(None), next(iter(bounds.values()))
    for name, part in bounds.items():
        plot_bound_against_k(part, curves, name)
    values = {name: part.per_datum["log_evidence"] for name, part in bounds.items()}
    base = first.per_datum["log_evidence"]
    differences = {n: v - base for n, v in values.items() if bounds[n] is not first}
    finite = all(np.isfinite(v).all() for v in differences.values())
    alt = "; ".join(
        f"{n}: {(v > 0).mean():.0%} of the examples are higher" for n, v in differences.items()
    )
    pictures = [
        Picture(
            "bounds",
            "L_k by the number of samples k",
            "Bands: ± 2 standard errors (Monte Carlo). Dashed: log p̂ of the ladder."
            if any(part.proposals for part in bounds.values())
            else "Bands: ± 2 standard errors (Monte Carlo).",
            curves,
        )
    ]
    if finite:
        pictures.append(
            Picture(
                "differences",
                f"log p̂ of each example, minus that of {next(iter(bounds))}",
                f"Dotted: the mean. Above 0: {alt}.",
                plot_differences(differences, "nats"),
            )
        )
    yield Block("Bounds on log p(x)", pictures=pictures)
    curves = get_axes(None)
    for name, run in runs.items():
        plot_learning_curves(run.read_metrics(), curves, name)
    note = (
        "Objectives of different kinds cannot be compared; dashed: the ELBO of the validation data."
    )
    yield Block("Training", pictures=[Picture("learning", "Learning curves", note, curves)])
    samples, latents = [], []
    for index, (name, run) in enumerate(runs.items()):
        seed, program = bounds[name].seed or 0, run.program
        split = take_split(run, bounds[name].provenance["split"], len(bounds[name]))
        shown = split or run.label_examples()
        own = [] if shown is None else [*make_sample_pictures(program, shown, seed, split)]
        samples += [_rename(picture, index, name) for picture in own]
        own = _plot_latents(run)
        if split is not None:
            own += make_latent_pictures(program, split, seed, run.classes)
        latents += [_rename(picture, index, name) for picture in own]
    # pictures of one kind beside each other
    for title, found in (("Samples and reconstructions", samples), ("Latent variables", latents)):
        if found:
            found.sort(key=lambda picture: picture.name.partition("-")[2])
            yield Block(title, pictures=found)


def _plot_latents(run: Run) -> list[Picture]:
    if not run.evaluation_file("latents").is_file():
        return []
    result = run.read_evaluation(EVALUATIONS["latents"].name)
    assert isinstance(result, Latents)
    return [
        Picture(f"units-{site}", f"Units of {site}", str(result.active), result.plot(site))
        for site in result.active.variance
    ]


def _rename(picture: Picture, index: int, run: str) -> Picture:
    """Return a picture with the run in its title and a unique identifier."""
    return replace(picture, name=f"{index}-{picture.name}", title=f"{run}: {picture.title}")


def _format(difference: float, error: float) -> str:
    return f"{difference:+.3f} ± {error:.3f}".replace("-", "−")
