"""What latents cost, and what they leave: KL of every dimension, rate and distortion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.evaluation_mode import eval_mode
from ...core.random import seeded
from ...core.validation import positive_int
from ...data.splits import Split
from ...programs.base import Program, use_own_parameters
from ...programs.inputs import prepare
from ...programs.particles import map_batched
from ..estimates import Estimate, estimate, finite
from ..resumable import in_blocks
from .site_terms import looked_at, terms

__all__ = ["Divergences", "SiteDivergence", "divergences"]

#: The rows of the table.
_ROWS = {
    "elbo": ("ELBO = −(R + D)", "lower bound"),
    "rate": ("rate R", "E KL(q(z|x) ‖ p(z))"),
    "distortion": ("distortion D", "−E log p(x|z)"),
}


@dataclass(frozen=True)
class SiteDivergence:
    """E_x KL(q ‖ p) of one latent site, in nats per datum.

    The prior of a site further down a hierarchy is that given the draws of those above it.

    Attributes:
        total: of the whole site.
        dimensions: of each of its D dimensions, ``(D,)``; ``None`` where q or p is no product
            over the dimensions (a flow, a full covariance, a mixture), so that there is only
            a whole.
        errors: their standard errors over data, ``(D,)``, if there are any dimensions.
        closed_form: whether the KL is in closed form, given the draws of other sites; else it
            is the mean of log q − log p over the draws.
    """

    total: Estimate
    dimensions: np.ndarray | None
    errors: np.ndarray | None
    closed_form: bool


@dataclass(frozen=True)
class Divergences:
    """Rate and distortion of a program, and what each latent site contributes to its rate.

    R = E_x KL(q(z|x) ‖ p(z)) and D = −E_x E_q log p(x|z), over all latent sites together; the
    ELBO is −(R + D). Sites with ``infer={"is_noise": True}`` are no latents: what they cost,
    which is nothing unless the guide learns them, counts in D.

    Attributes:
        sites: by name, in the order in which the guide draws them.
        per_datum: arrays of length N, ``rate``, ``distortion`` and ``elbo``, with their Monte
            Carlo variances in ``…_variance``.
        num_samples: draws for each datum.
        seed: of the draws.

    References:
        Fixing a Broken ELBO (Alemi et al., 2018), section 2. https://arxiv.org/abs/1711.00464
    """

    sites: Mapping[str, SiteDivergence]
    per_datum: Mapping[str, np.ndarray]
    num_samples: int
    seed: int

    def __len__(self) -> int:
        return len(self.per_datum["rate"])

    @property
    def rate(self) -> float:
        """R, nats per datum."""
        return float(self.per_datum["rate"].mean())

    @property
    def distortion(self) -> float:
        """D, nats per datum."""
        return float(self.per_datum["distortion"].mean())

    @property
    def estimates(self) -> dict[str, Estimate]:
        """``elbo``, ``rate`` and ``distortion`` with their standard errors."""
        data = self.per_datum
        return {name: estimate(data[name], data[f"{name}_variance"]) for name in _ROWS}

    def summary(self) -> dict[str, Any]:
        """The figures as plain numbers, for JSON. Non-finite ones become null."""
        return {
            "num_data": len(self),
            "num_samples": self.num_samples,
            "seed": self.seed,
            "units": "nats per datum",
            "estimates": {name: row.summary() for name, row in self.estimates.items()},
            "sites": {
                name: {
                    "total": site.total.summary(),
                    "dimensions": _listed(site.dimensions),
                    "errors": _listed(site.errors),
                    "closed_form": site.closed_form,
                }
                for name, site in self.sites.items()
            },
        }

    def __str__(self) -> str:
        lines = [
            f"{len(self)} data × {self.num_samples} draws; nats per datum",
            f"{'':18}{'mean':>10}{'± data':>10}{'± MC':>10}",
        ]
        for name, row in self.estimates.items():
            label, meaning = _ROWS[name]
            lines.append(f"{label:18}{_figures(row)}  {meaning}")
        return "\n".join([*lines, *map(_told, self.sites, self.sites.values())])


def divergences(
    program: Program | tuple[Any, Any],
    data: Split | Tensor,
    *args: Any,
    num_samples: int = 64,
    seed: int = 0,
    progress: bool = False,
    **kwargs: Any,
) -> Divergences:
    """E_x KL(q ‖ p) of every latent site and dimension, and the program's rate and distortion.

    Arguments:
        program: anything with a ``model`` and a ``guide``, or a pair of them.
        data: the data, a tensor ``(N, …)`` or a :class:`~pyro_vae.data.Split`.
        *args: further arguments of model and guide, as are ``**kwargs`` (see
            :func:`~pyro_vae.evaluate`).
        num_samples: draws for each datum.
        seed: of the draws and of the binarisation; global generators are left as they were.
        progress: show a progress bar on the standard error.

    Returns:
        The :class:`Divergences`.

    Raises:
        ValueError: if ``num_samples`` is not a positive integer, or as for
            :func:`~pyro_vae.evaluate`.

    References:
        ELBO surgery (Hoffman & Johnson, 2016), section 1.1.
        https://approximateinference.org/accepted/HoffmanJohnson2016.pdf
        Fixing a Broken ELBO (Alemi et al., 2018), section 2. https://arxiv.org/abs/1711.00464
    """
    positive_int("num_samples", num_samples)
    model, guide, x, args, kwargs = prepare(program, data, args, kwargs, seed)
    size = len(x)
    notes: dict[str, tuple[bool, bool]] = {}

    with seeded(seed, 4), use_own_parameters(model, guide), eval_mode(model, guide):
        layout, pairs, least = looked_at(model, guide, x, args, kwargs)
        block = min(size, max(least, pairs // num_samples))

        @torch.no_grad()
        def compute(rows: slice, advance: Callable[[float], None]) -> dict[str, Tensor]:
            inputs, named = map_batched(lambda t: t[rows], size, (x, *args), kwargs)
            running: dict[str, _Running] = {}
            at_once = max(1, pairs // len(inputs[0]))
            for first in range(0, num_samples, at_once):
                count = min(at_once, num_samples - first)
                drawn = terms(model, guide, *inputs, num_samples=count, layout=layout, **named)
                notes.update({n: (t.parted, t.closed) for n, t in drawn.sites.items()})
                rate, rest = drawn.divergence, drawn.rest
                columns = {"rate": rate, "distortion": -rest, "elbo": rest - rate}
                columns |= {f"site {n}": t.values for n, t in drawn.sites.items()}
                columns |= {f"total {n}": t.values.sum(2) for n, t in drawn.sites.items()}
                for name, values in columns.items():
                    running.setdefault(name, _Running()).add(values.double())
                advance(count / num_samples)
            means = {name: r.mean for name, r in running.items()}
            return means | {f"{name}_variance": r.variance_of_mean for name, r in running.items()}

        columns = in_blocks(
            compute, size, block=block, entropy=(seed, 3), progress=progress, desc="divergences"
        )
    return Divergences(
        sites={name: _site(name, columns, *note) for name, note in notes.items()},
        per_datum={n: v for n, v in columns.items() if not n.startswith(("site ", "total "))},
        num_samples=int(num_samples),
        seed=seed,
    )


class _Running:
    """Mean and variance of values ``(draws, …)`` that come in chunks, entry by entry."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self._squares = torch.zeros(())

    def add(self, values: Tensor) -> None:
        count, mean = len(values), values.mean(0)
        total, away = self.count + count, mean - self.mean
        between = away.square() * (self.count * count / total) if self.count else 0.0
        self._squares = self._squares + (values - mean).square().sum(0) + between
        self.mean = self.mean + away * (count / total)
        self.count = total

    @property
    def variance_of_mean(self) -> Tensor:
        """NaN of a single draw."""
        if self.count < 2:
            return torch.full_like(self.mean, torch.nan)
        return self._squares / (self.count * (self.count - 1))


