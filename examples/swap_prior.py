"""Compare four priors p(z) in the same variational autoencoder.

    python examples/swap_prior.py

A part of a program is replaced by its class, or by a ``functools.partial`` of the class to set
further arguments. Likelihoods, posteriors and networks are replaced in the same way. The difference
to the first row is taken example by example, which removes most of the noise; ± is its standard
error. Below twice that, more training or test data would be needed to tell the priors apart.
"""

from functools import partial

import torch

import pyro_vae as pv

PRIORS = {
    "StandardNormal": pv.priors.StandardNormal,
    "MixtureOfNormals": partial(pv.priors.MixtureOfNormals, components=20),
    "VampPrior": partial(pv.priors.VampPrior, components=50, start="data"),
    "FlowPrior": partial(pv.priors.FlowPrior, transform="coupling", flows=4),
}


def main(epochs: int = 60, num_data: int = 180, num_samples: int = 300) -> dict[str, float]:
    data = pv.data.load("digits", binarize="dynamic")
    # the mean of the data in the decoder's bias keeps the encoder from collapsing at the start
    decoder = partial(pv.networks.MLP, output_bias="data")
    print(f"L_{num_samples} on {num_data} test digits, nats; higher is better")
    results, baseline = {}, None
    for name, prior in PRIORS.items():
        torch.manual_seed(0)
        vae = pv.VAE(data.event_shape, latent_dim=2, prior=prior, decoder=decoder)
        pv.fit(vae, data.train, epochs=epochs)
        bounds = pv.evaluate(vae, data.test.head(num_data), num_samples=num_samples)
        values = bounds.iwae_per_datum[num_samples]
        baseline = values if baseline is None else baseline
        difference = values - baseline
        error = difference.std(ddof=1) / num_data**0.5
        print(f"{name:18}{values.mean():9.2f}   {difference.mean():+.2f} ± {error:.2f}")
        results[name] = float(values.mean())
    return results


if __name__ == "__main__":
    main()
