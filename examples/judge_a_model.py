"""Evaluate a VAE that plain PyTorch trained: how far its loss is from −log p(x), and why.

    python examples/judge_a_model.py

The network is plain PyTorch. ``from_modules`` returns a program of its encoder and decoder:

1. The loss of the training is minus the ELBO, a lower bound on log p(x).
2. Importance sampling: log p̂ is the limit of the bounds L_k, and k̂ says for how many examples it
   is reliable. Annealed importance sampling (AIS) does not rely on the encoder: a check of log p̂.
3. Gaps: log p(x) − ELBO is the error of the posterior's family (a diagonal normal cannot be
   p(z|x)) plus the error of the encoder (its q is not the best of the family).
"""

import math

import torch
from torch import nn

import pyro_vae as pv


class Network(nn.Module):
    """A VAE in the style of PyTorch's examples."""

    def __init__(self, pixels: int = 64, width: int = 200, latents: int = 10) -> None:
        super().__init__()
        self.hidden = nn.Linear(pixels, width)
        self.mean, self.log_var = nn.Linear(width, latents), nn.Linear(width, latents)
        layers = nn.Linear(latents, width), nn.ReLU(), nn.Linear(width, pixels), nn.Sigmoid()
        self.decode = nn.Sequential(*layers)

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.hidden(x.flatten(1)).relu()
        return self.mean(h), self.log_var(h)

    def loss(self, x: torch.Tensor) -> torch.Tensor:
        mean, log_var = self.encode(x)
        probs = self.decode(mean + (log_var / 2).exp() * torch.randn_like(mean))
        error = nn.functional.binary_cross_entropy(probs, x.flatten(1), reduction="sum")
        return error - 0.5 * (1 + log_var - mean.square() - log_var.exp()).sum()


def main(
    epochs: int = 100, num_data: int = 20, num_samples: int = 2000, effort: int = 100
) -> tuple:
    torch.manual_seed(0)
    data = pv.data.load("digits", binarize="static")
    x, test = data.train.materialize(0), data.test.head(num_data).materialize(0)
    network = Network()
    adam = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(epochs):
        for batch in x[torch.randperm(len(x))].split(50):
            adam.zero_grad()
            network.loss(batch).backward()
            adam.step()
    print(f"its own loss: {network.loss(test).item() / len(test):.2f} nats per test digit\n")

    program = pv.interop.from_modules(
        network.encode, network.decode, "bernoulli_probs", scale="log_var", data=test
    )
    annealing = pv.Annealing(num_temperatures=effort, num_steps=5)
    sizes = {"num_samples": num_samples, "ks": (5, 50, 500)}
    bounds = pv.evaluate(program, test, **sizes, estimators=[annealing])
    gaps = pv.gaps(
        program, test, num_steps=2 * effort, num_samples=num_samples, annealing=annealing
    )
    print(f"{bounds}\n\n{gaps}\n")

    ais, importance = bounds.estimates["ais"], bounds.estimates["log_evidence"]
    error = math.hypot(ais.se_monte_carlo, importance.se_monte_carlo)
    print(
        f"AIS − log p̂ is {ais.value - importance.value:.3f} ± {error:.3f} nats per digit. Both are "
        f"lower bounds in expectation, so the larger one is closer to log p(x)."
    )
    return bounds, gaps


if __name__ == "__main__":
    main()
