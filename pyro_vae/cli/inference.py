"""Commands that infer missing values and latents."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from .. import queries
from ..data import Kind
from ..evaluation.slices import SplitName
from ..programs.arguments import map_batched
from ..programs.inputs import is_large
from ..runs.run import Run
from .opened_run import OpenedRun, format_mean, open_run, print_scale
from .output_files import check_output, write_examples
from .parsers import Command

__all__ = ["COMMANDS"]


def infer(
    run: Run,
    *,
    split: SplitName = "test",
    num_data: int | None = 10,
    seed: int = 0,
    missing: str | None = None,
    columns: list[str] | str | None = None,
    noise: float | None = None,
    method: Literal["importance", "hmc"] = "importance",
    num_samples: int = 2000,
    draws: int = 8,
    output: Path | None = None,
) -> None:
    """Infer missing or noisy values: in-painting, super-resolution, denoising, empty cells.

    Arguments:
        missing: missing pixels: none, lower-half, upper-half, left-half, right-half,
            random:FRACTION or every:N (all but every Nth row and column). Default: lower-half of
            an image, and none of other data. Unobserved values (NaN) are missing in any case.
        columns: missing columns of a table, e.g. [age, sex], instead of missing pixels.
        noise: noise of the observed pixels: flip probability of 0/1 data, or σ of additive
            Gaussian noise, in the unit of the values that the model sees.
        method: sampling method.
        num_samples: proposals per example.
        draws: samples to show per example.
        output: file for the samples in the units of the data, with the rows of the examples: .npz
            for samples x, (draws, N, …), and their means, or .csv with a row for each sample and
            the names of columns and categories.
    """
    path = None if output is None else check_output(run, output, has_examples=True)
    opened = open_run(run, split, num_data, seed)
    observed = _choose_observed(opened, missing, columns)
    x, labels = opened.inputs()
    noisy, corruption = _add_noise(x, noise, opened.data.kind, seed)
    result = queries.impute(
        opened.program,
        noisy,
        *labels,
        observed=observed,
        noise=corruption,
        draws=draws,
        num_samples=num_samples,
        method=method,
        seed=seed,
    )
    count = int(observed.sum())
    unit = "pixels" if run.columns is None else "columns"
    empty = int(x.isnan().sum())
    unobserved = f" except {empty} values (NaN)" if empty else ""
    print(
        f"{len(x)} examples, {count} of {observed.numel()} {unit} observed{unobserved}, "
        f"{num_samples} proposals per example"
    )
    print(f"log p̂(x_obs): {format_mean(result.log_evidence)} nats per datum")
    khat, ess = result.khat, result.ess
    print(f"k̂ median {khat.median():.2f}, worst {khat.max():.2f}; ESS median {ess.median():.1f}")
    if result.acceptance is not None:
        print(f"HMC acceptance rate: {result.acceptance.mean():.2f}")
    if result.warning:
        print(result.warning)
    if noise is None and count < observed.numel():
        if run.columns is not None:
            hidden = ~observed.expand(x.shape) & ~x.isnan()
            if bool(hidden.any()):
                print(opened.describe_errors(x, result.mean, result.x, hidden))
        _print_scores(opened, x, labels, observed, num_samples)
    print_scale(run)
    if path is not None:
        _write_imputation(opened, path, result)
    _write_imputation_picture(opened, x, noisy, observed, result)


def encode(
    run: Run,
    *,
    output: Path,
    split: SplitName = "test",
    num_data: int | None = None,
    seed: int = 0,
) -> None:
    """Encode examples and save their latents to a file.

    Arguments:
        output: .npz or .csv file for the latents, the labels and the rows of the examples.
    """
    path = check_output(run, output)
    opened = open_run(run, split, num_data, seed)
    columns = queries.encode(opened.program, opened.split, seed=seed)
    write_examples(path, columns, classes=run.classes)


COMMANDS: tuple[Command, ...] = (infer, encode)


def _choose_observed(
    opened: OpenedRun, missing: str | None, columns: list[str] | str | None
) -> Tensor:
    """Return the mask of the observed values, of the shape of one example.

    Raises:
        ValueError: if no value is missing, or if the data are not a table with the columns.
    """
    from ..report import pictures

    shape = opened.program.event_shape
    if columns is not None:
        if missing is not None:
            raise ValueError("expected --missing or --columns; got both")
        if opened.run.columns is None:
            raise ValueError(
                f"expected a table for --columns; the data of {opened.run.folder} have no names of "
                f"columns: use --missing"
            )
        return queries.mask_columns(columns, opened.run.columns)
    if missing is not None:
        return queries.mask(missing, shape, opened.seed)
    if pictures.is_image(shape):
        return queries.mask("lower-half", shape, opened.seed)
    if not opened.split.has_missing:
        named = "--columns NAMES or " if opened.run.columns is not None else ""
        raise ValueError(
            f"expected missing values to infer; got {len(opened.split)} complete examples: name "
            f"others by {named}--missing random:FRACTION"
        )
    return torch.ones(shape, dtype=torch.bool)


def _add_noise(
    x: Tensor, strength: float | None, kind: Kind, seed: int
) -> tuple[Tensor, queries.Noise | None]:
    generator = torch.Generator().manual_seed(seed)
    if strength is None:
        return x, None
    if kind is Kind.BINARY:
        flipped = torch.rand(x.shape, generator=generator) < strength
        return torch.where(flipped, 1 - x, x), queries.Flip(strength)
    added = strength * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return x + added, queries.AdditiveNormal(strength)


def _print_scores(
    opened: OpenedRun, x: Tensor, args: tuple[Tensor, ...], observed: Tensor, num_samples: int
) -> None:
    """Print log p̂ of the missing pixels, and of independent pixels as a baseline."""
    complete = ~x.flatten(1).isnan().any(1) if x.ndim > 1 else ~x.isnan()
    if not bool(complete.any()):
        print("log p̂(x_mis | x_obs) needs complete examples: all have NaN, which was inferred")
        return
    args, _ = map_batched(lambda t: t[complete], len(x), args, {})
    x = x[complete]
    score = queries.score_missing(
        opened.program, x, *args, observed=observed, num_samples=num_samples, seed=opened.seed
    )
    subset = "" if bool(complete.all()) else f" of {len(x)} complete examples"
    print(
        f"log p̂(x_mis | x_obs){subset}: {format_mean(score.value)} nats per datum, worst k̂ "
        f"{score.khat.max():.2f}"
    )
    likelihood = getattr(opened.program, "likelihood", None)
    binary = opened.data.kind is Kind.BINARY
    if likelihood is not None and likelihood.measure == ("probability" if binary else "density"):
        train = opened.data.train
        # new data have no training data
        if not len(train) or is_large(train) or train.has_missing:
            return
        baseline = queries.score_pixelwise(train.materialize(opened.seed), x, observed)
        print(f"independent pixels (mean imputation): {format_mean(baseline)} nats per datum")


def _write_imputation(opened: OpenedRun, path: Path, result: queries.Imputation) -> None:
    """Write samples in the units of the data; in a CSV file, one after the other."""
    x, rows = opened.in_data_units(result.x), opened.rows
    quality = {"log_evidence": result.log_evidence, "khat": result.khat}
    if path.suffix != ".csv":
        mean = opened.in_data_units(result.mean)
        write_examples(path, {"row": rows, "x": x, "mean": mean, **quality})
        return
    draws, size = x.shape[:2]
    # the samples of an example follow one another
    arrays: dict[str, Tensor] = {
        "row": rows.repeat_interleave(draws),
        "draw": torch.arange(draws).repeat(size),
        "x": x.transpose(0, 1).flatten(0, 1),
        **{name: value.repeat_interleave(draws) for name, value in quality.items()},
    }
    write_examples(path, arrays, columns=opened.run.columns)


def _write_imputation_picture(
    opened: OpenedRun, x: Tensor, noisy: Tensor, observed: Tensor, result: queries.Imputation
) -> None:
    from ..report import pictures

    if not pictures.is_image(opened.data.event_shape):
        return
    known = x[~x.isnan()]
    low, high = float(known.min()), float(known.max())
    masked = torch.where(observed, noisy.clamp(low, high), low + 0.5 * (high - low))
    images = torch.cat([x[None], masked[None], result.means, result.mean[None]])
    caption = (
        "From left to right: the example, its observed pixels, the mean of p(x|z) for several "
        "posterior samples of z, and the posterior mean."
    )
    opened.write_rows("infer", "Imputation", caption, images.transpose(0, 1))
