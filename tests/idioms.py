"""Small programs in the styles of Pyro's tutorials and examples, with log p(x) by other means.

Each is written as Pyro users write it: ``pyro.module`` and ``pyro.param`` in the global store,
plates of any name, unsized or subsampled, several observed sites, masks, lengths, enumerated
sites. :func:`log_evidence` computes log p(x) on a grid of the latents with Pyro alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

import pyro_vae as pv

N = 6


@dataclass
class Idiom:
    """A program with data, and its exact log-evidence.

    Attributes:
        model, guide: the program.
        args, kwargs: arguments of both; the first is the data.
        log_evidence: returns log p(x) of each example, ``(N,)``, for the present parameters.
        options: options of ``fit``.
        codes: by site, a function that returns the mean of q(z|x), ``(N, *event)``.
        draws_minibatch: whether a run has a random part of the examples.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]
    log_evidence: Callable[[], Tensor]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    codes: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict)
    draws_minibatch: bool = False


def grid(size: int = 81, width: float = 7.0) -> tuple[Tensor, Tensor]:
    """Points ``(size, 1)`` of the trapezoidal rule on [−width, width], and log-weights."""
    points = torch.linspace(-width, width, size)
    return points.unsqueeze(-1), torch.full((size,), 2 * width / (size - 1)).log()


def log_evidence(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    grids: Mapping[str, tuple[Tensor, Tensor]],
) -> Tensor:
    """Sum p(x, z) over the product of the grids of all latents: log p(x), ``(N,)``.

    Arguments:
        grids: for each latent site its points ``(size, *event)`` and their log-weights.
    """
    size = len(args[0])
    sizes = [len(points) for points, _ in grids.values()]
    index = torch.cartesian_prod(*map(torch.arange, sizes)).reshape(-1, len(sizes))
    total = []
    # the points of the grid are a batch dimension to the left of the plate
    for choice in index.split(4096):
        columns = list(zip(grids.items(), choice.T, strict=True))
        values = {n: p[i].unsqueeze(1).expand(-1, size, -1) for (n, (p, _)), i in columns}
        with torch.no_grad():
            trace = poutine.trace(poutine.condition(model, values)).get_trace(*args, **kwargs)
            trace.compute_log_prob()
        log_p = sum(weights[i].unsqueeze(1) for (_, (_, weights)), i in columns)
        for site in trace.nodes.values():
            if site["type"] == "sample" and not poutine.util.site_is_subsample(site):
                # the scales of training are not part of the density
                log_p = log_p + site["unscaled_log_prob"]
        total.append(log_p.double().logsumexp(0))
    return torch.stack(total).logsumexp(0)


def _network(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs))


class TutorialVAE(nn.Module):
    """Pyro's VAE tutorial: ``pyro.module``, and an observed site that is a reshape of x."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = _network(6, 2), _network(1, 6)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = x.new_zeros(torch.Size((x.shape[0], 1)))
            z_scale = x.new_ones(torch.Size((x.shape[0], 1)))
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            loc = self.decoder(z).sigmoid()
            pyro.sample("obs", dist.Bernoulli(loc).to_event(1), obs=x.reshape(-1, 6))

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder(x.reshape(-1, 6)).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))


def tutorial() -> Idiom:
    vae, x = TutorialVAE(), torch.bernoulli(torch.full((N, 1, 2, 3), 0.5))
    return Idiom(
        vae.model,
        vae.guide,
        (x,),
        lambda: log_evidence(vae.model, (x,), {}, {"latent": grid()}),
        codes={"latent": lambda: vae.encoder(x.reshape(N, 6))[:, :1]},
    )


def functions() -> Idiom:
    """Plain functions, with modules and parameters in Pyro's global store."""
    encoder, decoder = _network(3, 2), nn.Linear(1, 3)
    x = torch.randn(N, 3)

    def model(x):
        pyro.module("decoder", decoder)
        scale = pyro.param("scale", torch.tensor(0.8), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), scale).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def evidence():
        w, b, s = decoder.weight[:, 0], decoder.bias, pyro.param("scale")
        covariance = torch.outer(w, w) + s**2 * torch.eye(3)
        return dist.MultivariateNormal(b, covariance).log_prob(x).detach().double()

    model(x), guide(x)
    return Idiom(model, guide, (x,), evidence, codes={"z": lambda: encoder(x)[:, :1]})


