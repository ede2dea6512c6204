"""Commands that use a trained model, with pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import data, queries
from ..config import experiment
from ..core.components import Labels
from ..data import Dataset, Kind, Split
from ..data.splits import are_class_labels
from ..programs.base import Program, label_use
from ..programs.inputs import program_args
from ..runs.run import Run
from .options import Command, make_data_parser, make_parser

__all__ = ["COMMANDS"]


class _Context(NamedTuple):
    """An opened run with the options of the command."""

    run: Run
    experiment: experiment.Experiment
    data: Dataset
    program: Any
    split: Split
    options: dict[str, Any]

    def inputs(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the examples and the other arguments of the program."""
        x, *labels = program_args(self.program, self.split, self.options["seed"])
        return x, tuple(labels)


def sample(args: list[str]) -> None:
    """Generate new examples from the model, one row per class for class-conditional models."""
    from ..report import pictures

    parser = make_parser(sample)
    parser.add_argument("run", type=str, help="folder of a finished run")
    parser.add_argument("--seed", type=int, default=0, help="seed of sampling")
    context = _open_context(parser, args, split="test", num_data=None)
    _check_images(context)
    seed = context.options["seed"]
    _write_picture(context, pictures.sample_picture(context.program, context.split, seed))


def reconstruct(args: list[str]) -> None:
    """Reconstruct examples from samples of q(z|x)."""
    from ..report import pictures

    context = _open_context(make_data_parser(reconstruct, 48), args)
    x, labels = context.inputs()
    seed = context.options["seed"]
    generated = queries.reconstruct(context.program, x, *labels, seed=seed)
    assert generated.mean is not None
    error = (generated.mean - x).flatten(1).square().mean(1)
    print(
        f"{len(x)} examples; mean squared error of the mean of p(x|z): {_format_mean(error, 5)} "
        f"per dimension"
    )
    if pictures.is_image(context.data.event_shape):
        picture = pictures.reconstruction_picture(context.program, context.split, seed)
        _write_picture(context, picture)


def interpolate(args: list[str]) -> None:
    """Interpolate between pairs of examples in latent space."""
    from ..report import pictures

    parser = make_data_parser(interpolate, 8)
    parser.add_argument(
        "--steps", type=int, default=10, help="points per path, including both ends"
    )
    parser.add_argument(
        "--path",
        type=Literal["spherical", "straight"],
        default="spherical",
        help="shape of the path in latent space",
    )
    context = _open_context(parser, args, in_pairs=True)
    _check_images(context)
    x, labels = context.inputs()
    first, second = _find_pairs(context, len(x))
    options = {key: context.options[key] for key in ("steps", "path", "seed")}
    path = queries.interpolate(
        context.program, x[first], x[second], *(a[first] for a in labels), **options
    )
    assert path.mean is not None
    print(f"{len(first)} paths of {len(path.mean)} points, {options['path']}")
    # show the examples themselves at both ends
    images = torch.cat([x[first][None], path.mean, x[second][None]]).transpose(0, 1)
    caption = "The two examples at the ends of each row, and the mean of p(x|z) along the path."
    _write_picture(context, pictures.image_rows("interpolate", "Interpolation", caption, images))


def traverse(args: list[str]) -> None:
    """Vary one latent dimension at a time, starting from an example."""
    from ..report import pictures

    parser = make_data_parser(traverse, 500)
    parser.add_argument("--datum", type=int, default=0, help="index of the example to start from")
    parser.add_argument(
        "--dims",
        type=list[int] | None,
        default=None,
        help="latent dimensions; by default the ten whose posterior means vary most",
    )
    parser.add_argument(
        "--values",
        type=list[float] | None,
        default=None,
        help="values of each dimension; by default quantiles of the prior",
    )
    context = _open_context(parser, args)
    _check_images(context)
    x, labels = context.inputs()
    options = context.options
    datum = options["datum"]
    if not 0 <= datum < len(x):
        raise ValueError(f"expected datum from 0 to {len(x) - 1}; got {datum}")
    dims = options["dims"] or _most_active_dims(context.program, x, labels)
    rows = slice(datum, datum + 1)
    path = queries.traverse(
        context.program,
        x[rows],
        *(a[rows] for a in labels),
        dims=dims,
        values=options["values"],
        seed=options["seed"],
    )
    assert path.mean is not None
    print(f"one row per latent dimension: {', '.join(map(str, dims))}")
    caption = "The mean of p(x|z), with one dimension of z varied from low to high in each row."
    picture = pictures.image_rows("traverse", "Latent traversal", caption, path.mean[:, :, 0])
    _write_picture(context, picture)


