"""Model data of your own: any array, here 13 chemical measurements of 178 wines of three growers.

    python examples/own_data.py

The steps: a tensor ``(N, …)``, a split, a likelihood for its kind of values, and, if there are
labels, a ``Split`` with them for a program that conditions on them. A density in nats depends on
the units of x, so the result is compared with a normal distribution fitted to the same data.
"""

from functools import partial

import torch
from sklearn.datasets import load_wine
from torch.distributions import Independent, MultivariateNormal, Normal

import pyro_vae as pv


def main(epochs: int = 200, num_samples: int = 500) -> dict[str, float]:
    torch.manual_seed(0)
    values, classes = load_wine(return_X_y=True)
    x = torch.as_tensor(values, dtype=torch.float32)  # as for a DataFrame's to_numpy()
    labels = torch.as_tensor(classes)

    rows = torch.randperm(len(x))
    train_rows, test_rows = rows[:142], rows[142:]
    x = (x - x[train_rows].mean(0)) / x[train_rows].std(0)  # test data must not set the scale
    train = pv.data.Split(x[train_rows], labels=labels[train_rows])
    test = pv.data.Split(x[test_rows], labels=labels[test_rows])
    print(f"{train}\nkind of values: {pv.data.kind_of(x)}, so a likelihood of real values\n")

    network = partial(pv.networks.MLP, hidden=(50,))
    parts = {
        "latent_dim": 5,
        "likelihood": partial(pv.likelihoods.Gaussian, scale="per_pixel"),
        "encoder": network,
        "decoder": network,
    }
    programs = {
        "VAE, p(x)": pv.VAE(train.event_shape, **parts),
        "ConditionalVAE, p(x|class)": pv.ConditionalVAE(train.event_shape, condition=3, **parts),
    }
    covariance = x[train_rows].T.cov() + 1e-4 * torch.eye(x.shape[1])
    normals = {
        "independent normals": Independent(Normal(torch.zeros(x.shape[1]), 1.0), 1),
        "multivariate normal": MultivariateNormal(torch.zeros(x.shape[1]), covariance),
    }
    results = {name: float(p.log_prob(test.values).mean()) for name, p in normals.items()}
    for name, program in programs.items():
        pv.fit(program, train, epochs=epochs, batch_size=50)
        results[name] = pv.evaluate(program, test, num_samples=num_samples).log_evidence
    print("log-density of the test data, nats per example; higher is better")
    for name, value in results.items():
        print(f"{name:28}{value:8.2f}")
    return results


if __name__ == "__main__":
    main()
