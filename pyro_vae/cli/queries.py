"""Commands that use a trained model, with pictures."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import data, queries
from ..config.experiment import Experiment
from ..core.components import Labels
from ..core.validation import as_path, positive_int
from ..data import Dataset, Kind, Split
from ..data.splits import are_class_labels
from ..evaluation.sections import Picture
from ..evaluation.slices import SplitName
from ..programs.base import Program, label_use
from ..programs.inputs import program_args
from ..runs.run import Run
from .parsers import Command

__all__ = ["COMMANDS"]


class _Context(NamedTuple):
    """An opened run with a part of its data."""

    run: Run
    experiment: Experiment
    data: Dataset
    program: Any
    split: Split
    seed: int

    def inputs(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the examples and the other arguments of the program."""
        x, *labels = program_args(self.program, self.split, self.seed)
        return x, tuple(labels)

    def write(self, picture: Picture) -> None:
        print(f"picture: {picture.write(self.run.figures).resolve()}")

    def write_rows(self, name: str, title: str, caption: str, images: Tensor) -> None:
        from ..report import pictures

        self.write(pictures.image_rows(name, title, caption, images))


def sample(run: Run, *, seed: int = 0) -> None:
    """Generate new examples from the model, one row per class for class-conditional models."""
    from ..report import pictures

    context = _open_images(run, "test", None, seed)
    context.write(pictures.sample_picture(context.program, context.split, seed))