class SemiSupervised(nn.Module):
    """Pyro's ss_vae_M2: a plate without a size, and a class that is a latent or observed."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder_y, self.encoder_z, self.decoder = (
            _network(4, 3),
            _network(7, 2),
            _network(4, 4),
        )

    @staticmethod
    def _concatenate(*parts: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        return torch.cat([part.expand(*shape, -1) for part in parts], -1)

    def model(self, xs, ys=None):
        pyro.module("ss_vae", self)
        with pyro.plate("data"):
            prior_loc, prior_scale = xs.new_zeros(xs.size(0), 1), xs.new_ones(xs.size(0), 1)
            zs = pyro.sample("z", dist.Normal(prior_loc, prior_scale).to_event(1))
            alpha_prior = xs.new_ones(xs.size(0), 3) / 3.0
            ys = pyro.sample("y", dist.OneHotCategorical(alpha_prior), obs=ys)
            loc = self.decoder(self._concatenate(zs, ys)).sigmoid()
            pyro.sample("x", dist.Bernoulli(loc, validate_args=False).to_event(1), obs=xs)

    def guide(self, xs, ys=None):
        with pyro.plate("data"):
            if ys is None:
                ys = pyro.sample("y", dist.OneHotCategorical(self.encoder_y(xs).softmax(-1)))
            loc, log_scale = self.encoder_z(self._concatenate(xs, ys)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


_CLASSES = torch.eye(3), torch.zeros(3)


def semi_supervised() -> Idiom:
    """The unlabelled half of M2, with the class enumerated in the guide."""
    vae, x = SemiSupervised(), torch.bernoulli(torch.full((N, 4), 0.5))
    return Idiom(
        vae.model,
        config_enumerate(vae.guide),
        (x,),
        lambda: log_evidence(vae.model, (x,), {}, {"z": grid(61), "y": _CLASSES}),
        options={"objective": pv.objectives.EnumeratedELBO()},
    )


def semi_supervised_labelled() -> Idiom:
    vae, x = SemiSupervised(), torch.bernoulli(torch.full((N, 4), 0.5))
    y = torch.eye(3)[torch.arange(N) % 3]
    return Idiom(
        vae.model, vae.guide, (x, y), lambda: log_evidence(vae.model, (x, y), {}, {"z": grid()})
    )


class Conditional(nn.Module):
    """Pyro's cvae: the prior depends on the first argument, the second one is observed."""

    def __init__(self) -> None:
        super().__init__()
        self.prior_net, self.recognition, self.generation = (
            _network(2, 2), _network(5, 2), _network(1, 3),
        )  # fmt: skip

    def model(self, xs, ys=None):
        pyro.module("generation_net", self)
        with pyro.plate("data"):
            loc, log_scale = self.prior_net(xs).chunk(2, -1)
            zs = pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))
            probs = self.generation(zs).sigmoid()
            if ys is not None:
                pyro.sample("y", dist.Bernoulli(probs, validate_args=False).to_event(1), obs=ys)
            else:
                pyro.deterministic("y", probs.detach())

    def guide(self, xs, ys=None):
        with pyro.plate("data"):
            inputs = self.prior_net(xs) if ys is None else self.recognition(torch.cat([xs, ys], -1))
            loc, log_scale = inputs.chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def conditional() -> Idiom:
    cvae, x, y = Conditional(), torch.randn(N, 2), torch.bernoulli(torch.full((N, 3), 0.5))
    return Idiom(
        cvae.model,
        cvae.guide,
        (x, y),
        lambda: log_evidence(cvae.model, (x, y), {}, {"z": grid(121, 9.0)}),
        codes={"z": lambda: cvae.recognition(torch.cat([x, y], -1))[:, :1]},
    )


