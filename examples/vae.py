"""Train a variational autoencoder on 4050 MNIST digits, measure it, and look at its samples.

    python examples/vae.py

The model is z ~ N(0, I), x ~ Bernoulli(decoder(z)); the guide is a diagonal normal whose mean and
scale an encoder computes from x. Training maximises the ELBO. The evaluation uses test digits only.
"""

import torch

import pyro_vae as pv


def print_digits(images: torch.Tensor) -> None:
    """Print grey images ``(N, 1, 28, 28)`` side by side, one character for each pixel."""
    shades = " .:-=+*#%@"
    for rows in images[:, 0, ::2].unbind(1):  # a character is twice as high as it is wide
        print("  ".join("".join(shades[int(9 * p)] for p in row) for row in rows))


def main(epochs: int = 40, num_data: int = 100, num_samples: int = 500) -> pv.Bounds:
    torch.manual_seed(0)  # the initial weights
    # each pixel is drawn from Bernoulli(grey value) again in every epoch
    data = pv.data.load("mnist5k", binarize="dynamic")
    print(data)

    vae = pv.VAE(data.event_shape, latent_dim=20)
    history = pv.fit(vae, data.train, epochs=epochs)
    elbos = history["elbo"]
    print(f"\ntraining ELBO: {elbos[0]:.1f} after one epoch, {elbos[-1]:.1f} after {epochs}\n")

    bounds = pv.evaluate(vae, data.test.head(num_data), num_samples=num_samples, ks=(5, 50))
    print(bounds)

    print("\nMeans of p(x|z) for five samples z ~ p(z):")
    print_digits(pv.queries.sample(vae, 5).mean)
    return bounds


if __name__ == "__main__":
    main()
