"""Measure how far the ELBO is from log p(x), why, and which number can be trusted.

    python examples/judge_a_model.py

1. Importance sampling: the ELBO and L_k are lower bounds; log p̂ is their limit, and k̂ says for
   how many examples it is reliable.
2. Annealed importance sampling (AIS) does not rely on the encoder: a check of log p̂.
3. Gaps: log p(x) − ELBO is the error of the posterior's family (a diagonal normal cannot be
   p(z|x)) plus the error of the encoder (its q is not the best of the family).
"""

import math

import torch

import pyro_vae as pv


def main(
    epochs: int = 100, num_data: int = 20, num_samples: int = 2000, effort: int = 100
) -> tuple:
    torch.manual_seed(0)
    data = pv.data.load("digits", binarize="static")
    vae = pv.VAE(data.event_shape, latent_dim=10)
    pv.fit(vae, data.train, epochs=epochs)
    test = data.test.head(num_data)

    annealing = pv.Annealing(num_temperatures=effort, num_steps=5)
    bounds = pv.evaluate(
        vae, test, num_samples=num_samples, ks=(5, 50, 500), estimators=[annealing]
    )
    print(bounds)

    gaps = pv.gaps(vae, test, num_steps=2 * effort, num_samples=num_samples, annealing=annealing)
    print(f"\n{gaps}\n")

    ais, importance = bounds.estimates["ais"], bounds.estimates["log_evidence"]
    error = math.hypot(ais.se_monte_carlo, importance.se_monte_carlo)
    print(
        f"AIS − log p̂ is {ais.value - importance.value:.3f} ± {error:.3f} nats per digit. Both are "
        f"lower bounds in expectation, so the larger one is closer to log p(x)."
    )
    return bounds, gaps


if __name__ == "__main__":
    main()
