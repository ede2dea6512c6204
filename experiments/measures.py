"""Measures of a trained model that tables print next to its bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.stats import norm

import pyro_vae as pv
from pyro_vae import queries
from pyro_vae.data import Dataset
from pyro_vae.evaluation.latent_diagnostics.elbo_surgery import surgery
from pyro_vae.evaluation.latent_diagnostics.kl import divergences
from pyro_vae.models import Autoencoder

__all__ = [
    "measure_accuracy",
    "measure_accuracy_by_bayes",
    "measure_active_units",
    "measure_distortion",
    "measure_lower_half",
    "measure_mutual_information",
    "measure_rate",
    "measure_training_log_evidence",
]


def measure_active_units(model: Autoencoder, data: Dataset) -> dict[str, Any]:
    """Return the active units on the test examples, by layer and bottom up (e.g. 26+7).

    References:
        Importance Weighted Autoencoders (Burda et al., 2015), section 5.2.
        https://arxiv.org/abs/1509.00519
    """
    units = pv.active_units(model, data.test)
    counts = dict(sorted(units.counts.items()))
    probabilities = [
        norm.cdf((v - units.threshold) / np.maximum(units.se[site], 1e-12))
        for site, v in units.variance.items()
    ]
    return {
        "value": sum(counts.values()),
        # uncertainty of the units near the threshold, treated as independent
        "se": float(sum((p * (1 - p)).sum() for p in probabilities)) ** 0.5,
        "text": "+".join(map(str, counts.values())),
        "variance": {site: v.round(5).tolist() for site, v in units.variance.items()},
        "num_samples": units.num_samples,
    }


def measure_rate(model: Autoencoder, data: Dataset) -> dict[str, Any]:
    """Return the rate E KL(q(z|x) ‖ p(z)) on the test examples, total and by latent dimension."""
    kl = divergences(model, data.test, num_samples=8)
    row = kl.estimates["rate"]
    dimensions = {name: site.dimensions for name, site in kl.sites.items()}
    return {
        "value": row.value,
        "se": row.se_data,
        "dimensions": {n: v.round(5).tolist() for n, v in dimensions.items() if v is not None},
    }


def measure_distortion(model: Autoencoder, data: Dataset) -> dict[str, Any]:
    """Return the distortion −E log p(x|z) on the test examples."""
    row = divergences(model, data.test, num_samples=8).estimates["distortion"]
    return {"value": row.value, "se": row.se_data, "se_monte_carlo": row.se_monte_carlo}


def measure_mutual_information(model: Autoencoder, data: Dataset) -> dict[str, Any]:
    """Return I_q(x; z) of the test examples, at most the logarithm of their number.

    References:
        ELBO surgery (Hoffman & Johnson, 2016), section 2.
        https://approximateinference.org/accepted/HoffmanJohnson2016.pdf
    """
    result = surgery(model, data.test, num_draws=2000)
    row, marginal = (result.estimates[name] for name in ("mutual_information", "marginal"))
    return {
        "value": row.value,
        "se": row.se_data,
        "limit": result.limit,
        "marginal": {"value": marginal.value, "se": marginal.se_data},
    }


def measure_accuracy(model: Autoencoder, data: Dataset) -> dict[str, Any]:
    """Return the classification accuracy on the test examples with its binomial error."""
    assert isinstance(model, pv.models.SemiSupervisedVAE) and data.test.labels is not None
    value = model.accuracy(data.test.materialize(0), data.test.labels)
    size = len(data.test)
    return {"value": value, "se": (value * (1 - value) / size) ** 0.5, "num_data": size}


def measure_training_log_evidence(model: Autoencoder, data: Dataset) -> dict[str, Any]:
    """Return log p̂ of the first 1000 training examples, with 1000 samples each."""
    row = pv.evaluate(model, data.train.head(1000), num_samples=1000).estimates["log_evidence"]
    return {"value": row.value, "se": row.se_data, "se_monte_carlo": row.se_monte_carlo}


def measure_accuracy_by_bayes(model: Autoencoder, data: Dataset) -> dict[str, Any]:
    """Return the accuracy of the classifier argmax p̂(x | c) on 200 test examples.

    Class probabilities are equal, and each class has 100 samples. The value is ``None`` for an
    unconditional model.
    """
    if model.labels is not pv.models.ConditionalVAE.labels:
        return {"value": None, "text": "–"}
    subset = data.test.head(200)
    assert subset.labels is not None
    x = subset.materialize(0)
    scores = [
        pv.evaluate(model, x, torch.full_like(subset.labels, c), num_samples=100)
        for c in range(data.num_classes)
    ]
    log_evidence = np.stack([bounds.per_datum["log_evidence"] for bounds in scores])
    value = float((log_evidence.argmax(0) == subset.labels.numpy()).mean())
    return {"value": value, "se": (value * (1 - value) / len(x)) ** 0.5, "num_data": len(x)}


def measure_lower_half(model: Autoencoder, data: Dataset) -> dict[str, Any]:
    """Return log p̂(lower half | upper half) of 100 test images, paired with a pixelwise baseline.

    ``value`` is the model's. ``pixelwise`` treats pixels as independent, with the frequencies (or
    means and standard deviations) of the training data; ``gain`` is the paired difference.
    """
    x, train = data.test.head(100).materialize(0), data.train.materialize(0)
    observed = queries.mask("lower-half", data.event_shape)
    score = queries.score_missing(model, x, observed=observed, num_samples=2000)
    values, baseline = score.value, queries.score_pixelwise(train, x, observed)
    gain = values - baseline
    root = len(x) ** 0.5
    return {
        "value": float(values.mean()),
        "se": float(values.std() / root),
        "se_monte_carlo": float(score.variance.sum().sqrt() / len(x)),
        "text": f"{values.mean():.1f} ({baseline.mean():.1f})",
        "pixelwise": float(baseline.mean()),
        "gain": {"value": float(gain.mean()), "se_paired": float(gain.std() / root)},
        "unreliable": int((score.khat >= 0.7).sum()),
        "num_data": len(x),
        "num_samples": 2000,
    }