class MarkovChain(nn.Module):
    """Pyro's dmm with a linear transition: a time loop with lengths, and a mask at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(1, 4, batch_first=True)
        self.combiner = nn.Linear(5, 2)
        self.decay = nn.Parameter(torch.tensor(0.7))

    def model(self, series, lengths, annealing_factor=1.0):
        pyro.module("dmm", self)
        z_prev = series.new_zeros(1)
        with pyro.plate("z_minibatch", len(series)):
            for t in pyro.markov(range(1, int(lengths.max()) + 1)):
                mask = (t <= lengths).unsqueeze(-1)
                with poutine.scale(scale=annealing_factor):
                    z_prev = pyro.sample(
                        f"z_{t}", dist.Normal(self.decay * z_prev, 0.6).mask(mask).to_event(1)
                    )
                pyro.sample(
                    f"obs_x_{t}",
                    dist.Normal(z_prev, 0.5).mask(mask).to_event(1),
                    obs=series[:, t - 1 : t],
                )

    def guide(self, series, lengths, annealing_factor=1.0):
        pyro.module("dmm", self)
        hidden, _ = self.rnn(series.flip(1).unsqueeze(-1))
        hidden = hidden.flip(1)
        z_prev = series.new_zeros(len(series), 1)
        with pyro.plate("z_minibatch", len(series)):
            for t in pyro.markov(range(1, int(lengths.max()) + 1)):
                mask = (t <= lengths).unsqueeze(-1)
                shape = torch.broadcast_shapes(z_prev.shape[:-1], hidden.shape[:1])
                inputs = [z_prev.expand(*shape, -1), hidden[:, t - 1].expand(*shape, -1)]
                loc, log_scale = self.combiner(torch.cat(inputs, -1)).chunk(2, -1)
                with poutine.scale(scale=annealing_factor):
                    z_prev = pyro.sample(
                        f"z_{t}", dist.Normal(loc, log_scale.exp()).mask(mask).to_event(1)
                    )


def kalman(decay: Tensor, series: Tensor, lengths: Tensor) -> Tensor:
    """Return log p(x_1, …, x_T) of :class:`MarkovChain` by the Kalman filter, ``(N,)``."""
    total = torch.zeros(len(series), dtype=torch.float64)
    mean, variance = torch.zeros_like(total), 0.0
    a = float(decay.detach())
    for t in range(series.shape[1]):
        mean, variance = a * mean, a**2 * variance + 0.36
        x = series[:, t].double()
        log_p = dist.Normal(mean, (variance + 0.25) ** 0.5).log_prob(x)
        total = total + torch.where(t < lengths, log_p, 0.0)
        gain = variance / (variance + 0.25)
        mean, variance = mean + gain * (x - mean), (1 - gain) * variance
    return total


def markov_chain() -> Idiom:
    lengths = torch.tensor([1, 3, 2, 3, 1, 2])
    dmm, series = MarkovChain(), torch.randn(N, 3)
    return Idiom(
        dmm.model,
        dmm.guide,
        (series,),
        lambda: kalman(dmm.decay, series, lengths),
        {"lengths": lengths},
    )


class SingleCell(nn.Module):
    """Pyro's scanvi: a plate "batch", four latents of which one is a class, and a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.z2_decoder, self.x_decoder = nn.Linear(3, 1), nn.Linear(1, 2)
        self.z2l_encoder, self.classifier, self.z1_encoder = (
            nn.Linear(2, 4), nn.Linear(1, 2), nn.Linear(3, 2),
        )  # fmt: skip

    def model(self, x, y=None):
        pyro.module("scanvi", self)
        theta = pyro.param(
            "inverse_dispersion", 5.0 * x.new_ones(2), constraint=dist.constraints.positive
        )
        with pyro.plate("batch", len(x)), poutine.scale(scale=0.1):
            z1 = pyro.sample("z1", dist.Normal(0, x.new_ones(1)).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(logits=x.new_zeros(2)), obs=y)
            shape = torch.broadcast_shapes(z1.shape[:-1], y.shape[:-1])
            inputs = torch.cat([z1.expand(*shape, -1), y.expand(*shape, -1)], -1)
            z2 = pyro.sample("z2", dist.Normal(self.z2_decoder(inputs), 0.7).to_event(1))
            l = pyro.sample("l", dist.LogNormal(1.0, 0.3 * x.new_ones(1)).to_event(1))  # noqa: E741
            mu = self.x_decoder(z2).softmax(-1)
            logits = (l * mu + 1e-6).log() - theta.log()
            fn = dist.NegativeBinomial(total_count=theta, logits=logits, validate_args=False)
            pyro.sample("x", fn.to_event(1), obs=x)

    def guide(self, x, y=None):
        pyro.module("scanvi", self)
        with pyro.plate("batch", len(x)), poutine.scale(scale=0.1):
            z_loc, z_scale, l_loc, l_scale = self.z2l_encoder(x.log1p()).split(1, -1)
            l_scale = 0.3 * nn.functional.softplus(l_scale) + 0.1
            pyro.sample("l", dist.LogNormal(1 + 0.1 * l_loc, l_scale).to_event(1))
            z2 = pyro.sample("z2", dist.Normal(z_loc, 0.5 + z_scale.exp()).to_event(1))
            y_dist = dist.OneHotCategorical(logits=self.classifier(z2))
            if y is None:
                y = pyro.sample("y", y_dist)
            else:
                loss = y_dist.log_prob(y)
                pyro.factor("classification_loss", -0.1 * loss, has_rsample=False)
            shape = torch.broadcast_shapes(z2.shape[:-1], y.shape[:-1])
            inputs = torch.cat([z2.expand(*shape, -1), y.expand(*shape, -1)], -1)
            loc, log_scale = self.z1_encoder(inputs).chunk(2, -1)
            pyro.sample("z1", dist.Normal(loc, 0.3 + log_scale.exp()).to_event(1))


