"""Figures of a trained model that several tables print beside its bounds."""

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
    "accuracy",
    "accuracy_by_bayes",
    "active_units",
    "distortion",
    "lower_half",
    "mutual_information",
    "rate",
    "training_log_evidence",
]


def active_units(model: Autoencoder, data: Dataset) -> dict[str, Any]:
    """Active units of the test data, layer by layer from the data upwards, as papers print them.

    References:
        Importance Weighted Autoencoders (Burda et al., 2015), section 5.2.
        https://arxiv.org/abs/1509.00519
    """
    found = pv.active_units(model, data.test)
    counts = dict(sorted(found.counts.items()))
    above = [
        norm.cdf((v - found.threshold) / np.maximum(found.se[site], 1e-12))
        for site, v in found.variance.items()
    ]
    return {
        "value": sum(counts.values()),
        # of units near the threshold nobody knows on which side they are; taken as independent
        "se": float(sum((p * (1 - p)).sum() for p in above)) ** 0.5,
        "text": "+".join(map(str, counts.values())),
        "variance": {site: v.round(5).tolist() for site, v in found.variance.items()},
        "num_samples": found.num_samples,
    }


def rate(model: Autoencoder, data: Dataset) -> dict[str, Any]:
    """R = E KL(q(z|x) ‖ p(z)) of the test data, and of each latent dimension."""
    found = divergences(model, data.test, num_samples=8)
    row = found.estimates["rate"]
    dimensions = {name: site.dimensions for name, site in found.sites.items()}
    return {
        "value": row.value,
        "se": row.se_data,
        "dimensions": {n: v.round(5).tolist() for n, v in dimensions.items() if v is not None},
    }


def distortion(model: Autoencoder, data: Dataset) -> dict[str, Any]:
    """D = −E log p(x|z) of the test data."""
    row = divergences(model, data.test, num_samples=8).estimates["distortion"]
    return {"value": row.value, "se": row.se_data, "se_monte_carlo": row.se_monte_carlo}


def mutual_information(model: Autoencoder, data: Dataset) -> dict[str, Any]:
    """I_q(x; z) of the test data, which is at most the logarithm of their number.

    References:
        ELBO surgery (Hoffman & Johnson, 2016), section 2.
        https://approximateinference.org/accepted/HoffmanJohnson2016.pdf
    """
    found = surgery(model, data.test, num_draws=2000)
    row, marginal = (found.estimates[name] for name in ("mutual_information", "marginal"))
    return {
        "value": row.value,
        "se": row.se_data,
        "limit": found.limit,
        "marginal": {"value": marginal.value, "se": marginal.se_data},
    }


def accuracy(model: Autoencoder, data: Dataset) -> dict[str, Any]:
    """The fraction of test data whose most probable class is right, and its binomial error."""
    assert isinstance(model, pv.models.SemiSupervisedVAE) and data.test.labels is not None
    value = model.accuracy(data.test.materialize(0), data.test.labels)
    size = len(data.test)
    return {"value": value, "se": (value * (1 - value) / size) ** 0.5, "num_data": size}


def training_log_evidence(model: Autoencoder, data: Dataset) -> dict[str, Any]:
    """log p̂ of the first 1000 training data, by 1000 draws each."""
    row = pv.evaluate(model, data.train.head(1000), num_samples=1000).estimates["log_evidence"]
    return {"value": row.value, "se": row.se_data, "se_monte_carlo": row.se_monte_carlo}


def accuracy_by_bayes(model: Autoencoder, data: Dataset) -> dict[str, Any]:
    """How often the class of the greatest p̂(x | c) is the right one, of 200 test data.

    Equal class probabilities, 100 draws for each class. A program that is not given classes
    has no such thing.
    """
    if model.labels is not pv.models.ConditionalVAE.labels:
        return {"value": None, "text": "–"}
    some = data.test.head(200)
    assert some.labels is not None
    x = some.materialize(0)
    scores = [
        pv.evaluate(model, x, torch.full_like(some.labels, c), num_samples=100)
        for c in range(data.num_classes)
    ]
    table = np.stack([bounds.per_datum["log_evidence"] for bounds in scores])
    value = float((table.argmax(0) == some.labels.numpy()).mean())
    return {"value": value, "se": (value * (1 - value) / len(x)) ** 0.5, "num_data": len(x)}


def lower_half(model: Autoencoder, data: Dataset) -> dict[str, Any]:
    """log p̂(lower half | upper half) of 100 test images, paired with independent pixels'.

    The value is that of the model; what its pixels' own frequencies, or means and standard
    deviations, give the lower half stands beside it, with the paired difference.
    """
    x, train = data.test.head(100).materialize(0), data.train.materialize(0)
    observed = queries.mask("lower-half", data.event_shape)
    score = queries.score_missing(model, x, observed=observed, num_samples=2000)
    ours, theirs = score.value, queries.score_pixelwise(train, x, observed)
    gain = ours - theirs
    root = len(x) ** 0.5
    return {
        "value": float(ours.mean()),
        "se": float(ours.std() / root),
        "se_monte_carlo": float(score.variance.sum().sqrt() / len(x)),
        "text": f"{ours.mean():.1f} ({theirs.mean():.1f})",
        "pixelwise": float(theirs.mean()),
        "gain": {"value": float(gain.mean()), "se_paired": float(gain.std() / root)},
        "unreliable": int((score.khat >= 0.7).sum()),
        "num_data": len(x),
        "num_samples": 2000,
    }
