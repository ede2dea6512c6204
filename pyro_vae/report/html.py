"""The report: one self-contained HTML file about a run."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import torch

from .. import queries
from ..core import files
from ..core.components import Space
from ..core.evaluation_mode import eval_mode
from ..core.random import seeded
from ..data import Split
from ..data.splits import is_class
from ..evaluation import Bounds
from ..models import VAE
from ..programs.base import Program
from ..programs.importance_weights import log_weights
from ..programs.inputs import program_args
from . import pictures, plots
from .evaluation_sections import bounds_table, sections
from .pictures import Picture
from .tables import bits_per_dim, flat_settings

if TYPE_CHECKING:
    from ..runs.run import Run

__all__ = ["write_report"]

#: Images in a row of the latent plane.
_MANIFOLD = 20


def write_report(run: Run) -> None:
    """Writes ``report.html`` and ``figures/*.png`` of an evaluated run.

    Raises:
        RunError: if the run is incomplete or has no bounds yet.
    """
    _, data, model = run.open()
    bounds = run.read_bounds()
    result = run.read_result()
    # the very data that were judged, with the same dynamic pixels
    split: Split = getattr(data, result["bounds"]["split"]).head(len(bounds))
    drawn = [
        Picture("learning", "Learning curves", "", plots.learning_curves(run.read_metrics())),
        *_judgement(model, split, bounds),
        *_images(model, split, bounds.seed or 0),
    ]
    measured = list(sections(run, bounds))

    def inline(picture: Picture) -> str:
        return base64.b64encode(picture.write(run.figures).read_bytes()).decode()

    page = _template().render(
        name=run.name,
        result=result,
        bounds=bounds,
        table=bounds_table(bounds),
        bits=bits_per_dim(result["bounds"].get("bits_per_dim", {})),
        settings=flat_settings(result["config"]),
        pictures=drawn,
        sections=[section for section in measured if section.there],
        absent=[section for section in measured if not section.there],
        inline=inline,
    )
    files.write_text(run.report, page)


def _judgement(program: Any, split: Split, bounds: Bounds) -> Iterator[Picture]:
    plateau = bounds.plateau
    rising = (
        f"From k = {plateau} on, L_k rises by no more than twice the Monte Carlo standard error "
        f"of log p̂."
        if plateau is not None
        else f"L_k has not been seen to stop rising by k = {bounds.num_samples}: log p(x) lies "
        f"higher."
    )
    yield Picture("bounds", "L_k against k", rising, plots.bound_against_k(bounds))
    if not np.isfinite(bounds.per_datum["khat"]).any():
        return
    yield Picture(
        "khat",
        "k̂ per datum",
        bounds.warning or "Every estimate can be trusted by its k̂.",
        plots.khat_per_datum(bounds),
    )
    khat = bounds.per_datum["khat"]
    extremes = [int(khat.argmin()), int(khat.argmax())]
    # the raw weights were streamed away: draw those of two data again
    x, *args = (part[extremes] for part in program_args(program, split, bounds.seed or 0))
    with seeded(bounds.seed or 0, 2):
        log_w = log_weights(program.model, program.guide, x, *args, num_samples=bounds.num_samples)
    titles = [
        f"{which}: datum {i}, k̂ {khat[i]:.2f}"
        for which, i in zip(("best", "worst"), extremes, strict=True)
    ]
    yield Picture(
        "weights",
        "Log weights of the best and the worst datum",
        "Drawn anew. Where log p̂ hangs on a few draws on the right, it is not to be trusted.",
        plots.log_weight_histograms(log_w.double().numpy(), titles),
    )


def _images(program: Program, split: Split, seed: int) -> Iterator[Picture]:
    """Samples, reconstructions and the latent plane, where a datum is an image."""
    if not pictures.is_image(split.event_shape):
        return
    yield pictures.samples(program, split, seed)
    yield pictures.reconstructions(program, split, seed)
    if getattr(program, "latent_dim", None) == 2:
        yield from _plane(program, split, seed)


def _plane(program: Any, split: Split, seed: int) -> Iterator[Picture]:
    if isinstance(program, VAE) and program.prior.space is Space.REAL:
        yield _manifold(program)
    x, *args = program_args(program, split, seed)
    draws = queries.reconstruct(program, x, *args, mean=False, seed=seed).latents.get("z")
    if draws is None or draws.shape[1:] != (2,):
        return
    known = split.labels is not None and is_class(split.labels)
    labels = split.labels.cpu().numpy() if known else None  # type: ignore[union-attr]
    yield Picture(
        "latents",
        "The latent plane, encoded",
        "A draw of q(z|x) of held-out data, by label.",
        plots.latent_scatter(draws.cpu().numpy(), labels),
    )


@torch.no_grad()
def _manifold(model: VAE) -> Picture:
    quantiles = (torch.arange(_MANIFOLD) + 0.5) / _MANIFOLD
    ticks = torch.distributions.Normal(0, 1).icdf(quantiles)
    z = torch.cartesian_prod(ticks, ticks)
    with eval_mode(model):
        images = model.likelihood(z).mean
    return pictures.rows(
        "manifold",
        "The latent plane, decoded",
        "A grid on the unit square through the inverse of the normal distribution function.",
        images.unflatten(0, (-1, _MANIFOLD)),
    )


def _template() -> jinja2.Template:
    folder = Path(__file__).parent
    source = (folder / "page.html.jinja").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source)
