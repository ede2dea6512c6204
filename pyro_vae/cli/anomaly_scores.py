"""Command that scores examples and compares the scores of normal and anomalous ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .. import data, queries
from ..data import Split
from ..data.splits import are_class_labels
from ..evaluation.sections import Picture
from ..evaluation.slices import SplitName
from ..runs.run import Run
from .opened_run import OpenedRun, open_run, print_scale
from .output_files import check_output, write_examples

__all__ = ["anomaly"]


def anomaly(
    run: Run,
    *,
    split: SplitName = "test",
    num_data: int | None = 1000,
    seed: int = 0,
    against: str | None = None,
    against_class: int | None = None,
    num_samples: int = 100,
    output: Path | None = None,
) -> None:
    """Detect anomalies by the ELBO and log p̂, against another data set or an unseen class.

    Arguments:
        against: anomalous data set.
        against_class: anomalous class of the run's data, excluded from training by
            --data.without_class.
        num_samples: samples per example.
        output: .csv or .npz file for the scores of the examples, with their rows; the lower, the
            more anomalous. It needs neither of the two.
    """
    if against is not None and against_class is not None:
        raise ValueError("expected either --against DATASET or --against-class CLASS; got both")
    if against is None and against_class is None and output is None:
        raise ValueError(
            "expected --against DATASET or --against-class CLASS; got neither: add one, or "
            "--output FILE for the scores alone"
        )
    path = None if output is None else check_output(run, output)
    opened = open_run(run, split, num_data, seed)
    parts = {"the run": opened.split}
    if against is not None:
        parts[against] = _load_like(opened, against, len(opened.split))
    elif against_class is not None:
        labels = _find_class(opened, against_class)
        parts = {
            "the run": opened.split.at(labels != against_class),
            f"class {against_class}": opened.split.at(labels == against_class),
        }
    options: Any = {"num_samples": num_samples, "seed": seed}
    scores = [queries.score_examples(opened.program, part, **options) for part in parts.values()]
    _print_anomalies(list(parts), scores)
    print_scale(run)
    if path is not None:
        _write_anomalies(opened, path, list(parts.values()), scores)
    if len(parts) > 1:
        from ..report import plots

        titles = ["run's data", [*parts][1]]
        figure = plots.plot_histograms([s["elbo"] for s in scores], titles, "ELBO (nats)")
        opened.write(Picture("anomaly", "Anomaly detection", "", figure))


def _print_anomalies(names: list[str], scores: list[dict[str, np.ndarray]]) -> None:
    """Print the means of the scores, and the AUROC of two sets of examples."""
    sizes = [len(part["elbo"]) for part in scores]
    others = [f", {size} of {name}" for size, name in zip(sizes[1:], names[1:], strict=True)]
    about = "; ± is DeLong's standard error" if others else ""
    print(f"{sizes[0]} examples of the run{''.join(others)}{about}")
    for score, title in {"elbo": "ELBO", "log_evidence": "log p̂"}.items():
        values = [part[score] for part in scores]
        means = " and ".join(f"{v.mean():.2f}" for v in values)
        if len(values) == 1:
            print(f"{title}: mean {means} nats, lowest {values[0].min():.2f}")
            continue
        auroc = queries.auroc(*values)
        print(f"{title}: AUROC {auroc.value:.4f} ± {auroc.se:.4f}; means {means} nats")


def _write_anomalies(
    opened: OpenedRun, path: Path, parts: list[Split], scores: list[dict[str, np.ndarray]]
) -> None:
    """Write the scores of all examples, those of the run first."""
    rows = [np.arange(len(part)) if part.rows is None else part.rows.numpy() for part in parts]
    arrays = {"row": np.concatenate(rows)}
    if len(parts) > 1:
        arrays["is_anomalous"] = np.repeat([0, 1], [len(part) for part in parts])
    if all("labels" in part for part in scores):
        arrays["labels"] = np.concatenate([part["labels"] for part in scores])
    for name in ("elbo", "log_evidence", "khat"):
        arrays[name] = np.concatenate([part[name] for part in scores])
    write_examples(path, arrays, classes=opened.run.classes)


def _load_like(opened: OpenedRun, name: str, size: int) -> Split:
    """Load examples of another data set in the representation of the run's data."""
    run = opened.run
    root = run.experiment.data_arguments["root"]
    other = data.load(name, binarize=opened.data.binarize, values=opened.data.values, root=root)
    if other.event_shape != opened.data.event_shape:
        raise ValueError(
            f"expected data of shape {opened.data.event_shape}; {name} has {other.event_shape}"
        )
    return replace(other.take(opened.split_name, size), scale=run.scale)


def _find_class(opened: OpenedRun, cls: int | None) -> Tensor:
    """Return the labels, which include the class."""
    labels = opened.split.labels
    classes = []
    if labels is not None and are_class_labels(labels):
        classes = labels.unique().tolist()
    if labels is None or cls not in classes:
        known = ", ".join(map(str, classes)) or "none"
        raise ValueError(f"expected --against-class to be a class of the data, {known}; got {cls}")
    return labels