def infer(args: list[str]) -> None:
    """Infer missing or noisy pixels: in-painting, super-resolution and denoising."""
    parser = make_data_parser(infer, 10)
    parser.add_argument(
        "--missing",
        type=str,
        default="lower-half",
        help="missing pixels: none, lower-half, upper-half, left-half, right-half, "
        "random:FRACTION or every:N (all but every Nth row and column)",
    )
    parser.add_argument(
        "--noise",
        type=float | None,
        default=None,
        help="noise of the observed pixels: flip probability of 0/1 data, or σ of additive "
        "Gaussian noise",
    )
    parser.add_argument(
        "--method",
        type=Literal["importance", "hmc"],
        default="importance",
        help="sampling method",
    )
    parser.add_argument("--num-samples", type=int, default=2000, help="proposals per example")
    parser.add_argument("--draws", type=int, default=8, help="samples to show per example")
    context = _open_context(parser, args)
    x, labels = context.inputs()
    options = context.options
    seed, num_samples = options["seed"], options["num_samples"]
    observed = queries.mask(options["missing"], context.data.event_shape, seed)
    noise = _make_noise(options["noise"], context.data.kind)
    noisy = _add_noise(x, noise, seed)
    result = queries.impute(
        context.program,
        noisy,
        *labels,
        observed=observed,
        noise=noise,
        draws=options["draws"],
        num_samples=num_samples,
        method=options["method"],
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
        _print_scores(context, x, labels, observed)
    _write_imputation_picture(context, x, noisy, observed, result)


def anomaly(args: list[str]) -> None:
    """Detect anomalies by the ELBO and log p̂, against another data set or an unseen class."""
    from ..report import pictures, plots

    parser = make_data_parser(anomaly, 1000)
    parser.add_argument(
        "--against", type=str | None, default=None, metavar="DATASET", help="anomalous data set"
    )
    parser.add_argument(
        "--against-class",
        type=int | None,
        default=None,
        metavar="CLASS",
        help="anomalous class of the run's data, excluded from training by --data.without_class",
    )
    parser.add_argument("--num-samples", type=int, default=100, help="samples per example")
    context = _open_context(parser, args)
    options = context.options
    normal, anomalous, name = _find_splits(context)
    print(
        f"{len(normal)} examples of the run, {len(anomalous)} of {name}; ± is DeLong's standard "
        f"error"
    )
    scores = {
        score: [
            queries.anomaly_scores(
                context.program,
                split,
                score=score,
                num_samples=options["num_samples"],
                seed=options["seed"],
            )
            for split in (normal, anomalous)
        ]
        for score in ("elbo", "log_evidence")
    }
    for score, title in (("elbo", "ELBO"), ("log_evidence", "log p̂")):
        both = scores[score]
        auroc = queries.auroc(*both)
        means = " and ".join(f"{values.mean():.2f}" for values in both)
        print(f"{title}: AUROC {auroc.value:.4f} ± {auroc.se:.4f}; means {means} nats")
    figure = plots.plot_histograms(scores["elbo"], ["run's data", name], "ELBO (nats)")
    _write_picture(context, pictures.Picture("anomaly", "Anomaly detection", "", figure))


def encode(args: list[str]) -> None:
    """Encode examples and save their latents to an .npz file."""
    parser = make_data_parser(encode, None)
    parser.add_argument("--output", type=str, required=True, metavar="FILE", help=".npz file")
    context = _open_context(parser, args)
    columns = queries.encode(
        context.program, context.split, path=context.options["output"], seed=context.options["seed"]
    )
    for name, values in columns.items():
        print(f"{name}: {values.dtype} {values.shape}")
    print(f"latents: {Path(context.options['output']).resolve()}")


COMMANDS: tuple[Command, ...] = (
    sample,
    reconstruct,
    interpolate,
    traverse,
    infer,
    anomaly,
    encode,
)


def _open_context(parser: Any, args: list[str], in_pairs: bool = False, **fixed: Any) -> _Context:
    options = {**experiment.parse_args(parser, args).as_dict(), **fixed}
    run, num_data = Run(options.pop("run")), options["num_data"]
    # ten times as many examples, so that enough of them can be paired
    size = 10 * num_data if in_pairs and num_data is not None else num_data
    return _Context(run, *run.open_split(options["split"], size), options)


def _check_images(context: _Context) -> None:
    from ..report import pictures

    if not pictures.is_image(context.data.event_shape):
        raise ValueError(
            f"expected greyscale images; the data of {context.run.folder} have shape "
            f"{context.data.event_shape}: use pyro_vae.queries from Python"
        )


def _write_picture(context: _Context, picture: Any) -> None:
    print(f"picture: {picture.write(context.run.figures).resolve()}")


def _format_mean(values: Tensor | np.ndarray, digits: int = 3) -> str:
    """Format the mean over examples with its standard error."""
    values = np.asarray(values.cpu() if isinstance(values, Tensor) else values, np.float64)
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{values.mean():.{digits}f} ± {error:.{digits}f}"


def _find_pairs(context: _Context, size: int) -> tuple[list[int], list[int]]:
    """Return the ends of the paths, with equal labels if the program conditions on labels."""
    num_pairs, labels = context.options["num_data"], context.split.labels
    conditioned = label_use(context.program) is Labels.CONDITION and labels is not None
    first, second, free = [], [], list(range(size))
    while free and len(first) < num_pairs:
        a = free.pop(0)
        b = next(
            (i for i in free if not conditioned or torch.equal(labels[a], labels[i])),  # type: ignore[index]
            None,
        )
        if b is not None:
            free.remove(b)
            first.append(a)
            second.append(b)
    if not first:
        raise ValueError("expected at least two examples with equal labels; found none")
    return first, second


def _most_active_dims(program: Program, x: Tensor, args: tuple[Tensor, ...]) -> list[int]:
    """Return the ten dimensions of the first continuous site whose means vary most."""
    columns = queries.encode(program, x, *args)
    suffixes = (".mean", ".direction", ".draw")
    means = next((v for n, v in columns.items() if n.endswith(suffixes)), None)
    if means is None:
        raise ValueError("expected a model with continuous latents; it has none")
    spread = means.reshape(len(means), -1).std(0)
    return [int(d) for d in np.argsort(-spread)[:10]]


def _make_noise(strength: float | None, kind: Kind) -> queries.Noise | None:
    if strength is None:
        return None
    return queries.Flip(strength) if kind is Kind.BINARY else queries.AdditiveNormal(strength)


def _add_noise(x: Tensor, noise: queries.Noise | None, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if isinstance(noise, queries.Flip):
        flipped = torch.rand(x.shape, generator=generator) < noise.probability
        return torch.where(flipped, 1 - x, x)
    if isinstance(noise, queries.AdditiveNormal):
        return x + noise.scale * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return x


def _print_scores(context: _Context, x: Tensor, args: tuple[Tensor, ...], observed: Tensor) -> None:
    """Print log p̂ of the missing pixels, and of independent pixels as a baseline."""
    options = context.options
    score = queries.score_missing(
        context.program,
        x,
        *args,
        observed=observed,
        num_samples=options["num_samples"],
        seed=options["seed"],
    )
    print(
        f"log p̂(x_mis | x_obs): {_format_mean(score.value)} nats per datum, worst k̂ "
        f"{score.khat.max():.2f}"
    )
    likelihood = getattr(context.program, "likelihood", None)
    binary = context.data.kind is Kind.BINARY
    if likelihood is not None and likelihood.measure == ("probability" if binary else "density"):
        train = context.data.train.materialize(options["seed"])
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
    _write_picture(
        context, pictures.image_rows("infer", "Imputation", caption, images.transpose(0, 1))
    )


def _find_splits(context: _Context) -> tuple[Split, Split, str]:
    """Return the normal examples, the anomalous ones and the name of the latter."""
    dataset, cls = context.options["against"], context.options["against_class"]
    if (dataset is None) == (cls is None):
        raise ValueError("expected either --against DATASET or --against-class CLASS")
    split = context.split
    if dataset is not None:
        root = context.experiment.settings.data.root
        other = data.load(
            dataset, binarize=context.data.binarize, values=context.data.values, root=root
        )
        if other.event_shape != context.data.event_shape:
            raise ValueError(
                f"expected data of shape {context.data.event_shape}; {dataset} has "
                f"{other.event_shape}"
            )
        return split, getattr(other, context.options["split"]).head(len(split)), dataset
    has_classes = split.labels is not None and are_class_labels(split.labels)
    classes = split.labels.unique().tolist() if has_classes else []  # type: ignore[union-attr]
    if cls not in classes:
        known = ", ".join(map(str, classes)) or "none"
        raise ValueError(f"expected --against-class to be a class of the data, {known}; got {cls}")
    assert split.labels is not None
    return split.at(split.labels != cls), split.at(split.labels == cls), f"class {cls}"
