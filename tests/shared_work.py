"""Work for the multi-process tests, run in each process and in one process for comparison."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pyro
import pyro.distributions as dist
import streams
import torch
from pyro.infer import RenyiELBO
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.core import distributed
from pyro_vae.core.components import Labels
from pyro_vae.core.random import seeded
from pyro_vae.evaluation import AdaptiveSamples, Corrected, Defensive, Ladder, Laplace
from pyro_vae.evaluation.importance import errors

#: The last minibatch of 21 examples has a single one, and is empty in the first of two processes.
N, BATCH = 21, 5
SMALL_NETWORKS = {name: partial(pv.networks.MLP, hidden=(4,)) for name in ("encoder", "decoder")}


class GivenNoiseNormal(dist.Normal):
    """N(loc, scale) with samples computed from given noise."""

    def __init__(self, loc: Tensor, scale: Tensor, noise: Tensor) -> None:
        super().__init__(loc, scale)
        self.noise = noise

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self.loc + self.scale * self.noise

    def expand(self, batch_shape: Any, _instance: Any = None) -> GivenNoiseNormal:
        parts = (self.loc, self.scale, self.noise)
        return GivenNoiseNormal(*(part.expand(batch_shape) for part in parts))


class GivenNoiseVAE(PyroModule):
    """A VAE with noise given as part of the data, and a global weight w ~ N(0, 1)."""

    labels = Labels.CONDITION

    def __init__(self, scale_global: bool = True) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(2, 6)
        self.mean = nn.Parameter(torch.zeros(()))
        self.scale_global = scale_global

    def _sample_weight(self, x: Tensor, fn: Any) -> Tensor:
        with pyro.poutine.scale(scale=len(x) / N if self.scale_global else 1.0):
            return pyro.sample("w", fn)

    @pyro_method
    def model(self, x: Tensor, noise: Tensor) -> None:
        w = self._sample_weight(x, dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z) + w).to_event(1), obs=x)

    @pyro_method
    def guide(self, x: Tensor, noise: Tensor) -> None:
        scale = torch.full((), 0.5)
        self._sample_weight(x, GivenNoiseNormal(self.mean, scale, torch.full((), 0.3)))
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", GivenNoiseNormal(loc, log_scale.exp(), noise).to_event(1))


class Mixture(PyroModule):
    """y ~ Cat(π), x ~ Π Bernoulli(p_y), deterministic if y is summed out."""

    def __init__(self) -> None:
        super().__init__()
        self.weights, self.pixels = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.randn(3, 6))
        self.classifier, self.unused = nn.Linear(6, 3), nn.Linear(2, 2)

    @pyro_method
    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.weights))
            pyro.sample("x", dist.Bernoulli(logits=self.pixels[y]).to_event(1), obs=x)

    @pyro_method
    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            q = dist.Categorical(logits=self.classifier(x))
            pyro.sample("y", q, infer={"enumerate": "parallel"})


def make_split() -> pv.data.Split:
    """Create binary data, with the noise of two latents as the labels."""
    generator = streams.generator(1)
    x = torch.bernoulli(torch.full((N, 6), 0.3), generator=generator)
    return pv.data.Split(x, labels=torch.randn(N, 2, generator=generator))


def make_vae(seed: int = 0, **parts: Any) -> pv.VAE:
    with seeded(seed):
        return pv.VAE((6,), 2, **{**SMALL_NETWORKS, **parts})


def fit_given_noise(epochs: int = 3, program: Any = None, **options: Any) -> dict[str, Any]:
    """Run a fit with results that do not depend on the number of processes."""
    if program is None:
        # different weights in each process: all must start from those of rank 0
        with seeded(distributed.rank()):
            program = GivenNoiseVAE()
    history = pv.fit(
        program,
        make_split(),
        **{
            "epochs": epochs,
            "batch_size": BATCH,
            "optimizer": partial(torch.optim.Adam, lr=0.05),
            "schedule": partial(torch.optim.lr_scheduler.StepLR, step_size=2),
            "clip_norm": 2.0,
            "device": "cpu",
            **options,
        },
    )
    return {"weights": program.state_dict(), "elbo": history["elbo"], "lr": history["lr"]}


def fit_mixture(**options: Any) -> dict[str, Any]:
    with seeded(distributed.rank()):
        program = Mixture()
    return fit_given_noise(program=program, objective=pv.objectives.EnumeratedELBO(), **options)


#: Fits with the same result as one process with the whole minibatch, by name.
EXACT_FITS: dict[str, Callable[[], dict[str, Any]]] = {
    "ELBO": fit_given_noise,
    "sampled KL": partial(
        fit_given_noise, objective=pv.objectives.ELBO(analytic_kl=False, beta=0.5)
    ),
    "MAP": partial(fit_given_noise, objective=pv.objectives.ELBO(map_weights=True)),
    "Pyro's own": partial(fit_given_noise, objective=pyro.infer.Trace_ELBO()),
    "momentum": partial(fit_given_noise, optimizer=partial(torch.optim.SGD, lr=1e-3, momentum=0.9)),
    "enumerated": fit_mixture,
}


def fit_early_stopping() -> dict[str, Any]:
    """Run a fit with early stopping and different noise in each process."""
    program = make_vae(distributed.rank())
    history = pv.fit(
        program,
        make_split(),
        valid=make_split().head(5),
        epochs=30,
        patience=2,
        batch_size=BATCH,
        optimizer=partial(torch.optim.Adam, lr=0.3),
        device="cpu",
    )
    series = {name: history[name] for name in ("elbo", "valid_elbo", "lr", "step")}
    return {"weights": program.state_dict(), "best": history.best_epoch, **series}


def fit_bayesian() -> dict[str, Any]:
    with seeded(0):
        program = pv.BayesianVAE((6,), 2, **SMALL_NETWORKS)
    pv.fit(program, make_split(), epochs=2, batch_size=BATCH, device="cpu")
    return {"weights": program.state_dict()}


#: Options of ``evaluate`` for each estimator.
ESTIMATORS: dict[str, dict[str, Any]] = {
    "weights": {
        "num_samples": 60,
        "keep_log_weights": True,
        "estimators": [Corrected()],
        "ks": (5,),
    },
    "defensive": {"num_samples": 30, "estimators": [Defensive(0.3)]},
    "adaptive": {"num_samples": 1600, "estimators": [AdaptiveSamples(0.05)], "ks": (5,)},
    "ais": {"num_samples": 30, "estimators": [pv.Annealing(2, 4, 2)]},
    "ladder": {
        "num_samples": 200,
        "estimators": [Ladder(Laplace(50, num_steps=2, num_rounds=0), pv.Annealing(2, 4, 2), 0.2)],
    },
}


def run_evaluation(
    name: str, rows: slice = slice(None), seed: int = 7, **options: Any
) -> pv.Bounds:
    x = make_split().values[rows]
    # errors that do not depend on the other examples, so that shards are separate evaluations
    with mock.patch.object(errors, "_NUM_STEPS", 0):
        return pv.evaluate(make_vae(), x, seed=seed, **ESTIMATORS[name], **options)


#: Calls that raise, with a pattern for the message.
ERRORS: dict[str, tuple[Callable[[], Any], str]] = {
    "free bits": (
        partial(fit_given_noise, objective=pv.objectives.ELBO(free_bits=0.1)),
        r"expected an objective that is a sum over .* got ELBO, but free bits depend on the mean",
    ),
    "chains": (
        partial(fit_given_noise, objective=pv.objectives.MonteCarloEM()),
        r"expected an objective .* got MonteCarloEM, but each process keeps the chains",
    ),
    "joint bound": (
        partial(fit_given_noise, objective=RenyiELBO(num_particles=2)),
        r"expected an objective .* got RenyiELBO, but it is not known",
    ),
    "batch norm": (
        lambda: pv.fit(
            make_vae(encoder=partial(pv.networks.MLP, hidden=(4,), norm="batch")),
            make_split(),
            batch_size=6,
            epochs=1,
            device="cpu",
        ),
        r"expected no batch norm with several processes",
    ),
    "best scale": (
        lambda: pv.fit(
            make_vae(likelihood=partial(pv.likelihoods.Gaussian, scale="optimal")),
            make_split(),
            batch_size=5,
            epochs=1,
            device="cpu",
        ),
        r"expected a program that treats examples independently.* got 'likelihood.average_moment'",
    ),
    "shared site": (
        lambda: fit_given_noise(program=GivenNoiseVAE(scale_global=False)),
        r"expected sites whose scale is constant in the plate 'data' .* got 'w', whose scale is "
        r"not",
    ),
    "other seed": (
        lambda: fit_given_noise(seed=distributed.rank()),
        r"expected the same settings and data in all 2 processes; got a different seed in "
        r"process 1",
    ),
    "other data": (
        lambda: pv.fit(
            make_vae(), make_split().head(N - distributed.rank()), epochs=1, device="cpu"
        ),
        r"expected the same settings .* got a different number of examples in process 1",
    ),
    "too few": (
        lambda: pv.evaluate(make_vae(), make_split().values[:1], num_samples=30),
        r"expected at least one example for each of 2 processes; got 1: start fewer",
    ),
}


def _error_messages() -> dict[str, str]:
    messages = {}
    for name, (call, _) in ERRORS.items():
        try:
            call()
        except ValueError as error:
            messages[name] = str(error)
    return messages


def _draw_noise() -> tuple[float, float, float]:
    """Draw a shared number, one that depends on the rank, and a shared number again."""
    with seeded(3):
        common = float(torch.rand(()))
        with seeded(4):
            distributed.seed_by_rank()
            by_rank = float(torch.rand(()))
        return common, by_rank, float(torch.rand(()))


def run_all(folder: Path) -> dict[str, Any]:
    """Run all of this module's work in one of two processes."""
    rank_folder = folder / f"rank{distributed.rank()}"
    results: dict[str, Any] = {name: fit() for name, fit in EXACT_FITS.items()}
    results["early_stopping"], results["bayesian"] = fit_early_stopping(), fit_bayesian()
    results["errors"], results["noise"] = _error_messages(), _draw_noise()
    # one file per rank, to check which process writes; and a common one, to resume from
    fit_given_noise(epochs=2, checkpoint=rank_folder / "state.pt")
    results["paused"] = fit_given_noise(epochs=2, checkpoint=folder / "state.pt")
    results["resumed"] = fit_given_noise(epochs=3, checkpoint=folder / "state.pt", resume=True)
    for name in ESTIMATORS:
        bounds = run_evaluation(name, checkpoint=folder / f"{name}.npz")
        results[f"bounds {name}"] = bounds.to_datatree()["bounds"].to_dataset().to_dict()
        if name == "weights":
            results["log_weights"] = torch.from_numpy(bounds.log_weights)
    return results


def fail() -> None:
    """Evaluate data with an example of NaN weight in the second of two processes."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0, validate_args=False), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    x = torch.zeros(10)
    x[8] = torch.nan
    pv.evaluate((model, guide), x, num_samples=30)
    time.sleep(60)


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    with distributed.process_group():
        if sys.argv[1] == "fail":
            fail()
        result = run_all(Path(sys.argv[1]))
        file = Path(sys.argv[1]) / f"rank{distributed.rank()}.pt"
    result["threads"] = [task.read_text() for task in Path("/proc/self/task").glob("*/comm")]
    torch.save(result, file)
