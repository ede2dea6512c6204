"""What the tests of several processes do in each of them, and by themselves to compare with."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

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

#: 21 by 5 leaves a last minibatch of one, of which the first of two processes has nothing.
N, BATCH = 21, 5
small = {name: partial(pv.networks.MLP, hidden=(4,)) for name in ("encoder", "decoder")}


class Told(dist.Normal):
    """N(loc, scale) with a draw that somebody made out of given noise."""

    def __init__(self, loc: Tensor, scale: Tensor, noise: Tensor) -> None:
        super().__init__(loc, scale)
        self.noise = noise

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self.loc + self.scale * self.noise

    def expand(self, batch_shape: Any, _instance: Any = None) -> Told:
        parts = (self.loc, self.scale, self.noise)
        return Told(*(part.expand(batch_shape) for part in parts))


class ToldVAE(PyroModule):
    """A VAE whose noise comes with the data, and a weight w ~ N(0, 1) that all data share."""

    labels = Labels.CONDITION

    def __init__(self, share: bool = True) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(2, 6)
        self.mean = nn.Parameter(torch.zeros(()))
        self.share = share

    def _weight(self, x: Tensor, fn: Any) -> Tensor:
        with pyro.poutine.scale(scale=len(x) / N if self.share else 1.0):
            return pyro.sample("w", fn)

    @pyro_method
    def model(self, x: Tensor, noise: Tensor) -> None:
        w = self._weight(x, dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z) + w).to_event(1), obs=x)

    @pyro_method
    def guide(self, x: Tensor, noise: Tensor) -> None:
        scale = torch.full((), 0.5)
        self._weight(x, Told(self.mean, scale, torch.full((), 0.3)))
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", Told(loc, log_scale.exp(), noise).to_event(1))


class Mixture(PyroModule):
    """y ~ Cat(π), x ~ Π Bernoulli(p_y): summed out, there is no noise at all."""

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


def data() -> pv.data.Split:
    """Images, with noise for a draw of two latents beside each."""
    made = streams.generator(1)
    x = torch.bernoulli(torch.full((N, 6), 0.3), generator=made)
    return pv.data.Split(x, labels=torch.randn(N, 2, generator=made))


def vae(seed: int = 0, **parts: Any) -> pv.VAE:
    with seeded(seed):
        return pv.VAE((6,), 2, **{**small, **parts})


def told(epochs: int = 3, program: Any = None, **options: Any) -> dict[str, Any]:
    """A fit that is the same however many processes do it."""
    if program is None:
        # every process its own: all must start from the first one's
        with seeded(distributed.rank()):
            program = ToldVAE()
    history = pv.fit(
        program,
        data(),
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


def mixture(**options: Any) -> dict[str, Any]:
    with seeded(distributed.rank()):
        program = Mixture()
    return told(program=program, objective=pv.objectives.EnumeratedELBO(), **options)


#: By name, fits whose result is that of one process with the whole minibatch.
TRUTHS: dict[str, Callable[[], dict[str, Any]]] = {
    "ELBO": told,
    "sampled KL": partial(told, objective=pv.objectives.ELBO(analytic_kl=False, beta=0.5)),
    "MAP": partial(told, objective=pv.objectives.ELBO(map_weights=True)),
    "Pyro's own": partial(told, objective=pyro.infer.Trace_ELBO()),
    "momentum": partial(told, optimizer=partial(torch.optim.SGD, lr=1e-3, momentum=0.9)),
    "enumerated": mixture,
}


def freely() -> dict[str, Any]:
    """A fit with noise and early stopping, in which every process draws its own."""
    program = vae(distributed.rank())
    history = pv.fit(
        program,
        data(),
        valid=data().head(5),
        epochs=30,
        patience=2,
        batch_size=BATCH,
        optimizer=partial(torch.optim.Adam, lr=0.3),
        device="cpu",
    )
    told = {name: history[name] for name in ("elbo", "valid_elbo", "lr", "step")}
    return {"weights": program.state_dict(), "best": history.best_epoch, **told}


def bayesian() -> dict[str, Any]:
    with seeded(0):
        program = pv.BayesianVAE((6,), 2, **small)
    pv.fit(program, data(), epochs=2, batch_size=BATCH, device="cpu")
    return {"weights": program.state_dict()}


#: What every ruler is asked of the same data.
RULERS: dict[str, dict[str, Any]] = {
    "weights": {"num_samples": 60, "keep_log_weights": True, "corrected": True, "ks": (5,)},
    "defensive": {"num_samples": 30, "defensive": 0.3},
    "adaptive": {"num_samples": 1600, "tolerance": 0.05, "ks": (5,)},
    "ais": {"num_samples": 30, "ais": pv.Annealing(2, 4, 2)},
    "escalated": {"num_samples": 200, "escalate": pv.Annealing(2, 4, 2)},
}


def judged(name: str, rows: slice = slice(None), seed: int = 7, **options: Any) -> pv.Bounds:
    return pv.evaluate(vae(), data().values[rows], seed=seed, **RULERS[name], **options)


#: What is refused, and how the sentence begins and ends.
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "free bits": (
        partial(told, objective=pv.objectives.ELBO(free_bits=0.1)),
        r"expected an objective that is a sum over .* got ELBO, but free bits look at the mean",
    ),
    "chains": (
        partial(told, objective=pv.objectives.MonteCarloEM()),
        r"expected an objective .* got MonteCarloEM, but the chain of a datum stays",
    ),
    "joint bound": (
        partial(told, objective=RenyiELBO(num_particles=2)),
        r"expected an objective .* got RenyiELBO, but nothing is known",
    ),
    "batch norm": (
        lambda: pv.fit(
            vae(encoder=partial(pv.networks.MLP, hidden=(4,), norm="batch")),
            data(),
            batch_size=6,
            epochs=1,
            device="cpu",
        ),
        r"expected no batch norm with several processes",
    ),
    "best scale": (
        lambda: pv.fit(
            vae(likelihood=partial(pv.likelihoods.Gaussian, scale="optimal")),
            data(),
            batch_size=5,
            epochs=1,
            device="cpu",
        ),
        r"expected a program whose data do not meet .* got 'likelihood.average_moment'",
    ),
    "shared site": (
        lambda: told(program=ToldVAE(share=False)),
        r"expected sites in the plate 'data' .* got 'w', which would be counted otherwise",
    ),
    "other seed": (
        lambda: told(seed=distributed.rank()),
        r"expected the same settings and data in all 2 processes; got another seed in process 1",
    ),
    "other data": (
        lambda: pv.fit(vae(), data().head(N - distributed.rank()), epochs=1, device="cpu"),
        r"expected the same settings .* got another number of data in process 1",
    ),
    "too few": (
        lambda: pv.evaluate(vae(), data().values[:1], num_samples=30),
        r"expected a datum for each of 2 processes at least; got 1: start fewer",
    ),
}


def _refusals() -> dict[str, str]:
    messages = {}
    for name, (call, _) in REFUSED.items():
        try:
            call()
        except ValueError as error:
            messages[name] = str(error)
    return messages


def _noise() -> tuple[float, float, float]:
    """A number that all draw, one of each process's own, and one of all again."""
    with seeded(3):
        common = float(torch.rand(()))
        with seeded(4):
            distributed.seed_by_rank()
            own = float(torch.rand(()))
        return common, own, float(torch.rand(()))