def _site(
    name: str, columns: Mapping[str, np.ndarray], parted: bool, closed: bool
) -> SiteDivergence:
    total = estimate(columns[f"total {name}"], columns[f"total {name}_variance"])
    if not parted:
        return SiteDivergence(total, None, None, closed)
    each = columns[f"site {name}"]
    # a single datum has no spread
    errors = each.std(0, ddof=1) / len(each) ** 0.5 if len(each) > 1 else each[0] * np.nan
    return SiteDivergence(total, each.mean(0), errors, closed)


def _told(name: str, site: SiteDivergence) -> str:
    """A line on one site."""
    how = "in closed form" if site.closed_form else "by draws"
    head = f"KL of {name}, {how}: {site.total.value:.3f} ± {site.total.se_data:.3f}"
    if site.dimensions is None:
        return f"{head}; no sum over dimensions, so that only the whole is known"
    largest = np.sort(site.dimensions)[::-1]
    shown = ", ".join(f"{value:.2f}" for value in largest[:8])
    if len(largest) == 1:
        return head
    return f"{head}; of {len(largest)} dimensions, largest first: {shown}" + (
        ", …" if len(largest) > 8 else ""
    )


def _figures(row: Estimate) -> str:
    return f"{row.value:10.3f}{row.se_data:10.3f}{row.se_monte_carlo:10.3f}"


def _listed(values: np.ndarray | None) -> list[float | None] | None:
    return None if values is None else [finite(float(value)) for value in values]
