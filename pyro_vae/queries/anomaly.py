"""Anomaly scores, and the area under their ROC curve."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..data import Split
from ..evaluation import evaluate
from ..programs.base import Program
from ..programs.inputs import AnyData, normalize_order, read_data

__all__ = ["AUROC", "anomaly_scores", "auroc", "score_examples"]


class AUROC(NamedTuple):
    """Area under the receiver operating characteristic curve.

    Attributes:
        value: the probability that a normal example has a higher score than an anomalous one,
            counting ties as one half: ½ is chance, 1 is perfect separation.
        se: DeLong's standard error over the examples of both classes; NaN if a class has a
            single example.
    """

    value: float
    se: float


def anomaly_scores(
    program: Program | tuple[Any, Any],
    data: AnyData,
    *args: Any,
    score: Literal["elbo", "log_evidence"] = "elbo",
    num_samples: int = 100,
    seed: int = 0,
    **kwargs: Any,
) -> np.ndarray:
    """Return a log likelihood of each example: the **lower**, the more anomalous.

    Higher is better, as everywhere in this package. Negate the scores for tools that expect
    higher scores for anomalies. :func:`score_examples` also returns the rows of the examples.

    Arguments:
        program, data, *args, num_samples, seed, **kwargs: as for :func:`score_examples`.
        score: ``"elbo"``, the mean log weight, or ``"log_evidence"``, log p̂(x).

    Returns:
        The scores, ``(N,)``, nats.

    Raises:
        ValueError: if ``score`` is unknown, or as for :func:`~pyro_vae.evaluate`.

    References:
        Do Deep Generative Models Know What They Don't Know? (Nalisnick et al., 2019), on what
        such a score misses. https://arxiv.org/abs/1810.09136
    """
    if score not in ("elbo", "log_evidence"):
        raise ValueError(f"expected score to be 'elbo' or 'log_evidence'; got {score!r}")
    options: Any = {"num_samples": num_samples, "seed": seed, **kwargs}
    return score_examples(program, data, *args, **options)[score]


def score_examples(
    program: Program | tuple[Any, Any],
    data: AnyData,
    *args: Any,
    num_samples: int = 100,
    seed: int = 0,
    **kwargs: Any,
) -> dict[str, np.ndarray]:
    """Return log likelihoods of each example, with its row in the file of the data.

    Arguments:
        program: any object with a ``model`` and a ``guide``, or a pair of them.
        data: the data, a tensor ``(N, …)`` or anything that :func:`~pyro_vae.data.as_split`
            accepts.
        *args: additional arguments of model and guide, as are ``**kwargs``.
        num_samples: the number K of samples for each example.
        seed: seed of the samples and of the binarisation.

    Returns:
        Arrays ``(N, …)``: ``elbo`` and ``log_evidence``, nats; ``khat``, the reliability of the
        latter; ``labels``, if any; and ``row``, unless the examples are in the order of the file.

    Raises:
        ValueError: as for :func:`~pyro_vae.evaluate`.
    """
    program, data, args = normalize_order(program, data, args)
    data = read_data(program, data)
    bounds = evaluate(program, data, *args, num_samples=num_samples, seed=seed, **kwargs)
    columns = {name: bounds.per_datum[name] for name in ("elbo", "log_evidence", "khat")}
    if isinstance(data, Split) and data.labels is not None:
        columns["labels"] = data.labels.cpu().numpy()
    if bounds.rows is not None:
        columns["row"] = bounds.rows
    return columns


def auroc(normal: ArrayLike, anomalous: ArrayLike) -> AUROC:
    """Compute the probability that a normal example has a higher score than an anomalous one.

    Arguments:
        normal: scores ``(m,)`` of normal examples, higher for more normal ones.
        anomalous: scores ``(n,)`` of anomalous examples.

    Returns:
        :class:`AUROC`.

    Raises:
        ValueError: if an array of scores is empty, is not one-dimensional, or contains NaN.

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
    from scipy import stats  # slow to import and used only here

    value = float(stats.mannwhitneyu(good, bad).statistic) / (m * n)
    # contribution of each example: the fraction of the other class that it beats
    ranks = stats.rankdata(np.concatenate([good, bad]))
    wins = (ranks[:m] - stats.rankdata(good)) / n
    losses = 1 - (ranks[m:] - stats.rankdata(bad)) / m
    if min(m, n) < 2:
        return AUROC(value, float("nan"))
    return AUROC(value, float(np.sqrt(wins.var(ddof=1) / m + losses.var(ddof=1) / n)))
