"""The report: one self-contained HTML file about a run."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import numpy as np
import torch
from matplotlib.figure import Figure

from .. import _files
from .._component import Space
from .._random import seeded
from ..data import Dataset, Split
from ..evaluation import Bounds
from ..models import VAE
from ..particles import log_weights
from . import plots
from .tables import bits_per_dim, flat_settings

if TYPE_CHECKING:
    from ..runs import Run

__all__ = ["write_report"]

#: Images in a picture.
_COLUMNS, _ROWS, _MANIFOLD = 12, 8, 20


@dataclass(frozen=True)
class Picture:
    """A figure with its file name, heading and caption."""

    name: str
    title: str
    caption: str
    figure: Figure

    def png(self) -> bytes:
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=130)
        return buffer.getvalue()


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
    pictures = [
        Picture("learning", "Learning curves", "", plots.learning_curves(run.read_metrics())),
        *_judgement(model, split, bounds),
        *_images(model, data, split, bounds.seed or 0),
    ]
    shown = []
    for picture in pictures:
        png = picture.png()
        _files.write(
            run.figures / f"{picture.name}.png", lambda file, png=png: file.write_bytes(png)
        )
        shown.append((picture, base64.b64encode(png).decode()))
    page = _template().render(
        name=run.name,
        result=result,
        bounds=bounds,
        bits=bits_per_dim(result["bounds"].get("bits_per_dim", {})),
        settings=flat_settings(result["config"]),
        pictures=shown,
    )
    _files.write_text(run.report, page)


def _judgement(model: VAE, split: Split, bounds: Bounds) -> Iterator[Picture]:
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
    x = split.fixed(bounds.seed or 0)[extremes]
    with seeded(bounds.seed or 0, 2):
        log_w = log_weights(model.model, model.guide, x, num_samples=bounds.num_samples)
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


@torch.no_grad()
def _images(model: VAE, data: Dataset, split: Split, seed: int) -> Iterator[Picture]:
    """Samples, reconstructions and the latent plane, where a datum is an image."""
    if len(data.event_shape) not in (2, 3) or data.event_shape[:-2] not in ((), (1,)):
        return
    model.eval()
    with seeded(seed, 3):
        z = model.prior().sample((_ROWS * _COLUMNS,))
        yield Picture(
            "samples",
            "Samples",
            "z from the prior; the mean of p(x|z) is shown.",
            plots.image_grid(_grey(model.likelihood(z).mean), _COLUMNS),
        )
        x = split.fixed(seed)[: 4 * _COLUMNS]
        # a draw, because not every posterior knows its mean
        again = model.likelihood(model.posterior(x).sample()).mean
    rows = torch.stack([x.unflatten(0, (-1, _row(x))), again.unflatten(0, (-1, _row(x)))], 1)
    yield Picture(
        "reconstructions",
        "Reconstructions",
        "Held-out data above, the mean of p(x|z) at a draw of q(z|x) below.",
        plots.image_grid(_grey(rows.flatten(0, 2)), _row(x), gap_after_rows=True),
    )
    if model.latent_dim == 2:
        yield from _plane(model, split, seed)


def _plane(model: VAE, split: Split, seed: int) -> Iterator[Picture]:
    if model.prior.space is Space.REAL:
        yield _manifold(model)
    with seeded(seed, 4):
        draws = model.posterior(split.fixed(seed)).sample()
    labels = None if split.labels is None else split.labels.numpy()
    yield Picture(
        "latents",
        "The latent plane, encoded",
        "A draw of q(z|x) of held-out data, by label.",
        plots.latent_scatter(draws.numpy(), labels),
    )


def _manifold(model: VAE) -> Picture:
    quantiles = (torch.arange(_MANIFOLD) + 0.5) / _MANIFOLD
    ticks = torch.distributions.Normal(0, 1).icdf(quantiles)
    z = torch.cartesian_prod(ticks, ticks)
    return Picture(
        "manifold",
        "The latent plane, decoded",
        "A grid on the unit square through the inverse of the normal distribution function.",
        plots.image_grid(_grey(model.likelihood(z).mean), _MANIFOLD),
    )


def _row(x: torch.Tensor) -> int:
    return _COLUMNS if len(x) % _COLUMNS == 0 else len(x)


def _grey(x: torch.Tensor) -> np.ndarray:
    """Images as ``(n, H, W)`` in [0, 1]: levels and real numbers are stretched to it."""
    images = x.reshape(len(x), *x.shape[-2:]).double()
    low, high = images.min().clamp(max=0), images.max().clamp(min=1)
    return ((images - low) / (high - low)).numpy()


def _template() -> jinja2.Template:
    folder = Path(__file__).parent
    source = (folder / "page.html.jinja").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source)
