"""Commands that generate examples: samples, reconstructions, and paths in latent space."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .. import queries
from ..core.components import Labels
from ..core.validation import positive_int
from ..evaluation.slices import SplitName
from ..programs.base import Program, label_use
from ..runs.run import Run
from .opened_run import OpenedRun, open_images, open_run
from .output_files import check_output, write_examples
from .parsers import Command

__all__ = ["COMMANDS"]


def sample(run: Run, *, output: Path | None = None, num_samples: int = 1000, seed: int = 0) -> None:
    """Generate new examples from the model, one row per class for class-conditional models.

    Arguments:
        output: file for the examples in the units of the data, instead of a picture; needed for
            data that are not images: .npz for samples x, means of p(x|z) and labels, or .csv for
            samples and labels, with the names of columns, categories and classes.
        num_samples: number of samples in the file.
    """
    from ..report import pictures

    if output is None:
        opened = open_images(run, "test", None, seed)
        # only the labels of the examples are used
        examples = run.label_examples() or opened.split
        opened.write(pictures.sample_picture(opened.program, examples, seed))
        return
    path = check_output(run, output, has_examples=True)
    opened = open_run(run, "test", None, seed)
    examples = run.label_examples() or opened.split
    size = positive_int("num_samples", num_samples)
    labels = examples.labels
    if labels is not None:
        labels = labels[torch.arange(size) % len(labels)]
    new = queries.sample(run.program, size, *([] if labels is None else [labels]), seed=seed)
    _write_generated(opened, path, new, {"labels": labels})


def reconstruct(
    run: Run,
    *,
    split: SplitName = "test",
    num_data: int | None = 48,
    output: Path | None = None,
    seed: int = 0,
) -> None:
    """Reconstruct examples from samples of q(z|x).

    Arguments:
        output: file for the reconstructions in the units of the data, with the rows of the
            examples: .npz for samples x and means of p(x|z), or .csv for samples, with the names
            of columns and categories.
    """
    from ..report import pictures

    path = None if output is None else check_output(run, output, has_examples=True)
    opened = open_run(run, split, num_data, seed)
    x, labels = opened.inputs()
    generated = queries.reconstruct(opened.program, x, *labels, seed=seed)
    assert generated.mean is not None
    every = torch.ones_like(x, dtype=torch.bool)
    errors = opened.describe_errors(x, generated.mean, generated.x[None], every)
    print(f"{len(x)} examples; {errors}")
    if path is not None:
        _write_generated(opened, path, generated, {"row": opened.rows})
    if pictures.is_image(opened.data.event_shape):
        opened.write(pictures.reconstruction_picture(opened.program, opened.split, seed))


def _write_generated(
    opened: OpenedRun, path: Path, generated: queries.Generated, others: dict[str, Tensor | None]
) -> None:
    """Write generated examples in the units of the data."""
    x, mean = generated.x, generated.mean
    arrays = {**others, "x": opened.in_data_units(x)}
    # the mean of a category has no name
    if mean is not None and path.suffix != ".csv":
        arrays["mean"] = opened.in_data_units(mean)
    write_examples(path, arrays, columns=opened.run.columns, classes=opened.run.classes)


def interpolate(
    run: Run,
    *,
    split: SplitName = "test",
    num_data: int = 8,
    seed: int = 0,
    steps: int = 10,
    path: Literal["spherical", "straight"] = "spherical",
) -> None:
    """Interpolate between pairs of examples in latent space.

    Arguments:
        num_data: number of pairs.
        steps: points per path, including both ends.
        path: shape of the path in latent space.
    """
    # ten times as many examples, so that enough of them can be paired
    opened = open_images(run, split, 10 * positive_int("num_data", num_data), seed)
    opened = opened.or_generated()
    x, labels = opened.inputs()
    first, second = _find_pairs(opened, num_data)
    between = queries.interpolate(
        opened.program,
        x[first],
        x[second],
        *(a[first] for a in labels),
        steps=steps,
        path=path,
        seed=seed,
    )
    assert between.mean is not None
    print(f"{len(first)} paths of {len(between.mean)} points, {path}")
    # show the examples themselves at both ends
    images = torch.cat([x[first][None], between.mean, x[second][None]]).transpose(0, 1)
    caption = "The two examples at the ends of each row, and the mean of p(x|z) along the path."
    opened.write_rows("interpolate", "Interpolation", caption, images)


def traverse(
    run: Run,
    *,
    split: SplitName = "test",
    num_data: int | None = 500,
    seed: int = 0,
    datum: int = 0,
    dims: list[int] | None = None,
    values: list[float] | None = None,
) -> None:
    """Vary one latent dimension at a time, starting from an example.

    Arguments:
        datum: index of the example to start from.
        dims: latent dimensions; by default the ten whose posterior means vary most.
        values: values of each dimension; by default quantiles of the prior.
    """
    opened = open_images(run, split, num_data, seed).or_generated()
    x, labels = opened.inputs()
    if not 0 <= datum < len(x):
        raise ValueError(f"expected datum from 0 to {len(x) - 1}; got {datum}")
    if dims is None:
        dims = _most_active_dims(opened.program, x, labels)
    rows = slice(datum, datum + 1)
    path = queries.traverse(
        opened.program, x[rows], *(a[rows] for a in labels), dims=dims, values=values, seed=seed
    )
    assert path.mean is not None
    print(f"one row per latent dimension: {', '.join(map(str, dims))}")
    caption = "The mean of p(x|z), with one dimension of z varied from low to high in each row."
    opened.write_rows("traverse", "Latent traversal", caption, path.mean[:, :, 0])


def explore(
    run: Run,
    *,
    split: SplitName = "test",
    num_data: int | None = 500,
    seed: int = 0,
    output: Path | None = None,
) -> None:
    """Write an HTML page on which one moves through the latent space.

    Arguments:
        output: file of the page; by default explorer.html in the folder of the run.
    """
    from ..report.explorer import explore as write_page

    path = run.explorer if output is None else check_output(run, output)
    opened = open_run(run, split, num_data, seed).or_generated()
    name = type(opened.program).__name__
    source = run.read_result().get("data", {}).get("name", "data")
    origin = "generated" if opened.generated else split
    with run.exclusive("report"):
        write_page(
            opened.program,
            opened.split,
            path,
            title=run.name,
            about=f"{name} trained on {source} · {len(opened.split)} {origin} examples",
            columns=run.columns,
            classes=run.classes,
            num_data=len(opened.split),
            seed=seed,
        )
    print(f"explorer: {path.resolve()} ({path.stat().st_size / 1e6:.1f} MB)")


def _find_pairs(opened: OpenedRun, num_pairs: int) -> tuple[list[int], list[int]]:
    """Return the ends of the paths, with equal labels if the program conditions on labels."""
    labels = opened.split.labels
    conditioned = label_use(opened.program) is Labels.CONDITION and labels is not None
    pairs, unpaired = [], dict[Any, int]()
    for i in range(len(opened.split)):
        label = tuple(labels[i].flatten().tolist()) if conditioned else None  # type: ignore[index]
        if label in unpaired:
            pairs.append((unpaired.pop(label), i))
        else:
            unpaired[label] = i
    if not pairs:
        raise ValueError("expected at least two examples with equal labels; found none")
    first, second = zip(*sorted(pairs)[:num_pairs], strict=True)
    return list(first), list(second)


def _most_active_dims(program: Program, x: Tensor, args: tuple[Tensor, ...]) -> list[int]:
    """Return the ten dimensions of the first continuous site whose means vary most."""
    columns = queries.encode(program, x, *args)
    suffixes = (".mean", ".direction", ".draw")
    means = next((v for n, v in columns.items() if n.endswith(suffixes)), None)
    if means is None:
        raise ValueError("expected a model with continuous latents; it has none")
    spread = means.reshape(len(means), -1).std(0)
    return [int(d) for d in np.argsort(-spread)[:10]]


COMMANDS: tuple[Command, ...] = (sample, reconstruct, interpolate, traverse, explore)