def reconstruct(
    run: Run, *, split: SplitName = "test", num_data: int | None = 48, seed: int = 0
) -> None:
    """Reconstruct examples from samples of q(z|x)."""
    from ..report import pictures

    context = _open_run(run, split, num_data, seed)
    x, labels = context.inputs()
    generated = queries.reconstruct(context.program, x, *labels, seed=seed)
    assert generated.mean is not None
    error = (generated.mean - x).reshape(len(x), -1).square().mean(1)
    print(
        f"{len(x)} examples; mean squared error of the mean of p(x|z): {_format_mean(error, 5)} "
        f"per dimension"
    )
    if pictures.is_image(context.data.event_shape):
        context.write(pictures.reconstruction_picture(context.program, context.split, seed))


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
    context = _open_images(run, split, 10 * positive_int("num_data", num_data), seed)
    x, labels = context.inputs()
    first, second = _find_pairs(context, num_data)
    between = queries.interpolate(
        context.program,
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
    context.write_rows("interpolate", "Interpolation", caption, images)


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
    context = _open_images(run, split, num_data, seed)
    x, labels = context.inputs()
    if not 0 <= datum < len(x):
        raise ValueError(f"expected datum from 0 to {len(x) - 1}; got {datum}")
    if dims is None:
        dims = _most_active_dims(context.program, x, labels)
    rows = slice(datum, datum + 1)
    path = queries.traverse(
        context.program, x[rows], *(a[rows] for a in labels), dims=dims, values=values, seed=seed
    )
    assert path.mean is not None
    print(f"one row per latent dimension: {', '.join(map(str, dims))}")
    caption = "The mean of p(x|z), with one dimension of z varied from low to high in each row."
    context.write_rows("traverse", "Latent traversal", caption, path.mean[:, :, 0])


def infer(
    run: Run,
    *,
    split: SplitName = "test",
    num_data: int | None = 10,
    seed: int = 0,
    missing: str = "lower-half",
    noise: float | None = None,
    method: Literal["importance", "hmc"] = "importance",
    num_samples: int = 2000,
    draws: int = 8,
) -> None:
    """Infer missing or noisy pixels: in-painting, super-resolution and denoising.

    Arguments:
        missing: missing pixels: none, lower-half, upper-half, left-half, right-half,
            random:FRACTION or every:N (all but every Nth row and column).
        noise: noise of the observed pixels: flip probability of 0/1 data, or σ of additive
            Gaussian noise.
        method: sampling method.
        num_samples: proposals per example.
        draws: samples to show per example.
    """
    context = _open_run(run, split, num_data, seed)
    x, labels = context.inputs()
    observed = queries.mask(missing, context.data.event_shape, seed)
    noisy, corruption = _add_noise(x, noise, context.data.kind, seed)
    result = queries.impute(
        context.program,
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
    print(
        f"{len(x)} examples, {count} of {observed.numel()} pixels observed, {num_samples} "
        f"proposals per example"
    )
    print(f"log p̂(x_obs): {_format_mean(result.log_evidence)} nats per datum")
    khat, ess = result.khat, result.ess
    print(f"k̂ median {khat.median():.2f}, worst {khat.max():.2f}; ESS median {ess.median():.1f}")
    if result.acceptance is not None:
        print(f"HMC acceptance rate: {result.acceptance.mean():.2f}")
    if result.warning:
        print(result.warning)
    if noise is None and count < observed.numel():
        _print_scores(context, x, labels, observed, num_samples)
    _write_imputation_picture(context, x, noisy, observed, result)


def anomaly(
    run: Run,
    *,
    split: SplitName = "test",
    num_data: int | None = 1000,
    seed: int = 0,
    against: str | None = None,
    against_class: int | None = None,
    num_samples: int = 100,
) -> None:
    """Detect anomalies by the ELBO and log p̂, against another data set or an unseen class.

    Arguments:
        against: anomalous data set.
        against_class: anomalous class of the run's data, excluded from training by
            --data.without_class.
        num_samples: samples per example.
    """
    from ..report import plots

    if (against is None) == (against_class is None):
        raise ValueError("expected either --against DATASET or --against-class CLASS")
    context = _open_run(run, split, num_data, seed)
    if against is not None:
        name, normal = against, context.split
        anomalous = _load_like(context, against).take(split, len(normal))
    else:
        name, labels = f"class {against_class}", _find_class(context, against_class)
        normal = context.split.at(labels != against_class)
        anomalous = context.split.at(labels == against_class)
    print(
        f"{len(normal)} examples of the run, {len(anomalous)} of {name}; ± is DeLong's standard "
        f"error"
    )
    titles: dict[Literal["elbo", "log_evidence"], str] = {"elbo": "ELBO", "log_evidence": "log p̂"}
    scores = {}
    for score, title in titles.items():
        both = scores[score] = [
            queries.anomaly_scores(
                context.program, part, score=score, num_samples=num_samples, seed=seed
            )
            for part in (normal, anomalous)
        ]
        auroc = queries.auroc(*both)
        means = " and ".join(f"{values.mean():.2f}" for values in both)
        print(f"{title}: AUROC {auroc.value:.4f} ± {auroc.se:.4f}; means {means} nats")
    figure = plots.plot_histograms(scores["elbo"], ["run's data", name], "ELBO (nats)")
    context.write(Picture("anomaly", "Anomaly detection", "", figure))


def encode(
    run: Run,
    *,
    output: Path,
    split: SplitName = "test",
    num_data: int | None = None,
    seed: int = 0,
) -> None:
    """Encode examples and save their latents to an .npz file.

    Arguments:
        output: the .npz file.
    """
    output = _check_output(run, output)
    context = _open_run(run, split, num_data, seed)
    path = context.experiment.settings.data.path
    if path is not None and output.exists() and output.samefile(path):
        raise ValueError(f"expected another --output than the data of the run; got {output}")
    columns = queries.encode(context.program, context.split, path=output, seed=seed)
    for name, values in columns.items():
        print(f"{name}: {values.dtype} {values.shape}")
    print(f"latents: {output.resolve()}")


COMMANDS: tuple[Command, ...] = (
    *(sample, reconstruct, interpolate, traverse),
    *(infer, anomaly, encode),
)


def _open_run(run: Run, split: str, num_data: int | None, seed: int) -> _Context:
    return _Context(run, *run.open_split(split, num_data), seed)


def _open_images(run: Run, split: str, num_data: int | None, seed: int) -> _Context:
    from ..report import pictures

    context = _open_run(run, split, num_data, seed)
    if not pictures.is_image(context.data.event_shape):
        raise ValueError(
            f"expected images, grey (H, W) or (1, H, W) or colour (3, H, W); the data of "
            f"{context.run.folder} have shape {context.data.event_shape}: use pyro_vae.queries "
            f"from Python"
        )
    return context


def _check_output(run: Run, output: Path) -> Path:
    """Return the path of a file that can be written and does not belong to the run.

    Raises:
        ValueError: if it cannot be written, which would otherwise be known after the work.
    """
    path = as_path(output)
    if path.resolve().is_relative_to(run.folder.resolve()):
        raise ValueError(
            f"expected --output outside the folder of the run, whose files it could replace; got "
            f"{output}: choose another folder"
        )
    if path.is_dir():
        raise ValueError(f"expected --output to be a file; got the folder {output}: add a name")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        with TemporaryFile(dir=folder):
            return path
    except OSError as error:
        raise ValueError(
            f"expected --output in a folder that can be written; got {folder}: {error.strerror}"
        ) from error


def _format_mean(values: Tensor | np.ndarray, digits: int = 3) -> str:
    """Format the mean over examples with its standard error."""
    values = np.asarray(values.cpu() if isinstance(values, Tensor) else values, np.float64)
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{values.mean():.{digits}f} ± {error:.{digits}f}"


def _find_pairs(context: _Context, num_pairs: int) -> tuple[list[int], list[int]]:
    """Return the ends of the paths, with equal labels if the program conditions on labels."""
    labels = context.split.labels
    conditioned = label_use(context.program) is Labels.CONDITION and labels is not None
    pairs, unpaired = [], dict[Any, int]()
    for i in range(len(context.split)):
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
    context: _Context, x: Tensor, args: tuple[Tensor, ...], observed: Tensor, num_samples: int
) -> None:
    """Print log p̂ of the missing pixels, and of independent pixels as a baseline."""
    score = queries.score_missing(
        context.program, x, *args, observed=observed, num_samples=num_samples, seed=context.seed
    )
    print(
        f"log p̂(x_mis | x_obs): {_format_mean(score.value)} nats per datum, worst k̂ "
        f"{score.khat.max():.2f}"
    )
    likelihood = getattr(context.program, "likelihood", None)
    binary = context.data.kind is Kind.BINARY
    if likelihood is not None and likelihood.measure == ("probability" if binary else "density"):
        train = context.data.train.materialize(context.seed)
        baseline = queries.score_pixelwise(train, x, observed)
        print(f"independent pixels (mean imputation): {_format_mean(baseline)} nats per datum")


def _write_imputation_picture(
    context: _Context, x: Tensor, noisy: Tensor, observed: Tensor, result: queries.Imputation
) -> None:
    from ..report import pictures

    if not pictures.is_image(context.data.event_shape):
        return
    low, high = float(x.min()), float(x.max())
    masked = torch.where(observed, noisy.clamp(low, high), low + 0.5 * (high - low))
    images = torch.cat([x[None], masked[None], result.means, result.mean[None]])
    caption = (
        "From left to right: the example, its observed pixels, the mean of p(x|z) for several "
        "posterior samples of z, and the posterior mean."
    )
    context.write_rows("infer", "Imputation", caption, images.transpose(0, 1))


def _load_like(context: _Context, name: str) -> Dataset:
    """Load another data set in the representation of the run's data."""
    root = context.experiment.settings.data.root
    other = data.load(name, binarize=context.data.binarize, values=context.data.values, root=root)
    if other.event_shape != context.data.event_shape:
        raise ValueError(
            f"expected data of shape {context.data.event_shape}; {name} has {other.event_shape}"
        )
    return other


def _find_class(context: _Context, cls: int | None) -> Tensor:
    """Return the labels, which include the class."""
    labels = context.split.labels
    classes = []
    if labels is not None and are_class_labels(labels):
        classes = labels.unique().tolist()
    if labels is None or cls not in classes:
        known = ", ".join(map(str, classes)) or "none"
        raise ValueError(f"expected --against-class to be a class of the data, {known}; got {cls}")
    return labels