def single_cell() -> Idiom:
    scanvi, x = SingleCell(), torch.poisson(torch.full((N, 2), 2.0))
    y = torch.eye(2)[torch.arange(N) % 2]
    scanvi.model(x)
    u = torch.linspace(-2.0, 4.0, 25)  # log l
    sizes = u.exp().unsqueeze(-1), (u + torch.tensor(0.25).log())
    grids = {"z1": grid(21, 5.0), "z2": grid(29, 7.0), "l": sizes}
    return Idiom(
        scanvi.model, scanvi.guide, (x, y), lambda: log_evidence(scanvi.model, (x, y), {}, grids)
    )


def auto_normal() -> Idiom:
    """An autoguide with parameters per example."""
    x = torch.randn(N, 3)
    decoder = nn.Linear(1, 3)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.8).to_event(1), obs=x)

    def evidence():
        w, b = decoder.weight[:, 0], decoder.bias
        covariance = torch.outer(w, w) + 0.64 * torch.eye(3)
        return dist.MultivariateNormal(b, covariance).log_prob(x).detach().double()

    guide = AutoNormal(model, init_scale=0.8)
    guide(x)
    codes = {"z": lambda: guide.locs.z}
    return Idiom(model, guide, (x,), evidence, options={"batch_size": N}, codes=codes)


