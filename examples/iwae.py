"""Train with the ELBO and with the importance weighted bound L_20, and compare the models.

    python examples/iwae.py

L_k is the expectation of log 1/k Σ_i p(x, z_i) / q(z_i|x) over k samples from q. It increases with
k from the ELBO (k = 1) towards log p(x). Training with a larger k accepts an encoder that is good
with k attempts, which leaves the model freer: Burda et al. (2015), https://arxiv.org/abs/1509.00519.
Expect a better L_k from the IWAE, and a worse ELBO: its encoder is not trained for one sample.
"""

import torch

import pyro_vae as pv


def main(epochs: int = 60, k: int = 20, num_data: int = 180, num_samples: int = 300) -> dict:
    data = pv.data.load("digits", binarize="dynamic")
    test = data.test.head(num_data)
    objectives = {"ELBO": pv.objectives.ELBO(), f"IWAE, k = {k}": pv.objectives.IWAE(k=k)}
    print(f"{num_data} test digits; nats, higher is better")
    print(f"{'objective':14}{'ELBO':>9}{f'L_{num_samples}':>10}{'gap':>8}")
    results = {}
    for name, objective in objectives.items():
        torch.manual_seed(0)
        vae = pv.VAE(data.event_shape, latent_dim=10)
        pv.fit(vae, data.train, objective=objective, epochs=epochs)
        bounds = pv.evaluate(vae, test, num_samples=num_samples)
        print(f"{name:14}{bounds.elbo:9.2f}{bounds.iwae[num_samples]:10.2f}{bounds.gap:8.2f}")
        results[name] = bounds
    return results


if __name__ == "__main__":
    main()
