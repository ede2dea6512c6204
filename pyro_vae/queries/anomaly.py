"""How normal a datum is, and how well that tells two kinds of data apart."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from ..data import Split
from ..evaluation import evaluate
from ..programs.base import Program

__all__ = ["AUROC", "anomaly_scores", "auroc"]


class AUROC(NamedTuple):
    """The area under the receiver operating characteristic.

    Attributes:
        value: the probability that a normal datum has a higher score than an anomalous one,
            ties counted half: ½ tells nothing, 1 everything.
        se: its standard error over both kinds of data, DeLong's; NaN if one kind has a single
            datum.
    """

    value: float
    se: float


def anomaly_scores(
    program: Program | tuple[Any, Any],
    data: Split | Tensor,
    *args: Any,
    score: Literal["elbo", "log_evidence"] = "elbo",
    num_samples: int = 100,
    seed: int = 0,
    **kwargs: Any,
) -> np.ndarray:
    """A log-likelihood of each datum: the **lower**, the more anomalous.

    Higher is better here as everywhere; negate them for tools that expect more of an anomaly.

    Arguments:
        program: anything with a ``model`` and a ``guide``, or a pair of them.
        data: a tensor ``(N, …)`` or a split.
        *args: further arguments of model and guide, as are ``**kwargs``.
        score: ``"elbo"``, the mean log weight, or ``"log_evidence"``, log p̂(x).
        num_samples: the number K of draws behind each.
        seed: of the draws and the binarisation.

    Returns:
        The scores, ``(N,)``, nats.

    Raises:
        ValueError: if ``score`` is another, or as :func:`~pyro_vae.evaluate`.

    References:
        Do Deep Generative Models Know What They Don't Know? (Nalisnick et al., 2019), on what
        such a score misses. https://arxiv.org/abs/1810.09136
    """
    if score not in ("elbo", "log_evidence"):
        raise ValueError(f"expected score to be 'elbo' or 'log_evidence'; got {score!r}")
    bounds = evaluate(program, data, *args, num_samples=num_samples, seed=seed, **kwargs)
    return bounds.per_datum[score]


def auroc(normal: ArrayLike, anomalous: ArrayLike) -> AUROC:
    """How often normal data have higher scores than anomalous ones.

    Arguments:
        normal: scores ``(m,)``, higher for what is more normal.
        anomalous: scores ``(n,)``.

    Returns:
        :class:`AUROC`.

    Raises:
        ValueError: if there are none of a kind, or one is NaN.

    References:
        Comparing the Areas under Two or More Correlated Receiver Operating Characteristic
        Curves: A Nonparametric Approach (DeLong et al., 1988).
        https://doi.org/10.2307/2531595
    """
    good, bad = (np.asarray(s, dtype=np.float64) for s in (normal, anomalous))
    for scores in (good, bad):
        if scores.ndim != 1 or not len(scores) or np.isnan(scores).any():
            raise ValueError(
                f"expected scores as (N ≥ 1,) numbers without NaN; got shape {scores.shape} with "
                f"{np.isnan(scores).sum()} NaN"
            )
    m, n = len(good), len(bad)
    from scipy import stats  # most of a second, which only this function is worth

    value = float(stats.mannwhitneyu(good, bad).statistic) / (m * n)
    # each datum's own part in it: the fraction of the other kind that it beats
    ranks = stats.rankdata(np.concatenate([good, bad]))
    beats = (ranks[:m] - stats.rankdata(good)) / n
    beaten = 1 - (ranks[m:] - stats.rankdata(bad)) / m
    if min(m, n) < 2:
        return AUROC(value, float("nan"))
    return AUROC(value, float(np.sqrt(beats.var(ddof=1) / m + beaten.var(ddof=1) / n)))