class Masked(nn.Module):
    """Missing values through an argument of the program."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(8, 2), nn.Linear(1, 4)

    def model(self, x, seen):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            fn = dist.Normal(self.decoder(z), 0.7).mask(seen).to_event(1)
            pyro.sample("x", fn, obs=x)

    def guide(self, x, seen):
        pyro.module("encoder", self.encoder)
        loc, log_scale = self.encoder(torch.cat([x, seen.to(x.dtype)], -1)).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def masked() -> Idiom:
    program = Masked()
    seen = torch.rand(N, 4) < 0.7
    x = torch.where(seen, torch.randn(N, 4), 0.0)
    return Idiom(
        program.model,
        program.guide,
        (x,),
        lambda: log_evidence(program.model, (x, seen), {}, {"z": grid()}),
        {"seen": seen},
        codes={"z": lambda: program.encoder(torch.cat([x, seen.to(x.dtype)], -1))[:, :1]},
    )


class Columns(nn.Module):
    """A table: each column is a site."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(2, 2), nn.Linear(1, 2)

    def model(self, table):
        pyro.module("decoder", self.decoder)
        with pyro.plate("rows", len(table)):
            z = pyro.sample("z", dist.Normal(table.new_zeros(1), 1.0).to_event(1))
            out = self.decoder(z)
            pyro.sample("age", dist.Normal(out[..., 0], 1.0), obs=table[:, 0])
            pyro.sample("sex", dist.Bernoulli(logits=out[..., 1]), obs=table[:, 1])

    def guide(self, table):
        pyro.module("encoder", self.encoder)
        loc, log_scale = self.encoder(table).chunk(2, -1)
        with pyro.plate("rows", len(table)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def columns() -> Idiom:
    program = Columns()
    table = torch.stack([torch.randn(N), torch.bernoulli(torch.full((N,), 0.5))], -1)
    return Idiom(
        program.model,
        program.guide,
        (table,),
        lambda: log_evidence(program.model, (table,), {}, {"z": grid()}),
        codes={"z": lambda: program.encoder(table)[:, :1]},
    )


class Plates(nn.Module):
    """A linear-Gaussian program whose data plate is declared by an argument."""

    def __init__(self, plate: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.encoder, self.decoder, self.plate = nn.Linear(3, 2), nn.Linear(1, 3), plate

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with self.plate(x):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.8).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with self.plate(x):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def plates(plate: Callable[[Tensor], Any]) -> Callable[[], Idiom]:
    def make() -> Idiom:
        program, x = Plates(plate), torch.randn(N, 3)

        def evidence():
            w, b = program.decoder.weight[:, 0], program.decoder.bias
            covariance = torch.outer(w, w) + 0.64 * torch.eye(3)
            return dist.MultivariateNormal(b, covariance).log_prob(x).detach().double()

        codes = {"z": lambda: program.encoder(x)[:, :1]}
        return Idiom(program.model, program.guide, (x,), evidence, codes=codes)

    return make


class Subsampled(nn.Module):
    """Pyro's SVI tutorial, part 2: the plate subsamples all data, and the program indexes them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 2), nn.Linear(1, 3)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x), subsample_size=min(4, len(x))) as i:
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(i), 1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.8).to_event(1), obs=x[i])

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x), subsample_size=min(4, len(x))) as i:
            pyro.sample("z", dist.Normal(loc[i], log_scale[i].exp()).to_event(1))


def subsampled() -> Idiom:
    program, x = Subsampled(), torch.randn(N, 3)

    def evidence():
        w, b = program.decoder.weight[:, 0], program.decoder.bias
        covariance = torch.outer(w, w) + 0.64 * torch.eye(3)
        return dist.MultivariateNormal(b, covariance).log_prob(x).detach().double()

    codes = {"z": lambda: program.encoder(x)[:, :1]}
    return Idiom(program.model, program.guide, (x,), evidence, codes=codes, draws_minibatch=True)


class ClassInModel(nn.Module):
    """A mixture prior whose class is enumerated in the model only."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(2, 2)
        self.locs = nn.Parameter(torch.tensor([-1.5, 0.5, 2.0]))

    def model(self, x):
        pyro.module("mixture", self)
        weights = pyro.param("weights", torch.ones(3) / 3, constraint=dist.constraints.simplex)
        with pyro.plate("cells", len(x)):
            y = pyro.sample("y", dist.Categorical(weights), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(self.locs[y], 0.8))
            pyro.sample(
                "x", dist.Normal(z.unsqueeze(-1).expand(*z.shape, 2), 1.0).to_event(1), obs=x
            )

    def guide(self, x):
        pyro.module("mixture", self)
        loc, log_scale = self.encoder(x).unbind(-1)
        with pyro.plate("cells", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))


def class_in_model() -> Idiom:
    program, x = ClassInModel(), torch.randn(N, 2)
    program.model(x)

    def evidence():
        covariance = 0.64 * torch.ones(2, 2) + torch.eye(2)
        locs = program.locs.unsqueeze(-1).expand(3, 2)
        parts = dist.MultivariateNormal(locs, covariance).log_prob(x.unsqueeze(1))
        return (parts + pyro.param("weights").log()).logsumexp(1).detach().double()

    codes = {"z": lambda: program.encoder(x)[:, 0]}
    return Idiom(program.model, program.guide, (x,), evidence, codes=codes)


IDIOMS: dict[str, Callable[[], Idiom]] = {
    "tutorial": tutorial,
    "functions": functions,
    "M2": semi_supervised,
    "M2 with labels": semi_supervised_labelled,
    "conditional": conditional,
    "Markov chain": markov_chain,
    "scanvi": single_cell,
    "AutoNormal": auto_normal,
    "masked": masked,
    "columns": columns,
    "plate cells": plates(lambda x: pyro.plate("cells", len(x))),
    "plate unsized": plates(lambda x: pyro.plate("data")),
    "plate subsample": plates(lambda x: pyro.plate("d", 600, subsample=torch.arange(len(x)))),
    "plate subsample_size": subsampled,
    "class in the model": class_in_model,
}
