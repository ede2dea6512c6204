"""Models that pythae and plain torch trained: the numbers that they report, beside our bounds.

Each model is trained as its library suggests, on MNIST. Beside its own loss on test digits and, for
pythae, its importance-sampling estimate ``get_nll``, the table has our ELBO, L_50, log p̂ of the
ladder of proposals (``reliable=True``), the number of digits with a bad k̂ of the encoder's samples,
and what the reported loss is, compared with these.

References:
    Pythae: Unifying Generative Autoencoders in Python (Chadebec et al., 2022).
    https://arxiv.org/abs/2206.08309
"""

from __future__ import annotations

import contextlib
import io
import math
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, mse_loss

import pyro_vae as pv
from pyro_vae.core.random import seeded

from ..study import Study

__all__ = ["ROWS", "STUDY", "Trained", "format_table", "judge", "measure"]

TITLE = "Trained models of pythae and plain torch: their reported numbers, and our bounds"
#: Passes over the test digits for the mean of a reported loss, each with one z per digit.
_NUM_PASSES = 20

PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "data": "digits",
        "train": 200,
        "epochs": 1,
        "num_data": 5,
        "num_samples": 60,
        "latent_dim": 2,
    },
    "small": {
        "data": "mnist",
        "train": 6000,
        "epochs": 10,
        "num_data": 100,
        "num_samples": 1000,
        "latent_dim": 10,
    },
}


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Attributes:
        loss: returns its own loss on data, the mean per example, from one z per example.
        program: returns its program for test data; raises a ``ValueError`` if there is none.
        x: the test data.
        constant: what its loss leaves out of −log p(x|z), in nats per example.
        estimate: its own estimate of log p(x) from K samples, if any.
        num_particles: k of the bound L_k whose negative its loss stands for; 1 for the ELBO.
    """

    loss: Callable[[Tensor], Tensor]
    program: Callable[[Tensor], pv.VAE]
    x: Tensor
    constant: float = 0.0
    estimate: Callable[[Tensor, int], float] | None = None
    num_particles: int = 1


def train_pythae(
    name: str, preset: dict[str, Any], loss: str = "bce", grey: bool = False, **options: Any
) -> Trained:
    """Train a model of pythae by its pipeline, with its default networks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its dependencies
        from pythae import models
        from pythae.pipelines import TrainingPipeline
        from pythae.trainers import BaseTrainerConfig
    train, test = _load(preset, grey)
    names = (f"{name}Config", f"{name}_Config")
    config = next(getattr(models, n) for n in names if hasattr(models, n))
    model = getattr(models, name)(
        config(
            input_dim=tuple(train.shape[1:]),
            latent_dim=preset["latent_dim"],
            reconstruction_loss=loss,
            **options,
        )
    )
    with tempfile.TemporaryDirectory() as folder, _quiet():
        trainer = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=preset["epochs"],
            per_device_train_batch_size=100,
            learning_rate=1e-3,
            no_cuda=True,
        )
        TrainingPipeline(model=model, training_config=trainer)(train_data=train)
    model.eval()

    def estimate(x: Tensor, num_samples: int) -> float:
        with _quiet():
            return float(model.get_nll(x, n_samples=num_samples, batch_size=num_samples))

    return Trained(
        loss=lambda x: model({"data": x}).loss.mean(),
        program=lambda x: pv.interop.from_pythae(model, x),
        x=test,
        constant=train[0].numel() / 2 * math.log(2 * math.pi) if loss == "mse" else 0.0,
        estimate=estimate,
        num_particles=options.get("number_samples", 1),
    )


