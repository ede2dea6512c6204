"""The verbs of the command line that use a trained model, with pictures."""

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
from ..data.splits import is_class
from ..programs.base import Program, label_use
from ..programs.inputs import program_args
from ..runs.run import Run
from .options import Command, parser, with_data

__all__ = ["COMMANDS"]


class _Opened(NamedTuple):
    """What a command works on."""

    run: Run
    experiment: experiment.Experiment
    data: Dataset
    program: Any
    part: Split
    options: dict[str, Any]

    def inputs(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The data, and what else the program is called with."""
        x, *labels = program_args(self.program, self.part, self.options["seed"])
        return x, tuple(labels)


def sample(words: list[str]) -> None:
    """draw new data from the model, by class where it knows classes"""
    from ..report import pictures

    made = parser(sample)
    made.add_argument("run", type=str, help="the folder of a finished run")
    made.add_argument("--seed", type=int, default=0, help="of the draws")
    opened = _open(made, words, split="test", num_data=None)
    _check_images(opened)
    _show(opened, pictures.samples(opened.program, opened.part, opened.options["seed"]))


def reconstruct(words: list[str]) -> None:
    """decode draws of q(z|x), beside the data"""
    from ..report import pictures

    opened = _open(with_data(reconstruct, 48), words)
    x, args = opened.inputs()
    seed = opened.options["seed"]
    made = queries.reconstruct(opened.program, x, *args, seed=seed)
    assert made.mean is not None
    error = (made.mean - x).flatten(1).square().mean(1)
    print(f"{len(x)} data; squared error of the mean of p(x|z), per number: {_told(error, 5)}")
    if pictures.is_image(opened.data.event_shape):
        _show(opened, pictures.reconstructions(opened.program, opened.part, seed))


def interpolate(words: list[str]) -> None:
    """walk from datum to datum through the latents"""
    from ..report import pictures

    made = with_data(interpolate, 8)
    made.add_argument("--steps", type=int, default=10, help="points on a path, both ends included")
    made.add_argument(
        "--path", type=Literal["spherical", "straight"], default="spherical", help="through z"
    )
    opened = _open(made, words, twice=True)
    _check_images(opened)
    x, args = opened.inputs()
    first, second = _pairs(opened, len(x))
    options = {key: opened.options[key] for key in ("steps", "path", "seed")}
    walk = queries.interpolate(
        opened.program, x[first], x[second], *(a[first] for a in args), **options
    )
    assert walk.mean is not None
    print(f"{len(first)} paths of {len(walk.mean)} points, {options['path']}")
    # the data themselves at both ends
    images = torch.cat([x[first][None], walk.mean, x[second][None]]).transpose(0, 1)
    caption = "The data at both ends, and the mean of p(x|z) at points between."
    _show(opened, pictures.rows("interpolate", "Interpolation", caption, images))


def traverse(words: list[str]) -> None:
    """move one latent coordinate at a time, the others where a datum has them"""
    from ..report import pictures

    made = with_data(traverse, 500)
    made.add_argument("--datum", type=int, default=0, help="which of the data to start from")
    made.add_argument(
        "--dims", type=list[int] | None, default=None, help="the ten that vary most, or [some]"
    )
    made.add_argument(
        "--values", type=list[float] | None, default=None, help="quantiles of the prior, or [some]"
    )
    opened = _open(made, words)
    _check_images(opened)
    x, args = opened.inputs()
    options = opened.options
    datum = options["datum"]
    if not 0 <= datum < len(x):
        raise ValueError(f"expected datum from 0 to {len(x) - 1}; got {datum}")
    dims = options["dims"] or _active(opened.program, x, args)
    one = slice(datum, datum + 1)
    walk = queries.traverse(
        opened.program,
        x[one],
        *(a[one] for a in args),
        dims=dims,
        values=options["values"],
        seed=options["seed"],
    )
    assert walk.mean is not None
    print(f"a row each for the latent coordinates {', '.join(map(str, dims))}")
    caption = "One coordinate of z in each row, from low to high; the mean of p(x|z) is shown."
    _show(opened, pictures.rows("traverse", "Traversal", caption, walk.mean[:, :, 0]))


def infer(words: list[str]) -> None:
    """infer what was not seen: in-paint, super-resolve or denoise, with several draws"""
    made = with_data(infer, 10)
    made.add_argument(
        "--missing",
        type=str,
        default="lower-half",
        help="none, lower-half, upper-half, left-half, right-half, random:FRACTION or every:N "
        "(only every Nth row and column is seen)",
    )
    made.add_argument(
        "--noise",
        type=float | None,
        default=None,
        help="of what is seen: the probability of flips of 0/1, or σ added to real numbers",
    )
    made.add_argument(
        "--method", type=Literal["importance", "hmc"], default="importance", help="of the draws"
    )
    made.add_argument("--num-samples", type=int, default=2000, help="proposals for each datum")
    made.add_argument("--draws", type=int, default=8, help="draws to show of each datum")
    opened = _open(made, words)
    x, args = opened.inputs()
    options = opened.options
    seed, num_samples = options["seed"], options["num_samples"]
    observed = queries.mask(options["missing"], opened.data.event_shape, seed)
    noise = _noise(options["noise"], opened.data.kind)
    seen = _noisy(x, noise, seed)
    result = queries.impute(
        opened.program,
        seen,
        *args,
        observed=observed,
        noise=noise,
        draws=options["draws"],
        num_samples=num_samples,
        method=options["method"],
        seed=seed,
    )
    left = int(observed.sum())
    print(f"{len(x)} data, {left} of {observed.numel()} pixels seen, {num_samples} proposals each")
    print(f"log p̂(x_obs): {_told(result.log_evidence)} nats per datum")
    khat, ess = result.khat, result.ess
    print(f"k̂ median {khat.median():.2f}, worst {khat.max():.2f}; ESS median {ess.median():.1f}")
    if result.acceptance is not None:
        print(f"HMC: {result.acceptance.mean():.2f} of the proposals accepted")
    if result.warning:
        print(result.warning)
    if noise is None and left < observed.numel():
        _print_score(opened, x, args, observed)
    _show_inferred(opened, x, seen, observed, result)


def anomaly(words: list[str]) -> None:
    """tell other data, or a class, from held-out data by the ELBO and log p̂"""
    from ..report import pictures, plots

    made = with_data(anomaly, 1000)
    made.add_argument(
        "--against", type=str | None, default=None, metavar="DATASET", help="other data"
    )
    made.add_argument(
        "--against-class",
        type=int | None,
        default=None,
        help="a class of the run's own data, which it was trained without (--data.without_class)",
    )
    made.add_argument("--num-samples", type=int, default=100, help="draws for each datum")
    opened = _open(made, words)
    options = opened.options
    normal, other, name = _kinds(opened)
    print(f"{len(normal)} data of the run, {len(other)} of {name}; ± is DeLong's standard error")
    scores = {
        score: [
            queries.anomaly_scores(
                opened.program,
                part,
                score=score,
                num_samples=options["num_samples"],
                seed=options["seed"],
            )
            for part in (normal, other)
        ]
        for score in ("elbo", "log_evidence")
    }
    for score, title in (("elbo", "ELBO"), ("log_evidence", "log p̂")):
        both = scores[score]
        area = queries.auroc(*both)
        means = " and ".join(f"{values.mean():.2f}" for values in both)
        print(f"{title}: AUROC {area.value:.4f} ± {area.se:.4f}; means {means} nats")
    figure = plots.histograms(scores["elbo"], ["the run's own", name], "ELBO (nats)")
    _show(opened, pictures.Picture("anomaly", "Anomaly", "", figure))


def encode(words: list[str]) -> None:
    """write the latents of data to an .npz file"""
    made = with_data(encode, None)
    made.add_argument("--output", type=str, required=True, metavar="FILE", help="the .npz file")
    opened = _open(made, words)
    columns = queries.encode(
        opened.program, opened.part, path=opened.options["output"], seed=opened.options["seed"]
    )
    for name, values in columns.items():
        print(f"{name}: {values.dtype} {values.shape}")
    print(f"latents: {Path(opened.options['output']).resolve()}")


COMMANDS: tuple[Command, ...] = (
    sample,
    reconstruct,
    interpolate,
    traverse,
    infer,
    anomaly,
    encode,
)


def _open(made: Any, words: list[str], twice: bool = False, **fixed: Any) -> _Opened:
    options = {**experiment.explained(made, words).as_dict(), **fixed}
    run, wanted = Run(options.pop("run")), options["num_data"]
    # of ten times as many, enough have a partner
    size = 10 * wanted if twice and wanted is not None else wanted
    return _Opened(run, *run.opened(options["split"], size), options)


def _check_images(opened: _Opened) -> None:
    from ..report import pictures

    if not pictures.is_image(opened.data.event_shape):
        raise ValueError(
            f"expected grey images to draw; data of {opened.run.folder} have shape "
            f"{opened.data.event_shape}: use pyro_vae.queries from Python"
        )


def _show(opened: _Opened, picture: Any) -> None:
    print(f"picture: {picture.write(opened.run.figures).resolve()}")


def _told(values: Tensor | np.ndarray, digits: int = 3) -> str:
    """A mean over data with its standard error."""
    values = np.asarray(values.cpu() if isinstance(values, Tensor) else values, np.float64)
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{values.mean():.{digits}f} ± {error:.{digits}f}"


def _pairs(opened: _Opened, size: int) -> tuple[list[int], list[int]]:
    """Data at the two ends of paths: of one class where the program conditions on it."""
    wanted, labels = opened.options["num_data"], opened.part.labels
    conditioned = label_use(opened.program) is Labels.CONDITION and labels is not None
    first, second, free = [], [], list(range(size))
    while free and len(first) < wanted:
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
        raise ValueError("expected two data that are conditioned on the same; found none")
    return first, second


def _active(program: Program, x: Tensor, args: tuple[Tensor, ...]) -> list[int]:
    """The ten coordinates of the first continuous latents whose means vary most over data."""
    columns = queries.encode(program, x, *args)
    kinds = (".mean", ".direction", ".draw")
    means = next((v for n, v in columns.items() if n.endswith(kinds)), None)
    if means is None:
        raise ValueError("expected continuous latents to move; the model has none")
    spread = means.reshape(len(means), -1).std(0)
    return [int(d) for d in np.argsort(-spread)[:10]]


def _noise(strength: float | None, kind: Kind) -> queries.Noise | None:
    if strength is None:
        return None
    return queries.Flip(strength) if kind is Kind.BINARY else queries.AdditiveNormal(strength)


def _noisy(x: Tensor, noise: queries.Noise | None, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if isinstance(noise, queries.Flip):
        flipped = torch.rand(x.shape, generator=generator) < noise.probability
        return torch.where(flipped, 1 - x, x)
    if isinstance(noise, queries.AdditiveNormal):
        return x + noise.scale * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return x


def _print_score(opened: _Opened, x: Tensor, args: tuple[Tensor, ...], observed: Tensor) -> None:
    """log p̂ of the pixels that were hidden, beside what mean imputation gives them."""
    options = opened.options
    score = queries.score_missing(
        opened.program,
        x,
        *args,
        observed=observed,
        num_samples=options["num_samples"],
        seed=options["seed"],
    )
    print(f"log p̂(x_mis | x_obs): {_told(score.value)} nats per datum, k̂ to {score.khat.max():.2f}")
    likelihood = getattr(opened.program, "likelihood", None)
    binary = opened.data.kind is Kind.BINARY
    if likelihood is not None and likelihood.measure == ("probability" if binary else "density"):
        train = opened.data.train.materialize(options["seed"])
        alone = queries.score_pixelwise(train, x, observed)
        print(f"independent pixels (mean imputation): {_told(alone)} nats per datum")


def _show_inferred(
    opened: _Opened, x: Tensor, seen: Tensor, observed: Tensor, result: queries.Imputation
) -> None:
    from ..report import pictures

    if not pictures.is_image(opened.data.event_shape):
        return
    low, high = float(x.min()), float(x.max())
    blank = torch.where(observed, seen.clamp(low, high), low + 0.5 * (high - low))
    images = torch.cat([x[None], blank[None], result.means, result.mean[None]])
    caption = (
        "The datum, what was seen of it, the mean of p(x|z) at draws of z given that, and the mean "
        "over all z."
    )
    _show(opened, pictures.rows("infer", "Inferred", caption, images.transpose(0, 1)))


def _kinds(opened: _Opened) -> tuple[Split, Split, str]:
    """The normal data, the others, and what these are called."""
    against, cls = opened.options["against"], opened.options["against_class"]
    if (against is None) == (cls is None):
        raise ValueError("expected --against a data set or --against-class a class, one of them")
    own = opened.part
    if against is not None:
        given = opened.experiment.settings.data
        other = data.load(
            against, binarize=opened.data.binarize, values=opened.data.values, root=given.root
        )
        if other.event_shape != opened.data.event_shape:
            raise ValueError(
                f"expected data of shape {opened.data.event_shape}; {against} has "
                f"{other.event_shape}"
            )
        return own, getattr(other, opened.options["split"]).head(len(own)), against
    classes = [] if own.labels is None or not is_class(own.labels) else own.labels.unique().tolist()
    if cls not in classes:
        known = ", ".join(map(str, classes)) or "none"
        raise ValueError(f"expected --against-class to be a class of the data, {known}; got {cls}")
    assert own.labels is not None
    return own.at(own.labels != cls), own.at(own.labels == cls), f"class {cls}"