def everything(folder: Path) -> dict[str, Any]:
    """All of it, in one of two processes."""
    mine = folder / f"rank{distributed.rank()}"
    found: dict[str, Any] = {name: fit() for name, fit in TRUTHS.items()}
    found["freely"], found["bayesian"] = freely(), bayesian()
    found["refused"], found["noise"] = _refusals(), _noise()
    # a file of each, to see who writes; and one for both, to resume from
    told(epochs=2, checkpoint=mine / "state.pt")
    found["paused"] = told(epochs=2, checkpoint=folder / "state.pt")
    found["resumed"] = told(epochs=3, checkpoint=folder / "state.pt", resume=True)
    for name in RULERS:
        bounds = judged(name, checkpoint=folder / f"{name}.npz")
        found[f"bounds {name}"] = bounds.to_datatree()["bounds"].to_dataset().to_dict()
        if name == "weights":
            found["raw"] = torch.from_numpy(bounds.log_weights)
    return found


def fail() -> None:
    """A datum that the second of two processes meets has no weight."""

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
        result = everything(Path(sys.argv[1]))
        mine = Path(sys.argv[1]) / f"rank{distributed.rank()}.pt"
    result["threads"] = [task.read_text() for task in Path("/proc/self/task").glob("*/comm")]
    torch.save(result, mine)