class Network(nn.Module):
    """The VAE of PyTorch's examples, with the layers of pythae's defaults."""

    def __init__(self, pixels: int, latents: int, width: int = 512) -> None:
        super().__init__()
        self.hidden = nn.Linear(pixels, width)
        self.mean, self.log_var = nn.Linear(width, latents), nn.Linear(width, latents)
        self.decode = nn.Sequential(
            nn.Linear(latents, width), nn.ReLU(), nn.Linear(width, pixels), nn.Sigmoid()
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.hidden(x.flatten(1)).relu()
        return self.mean(h), self.log_var(h)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reconstructions and the KL divergences, ``(N,)``."""
        mean, log_var = self.encode(x)
        divergence = -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum(1)
        return self.decode(mean + (log_var / 2).exp() * torch.randn_like(mean)), divergence


def _cross_entropy(network: Network, x: Tensor) -> Tensor:
    decoded, divergence = network(x)
    errors = binary_cross_entropy(decoded, x.flatten(1), reduction="none").sum(1)
    return (errors + divergence).mean()


def _mean_squared_error(network: Network, x: Tensor) -> Tensor:
    decoded, divergence = network(x)
    # the error is averaged over pixels, the divergence summed over latents
    return mse_loss(decoded, x.flatten(1)) + divergence.mean()


def train_torch(
    loss: Callable[[Network, Tensor], Tensor],
    preset: dict[str, Any],
    likelihood: str,
    grey: bool = False,
    noise: str | None = None,
) -> Trained:
    """Train a network of plain torch."""
    train, test = _load(preset, grey)
    network = Network(train[0].numel(), preset["latent_dim"])
    adam = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(preset["epochs"]):
        for rows in torch.randperm(len(train)).split(100):
            adam.zero_grad()
            loss(network, train[rows]).backward()
            adam.step()

    def program(x: Tensor) -> pv.VAE:
        return pv.interop.from_modules(
            network.encode, network.decode, likelihood, data=x, scale="log_var", noise=noise
        )

    return Trained(lambda x: loss(network, x), program, test)


def _load(preset: dict[str, Any], grey: bool) -> tuple[Tensor, Tensor]:
    """Return training and test digits, binary or as grey values in [0, 1]."""
    data = pv.data.load(
        preset["data"], binarize="none" if grey else "static", train=preset["train"]
    )
    return data.train.materialize(0), data.test.head(preset["num_data"]).materialize(0)


@contextlib.contextmanager
def _quiet() -> Any:
    """Discard the output of a library."""
    import logging

    logging.disable(logging.INFO)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


#: By row: trains the model.
ROWS: dict[str, Callable[[dict[str, Any]], Trained]] = {
    "pythae VAE": lambda p: train_pythae("VAE", p),
    "pythae BetaVAE, β = 4": lambda p: train_pythae("BetaVAE", p, beta=4.0),
    "pythae IWAE, K = 10": lambda p: train_pythae("IWAE", p, number_samples=10),
    "pythae VAMP": lambda p: train_pythae("VAMP", p, number_components=50),
    "pythae VAE_IAF": lambda p: train_pythae("VAE_IAF", p),
    "pythae VAE_LinNF, planar": lambda p: train_pythae("VAE_LinNF", p, flows=["Planar"] * 4),
    "pythae VAE, squared error, grey": lambda p: train_pythae("VAE", p, "mse", grey=True),
    "pythae VAE, cross entropy, grey": lambda p: train_pythae("VAE", p, grey=True),
    "torch, cross entropy": lambda p: train_torch(_cross_entropy, p, "bernoulli_probs"),
    "torch, mean squared error, grey": lambda p: train_torch(
        _mean_squared_error, p, "gaussian", grey=True, noise="optimal"
    ),
}


def measure_model(trained: Trained, num_samples: int) -> dict[str, Any]:
    """Return what a model reports, and our bounds.

    ``reported``: minus its loss, in nats per example; ``constant``: what the loss leaves out;
    ``estimate``: its own estimate of log p(x); ``elbo``, ``iwae`` (L_50), ``log_evidence``: ours;
    ``bound``: the bound that its loss stands for; ``se``: Monte Carlo errors; ``bad_khat``:
    examples with a bad k̂ of the encoder's samples; ``refusal``: why there is no program;
    ``verdict``: what the reported loss is.
    """
    x, row = trained.x, {}
    with torch.no_grad():
        losses = torch.tensor([float(trained.loss(x)) for _ in range(_NUM_PASSES)])
        row["reported"] = -float(losses.mean())
        row["reported_se"] = float(losses.std()) / _NUM_PASSES**0.5
        row["constant"] = trained.constant
        if trained.estimate is not None:
            row["estimate"] = trained.estimate(x, num_samples)
    row["num_data"], row["num_samples"] = len(x), num_samples
    try:
        program = trained.program(x)
    except ValueError as error:
        row["refusal"] = str(error)
        row["verdict"] = _shorten(str(error))
        return row
    k = trained.num_particles
    guide = pv.evaluate(program, x, num_samples=num_samples, ks=(50,) if k == 1 else (k, 50))
    ladder = pv.evaluate(program, x, num_samples=num_samples, ks=(50,), reliable=True)
    name = "elbo" if k == 1 else f"iwae_{k}"
    row |= {
        "bound": {"name": "the ELBO" if k == 1 else f"L_{k}", "value": guide.estimates[name].value},
        "elbo": guide.elbo,
        "iwae": guide.iwae[50],
        "log_evidence": ladder.log_evidence,
        "se": {
            "bound": guide.estimates[name].se_monte_carlo,
            "log_evidence": ladder.estimates["log_evidence"].se_monte_carlo,
        },
        "bad_khat": len(guide.unreliable),
        "flagged": len(ladder.unreliable),
        "proposals": ladder.proposals,
    }
    row["verdict"] = judge(row["reported"] - trained.constant, row["reported_se"], row)
    return row


def _shorten(message: str) -> str:
    """Return the reason of a refusal without its remedy."""
    if "cross entropy" in message:
        return "refused: a cross entropy of grey values is no log-likelihood"
    if "invertible" in message:
        return "refused: a planar flow is not invertible, so that its loss is no bound"
    return f"refused: {message.partition(': ')[0]}"


def judge(claimed: float, error: float, row: dict[str, Any]) -> str:
    """Return what a reported number is, beside the bound that it stands for and log p̂.

    Arguments:
        claimed: minus the loss, without the constant that it leaves out.
        error: its standard error.
        row: our numbers, see :func:`measure_model`.
    """
    name, bound, log_evidence = *row["bound"].values(), row["log_evidence"]
    if abs(claimed - bound) <= 4 * math.hypot(error, row["se"]["bound"]) + 0.01:
        constant = row["constant"]
        return f"{name}, without a constant of {constant:.1f} nats" if constant else name
    if claimed > log_evidence + 4 * math.hypot(error, row["se"]["log_evidence"]):
        return f"no bound: {claimed - log_evidence:.2f} nats above log p̂"
    if claimed > bound:
        return f"{claimed - bound:.2f} nats above {name}, {log_evidence - claimed:.2f} below log p̂"
    return f"{bound - claimed:.2f} nats below {name}"


def measure(name: str, seed: int, only: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the rows of the results."""
    preset, rows = PRESETS[name], {}
    for index, (label, train) in enumerate(ROWS.items()):
        if only and label not in only:
            continue
        with seeded(seed, index):
            rows[label] = measure_model(train(preset), preset["num_samples"])
        print(f"{label}: {rows[label]}", flush=True)
    return rows


def format_table(results: dict[str, Any]) -> str:
    """Format the results as the Markdown table of ``docs/how-to/interop.md``."""
    lines = [
        "| model | −loss | own estimate | ELBO | L_50 | log p̂ | bad k̂ | the reported loss is |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for label, row in results["rows"].items():
        numbers = [f"{row['reported']:.2f}"]
        numbers.append(f"{row['estimate']:.2f}" if "estimate" in row else "–")
        if "elbo" in row:
            numbers += [f"{row[key]:.2f}" for key in ("elbo", "iwae", "log_evidence")]
            numbers.append(f"{row['bad_khat']} of {row['num_data']}")
        else:
            numbers += ["–"] * 4
        lines.append(f"| {' | '.join([label, *numbers, row['verdict']])} |")
    return "\n".join(lines)


STUDY = Study(
    "judge",
    TITLE,
    PRESETS,
    list(ROWS),
    measure,
    measure_model.__doc__ or "",
    format_table,
)


if __name__ == "__main__":
    sys.exit(STUDY.main())
