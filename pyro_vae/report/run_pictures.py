"""Pictures of a trained program for its report: weights, samples and latents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from .. import queries
from ..core.components import Space
from ..core.evaluation_mode import eval_mode
from ..core.random import Stream, seeded
from ..data import Split
from ..data.scaling import in_data_units
from ..data.splits import are_class_labels
from ..evaluation import Bounds
from ..evaluation.sections import Picture
from ..models import VAE
from ..programs.base import Program
from ..programs.importance_weights import log_weights
from ..programs.inputs import program_args
from . import pictures, plots

__all__ = ["make_latent_pictures", "make_sample_pictures", "make_weight_pictures"]

#: Images per row of the decoded latent space.
_MANIFOLD_SIZE = 20


def make_weight_pictures(program: Any, split: Split, bounds: Bounds) -> Iterator[Picture]:
    """Yield histograms of the log weights of q for the examples with the extreme k̂."""
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
        f"{bounds.num_samples} new samples of q. If a few samples on the far right dominate "
        f"log p̂, it is unreliable.",
        plots.plot_log_weights(log_w.double().numpy(), titles),
    )


def make_sample_pictures(
    program: Program, labelled: Split, seed: int, split: Split | None
) -> Iterator[Picture]:
    """Yield new samples and, of a split, reconstructions, if the examples are images."""
    if not pictures.is_image(labelled.event_shape):
        return
    yield pictures.sample_picture(program, labelled, seed)
    if split is not None:
        yield pictures.reconstruction_picture(program, split, seed)


def make_latent_pictures(
    program: Program, split: Split, seed: int, classes: Sequence[str] | None = None
) -> Iterator[Picture]:
    """Yield the plane of two latents: decoded, if the examples are images, and encoded examples."""
    if getattr(program, "latent_dim", None) != 2:
        return
    is_image = pictures.is_image(split.event_shape)
    if is_image and isinstance(program, VAE) and program.prior.space is Space.REAL:
        yield _manifold_picture(program, split)
    x, *args = program_args(program, split, seed)
    z = queries.reconstruct(program, x, *args, mean=False, seed=seed).latents.get("z")
    if z is None or z.shape[1:] != (2,):
        return
    labels = split.labels
    codes = labels.cpu().numpy() if labels is not None and are_class_labels(labels) else None
    colour = "" if codes is None else ", coloured by class"
    yield Picture(
        "latents",
        "Latent space, encoded examples",
        f"One sample of q(z|x) for each of {len(split)} examples{colour}.",
        plots.plot_latents(z.cpu().numpy(), codes, classes),
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
