"""The HTML report of a run, a single self-contained file."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch

from .. import queries
from ..config.experiment import flatten_settings
from ..core import files
from ..core.components import Space
from ..core.evaluation_mode import eval_mode
from ..core.random import Stream, seeded
from ..data import Split
from ..data.scaling import in_data_units
from ..data.splits import are_class_labels
from ..evaluation import EVALUATIONS, Bounds
from ..evaluation.sections import Picture
from ..models import VAE
from ..programs.base import Program
from ..programs.importance_weights import log_weights
from ..programs.inputs import program_args
from ..runs.provenance import format_bits_per_dim
from ..runs.run import Run
from . import pictures, plots

__all__ = ["write_report"]

_log = logging.getLogger("pyro_vae")

#: Images per row of the decoded latent space.
_MANIFOLD_SIZE = 20


def write_report(run: Run) -> None:
    """Write ``report.html`` and ``figures/*.png`` of an evaluated run.

    Raises:
        RunError: if the run is not finished or has no bounds yet, if a result is damaged or one
            of other weights, or if another process trains the run or writes its report.
    """
    run.require_config()
    with run.exclusive("report"):
        _write_report(run)


def _write_report(run: Run) -> None:
    model = run.program
    bounds = run.read_bounds()
    results = {
        e: run.read_evaluation(e.name)
        for e in EVALUATIONS.values()
        if run.evaluation_file(e.name).is_file()
    }
    # the files of the results count: a killed process may have left older entries
    result = run.read_result()
    result |= {e.name: dict(r.provenance) for e, r in results.items()}
    # the evaluated examples, with the same dynamic binarisation
    split = _take_split(run, result["bounds"]["split"], len(bounds))
    seed = bounds.seed or 0
    done = list(results)
    sections = [e.make_section(r) for e, r in results.items()]
    overview = [
        Picture("learning", "Learning curves", "", plots.plot_learning_curves(run.read_metrics())),
        *sections[0].pictures,
        *(() if split is None else _weight_pictures(model, split, bounds)),
        *_sample_pictures(run, split, seed),
        *(() if split is None else _image_pictures(model, split, seed)),
    ]

    def inline(picture: Picture) -> str:
        return base64.b64encode(picture.write(run.figures).read_bytes()).decode()

    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    page = templates.get_template("page.html.jinja").render(
        name=run.name,
        result=result,
        bounds=bounds,
        tables=sections[0].tables,
        bits=format_bits_per_dim(result["bounds"].get("bits_per_dim", {})),
        settings=flatten_settings(result["config"]).items(),
        pictures=overview,
        sections=list(zip(done, sections, strict=True))[1:],
        missing=[e for e in EVALUATIONS.values() if e not in done],
        folder=run.folder,
        inline=inline,
    )
    files.atomic_write_text(run.report, page)


def _take_split(run: Run, name: str, size: int) -> Split | None:
    """Return the evaluated examples, or ``None`` with a warning if their file is missing."""
    try:
        return run.data.take(name, size)
    except FileNotFoundError as error:
        _log.warning("report without weights, reconstructions and latents of examples: %s", error)
        return None


def _sample_pictures(run: Run, split: Split | None, seed: int) -> Iterator[Picture]:
    """Yield new samples, if the examples are images."""
    labelled = split or run.label_examples()
    if labelled is not None and pictures.is_image(labelled.event_shape):
        yield pictures.sample_picture(run.program, labelled, seed)


def _weight_pictures(program: Any, split: Split, bounds: Bounds) -> Iterator[Picture]:
    # with a ladder, k̂ of the samples of q
    khat = bounds.per_datum.get("guide_khat", bounds.per_datum["khat"])
    if not np.isfinite(khat).any():
        return
    extremes = [int(khat.argmin()), int(khat.argmax())]
    # the evaluation does not keep raw weights: sample those of two examples again
    x, *args = (part[extremes] for part in program_args(program, split, bounds.seed or 0))
    with seeded(bounds.seed or 0, Stream.REPORT):
        log_w = log_weights(program.model, program.guide, x, *args, num_samples=bounds.num_samples)
    ranks = zip(("best", "worst"), extremes, strict=True)
    titles = [f"{rank} k̂: {khat[i]:.2f}, example {i}" for rank, i in ranks]
    yield Picture(
        "weights",
        "Log weights of the examples with the best and the worst k̂",
        "Fresh samples. If a few samples on the far right dominate log p̂, it is unreliable.",
        plots.plot_log_weights(log_w.double().numpy(), titles),
    )


def _image_pictures(program: Program, split: Split, seed: int) -> Iterator[Picture]:
    """Yield reconstructions and 2-D latents, if the examples are images."""
    if not pictures.is_image(split.event_shape):
        return
    yield pictures.reconstruction_picture(program, split, seed)
    if getattr(program, "latent_dim", None) != 2:
        return
    if isinstance(program, VAE) and program.prior.space is Space.REAL:
        yield _manifold_picture(program, split)
    x, *args = program_args(program, split, seed)
    z = queries.reconstruct(program, x, *args, mean=False, seed=seed).latents.get("z")
    if z is None or z.shape[1:] != (2,):
        return
    labels = split.labels
    if labels is not None:
        labels = labels.cpu().numpy() if are_class_labels(labels) else None
    yield Picture(
        "latents",
        "Latent space, encoded examples",
        "One sample of q(z|x) per held-out example, coloured by class.",
        plots.plot_latents(z.cpu().numpy(), labels),
    )


@torch.no_grad()
def _manifold_picture(model: VAE, split: Split) -> Picture:
    quantiles = (torch.arange(_MANIFOLD_SIZE) + 0.5) / _MANIFOLD_SIZE
    ticks = torch.distributions.Normal(0, 1).icdf(quantiles)
    z = torch.cartesian_prod(ticks, ticks)
    with eval_mode(model):
        images = in_data_units(model.likelihood(z).mean, split.scale)
    return pictures.image_rows(
        "manifold",
        "Latent space, decoded grid",
        "The mean of p(x|z) on a grid of quantiles of the standard normal distribution.",
        images.unflatten(0, (-1, _MANIFOLD_SIZE)),
    )
