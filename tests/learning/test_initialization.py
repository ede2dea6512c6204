"""``initialize``: what starts from data does so once, and ``fit`` sees to it."""

from __future__ import annotations

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from components import SMALL
from pyro.nn import PyroModule, pyro_method
from torch import nn

import pyro_vae as pv
from pyro_vae import networks

DECODERS = {
    "MLP": partial(networks.MLP, hidden=(7,)),
    "MLP, batch norm": partial(networks.MLP, hidden=(7,), norm="batch"),
    "GatedMLP": partial(networks.GatedMLP, hidden=(7,)),
    "ConvNet": partial(networks.ConvNet, channels=(3, 4)),
    "ResNet": partial(networks.ResNet, channels=(3,), blocks=1),
}
STILL = partial(torch.optim.SGD, lr=0.0)


def _data(size=300):
    """Binary images, every pixel with another mean."""
    return torch.bernoulli(torch.linspace(0.2, 0.8, 30).reshape(1, 6, 5).expand(size, 1, 6, 5))


def _vae(make=DECODERS["MLP"], output_bias="data", init="torch", seed=0):
    pyro.set_rng_seed(seed)
    decoder = partial(make, output_bias=output_bias, init=init)
    return pv.VAE((1, 6, 5), 2, encoder=SMALL, decoder=decoder)


@pytest.mark.parametrize("make", DECODERS.values(), ids=DECODERS)
class TestStartsAtTheMean:
    def test_exactly_where_the_weights_are_zero(self, make):
        vae, x = _vae(make), _data()
        with torch.no_grad():
            for name, parameter in vae.likelihood.network.named_parameters():
                # norms keep theirs, or the gradient of the zeros would be lost too
                parameter.zero_() if "bias" in name or parameter.ndim > 1 else None
        pv.initialize(vae, x)
        vae.eval()
        mean = vae.likelihood(torch.randn(4, 2)).mean
        torch.testing.assert_close(mean, x.mean(0).expand_as(mean), atol=1e-5, rtol=0)

    def test_nearly_where_they_are_small(self, make):
        vae, x = _vae(make, init=0.001), _data()
        pv.initialize(vae, x)
        vae.eval()
        mean = vae.likelihood(torch.randn(4, 2)).mean
        torch.testing.assert_close(mean, x.mean(0).expand_as(mean), atol=0.01, rtol=0)
        with_weights = _vae(make, output_bias=None, init=0.001).eval()
        far = with_weights.likelihood(torch.randn(4, 2)).mean - x.mean(0)
        assert far.abs().max() > 0.25

    def test_fit_does_it_before_the_first_step(self, make):
        expected, vae, x = _vae(make), _vae(make), _data()
        pv.initialize(expected, x)
        pv.fit(vae, x, epochs=1, optimizer=STILL)
        bias = expected.likelihood.network.layers[-1].bias
        assert torch.equal(vae.likelihood.network.layers[-1].bias, bias)
        assert not torch.equal(_vae(make).likelihood.network.layers[-1].bias, bias)


def test_once_in_the_life_of_a_model():
    vae, x = _vae(), _data()
    pv.fit(vae, x, epochs=2, optimizer=partial(torch.optim.Adam, lr=0.1))
    trained = vae.likelihood.network.layers[-1].bias.clone()
    read = _vae(seed=5)
    read.load_state_dict(vae.state_dict())
    for model in (vae, read):
        pv.initialize(model, 1 - x)
        assert torch.equal(model.likelihood.network.layers[-1].bias, trained)
        pv.fit(model, 1 - x, epochs=1, optimizer=STILL)
        assert torch.equal(model.likelihood.network.layers[-1].bias, trained)


def test_dynamic_pixels_start_at_one_binarisation():
    data = pv.data.load("digits", binarize="dynamic").train
    pyro.set_rng_seed(0)
    make = partial(networks.MLP, hidden=(), output_bias="data")
    vae = pv.VAE(data.event_shape, 2, encoder=SMALL, decoder=make)
    other = pv.VAE(data.event_shape, 2, encoder=SMALL, decoder=make)
    pv.fit(vae, data, epochs=1, optimizer=STILL, seed=7)
    pv.initialize(other, data.materialize(7))
    biases = [v.likelihood.network.layers[-1].bias for v in (vae, other)]
    assert torch.equal(*biases)


class Curious(nn.Module):
    """Remembers how it was asked to start."""

    def __init__(self):
        super().__init__()
        self.asked, self.weight = [], nn.Parameter(torch.zeros(()))

    def init_from_data(self, x):
        self.asked.append((x, torch.is_grad_enabled(), float(torch.rand(()))))


class Program(PyroModule):
    """A program of somebody else's, one part of which starts from data."""

    def __init__(self):
        super().__init__()
        self.part, self.again, self.other = Curious(), None, nn.Linear(1, 1)
        self.again = self.part

    @pyro_method
    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + self.part.weight, 1.0), obs=x)

    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.7))


def test_any_module_with_init_from_data_is_asked_once():
    program, x = Program(), torch.randn(6)
    pv.initialize(program, x)
    ((seen, gradients, _),) = program.part.asked
    assert torch.equal(seen, x) and not gradients


def test_data_come_to_the_programs_device():
    program = Program().to("meta")
    pv.initialize(program, torch.randn(6))
    assert program.part.asked[0][0].is_meta


def test_fit_draws_from_a_stream_of_its_own():
    asked, elbos = [], []
    x = torch.randn(6)
    for seed, wanted in ((0, True), (0, True), (1, True), (0, False)):
        program = Program()
        if not wanted:
            program.part.init_from_data = None  # is no method any more
            program.part.__class__ = type("Plain", (nn.Module,), {})
        before = torch.get_rng_state()
        elbos.append(pv.fit(program, x, epochs=2, seed=seed)["elbo"])
        assert torch.equal(torch.get_rng_state(), before)
        if wanted:
            ((_, _, draw),) = program.part.asked
            asked.append(draw)
    assert asked[0] == asked[1] != asked[2]
    # what is drawn to start changes none of the draws of training
    assert elbos[0] == elbos[1] == elbos[3] != elbos[2]


def test_a_program_with_nothing_to_start():
    program = nn.Linear(2, 2)
    before = program.weight.clone()
    pv.initialize(program, torch.zeros(3, 2))
    assert torch.equal(program.weight, before)


@pytest.mark.parametrize(
    "posterior",
    [
        pv.posteriors.DiagonalNormal,
        pv.posteriors.InverseAutoregressiveFlow,
        partial(pv.posteriors.SemiAmortized, steps=1),
    ],
)
def test_an_encoder_that_standardises_measures_the_training_data_once(posterior):
    def make():
        return pv.VAE(
            (4,),
            2,
            posterior=posterior,
            likelihood=pv.likelihoods.Gaussian,
            encoder=partial(SMALL, standardize=True),
            decoder=SMALL,
        )

    vae, x = make(), 50 + 9 * torch.randn(300, 4)
    pv.fit(vae, x, epochs=1, optimizer=STILL)
    (encoder,) = (m for m in vae.modules() if getattr(m, "standardize", False))
    mean, scale = x.mean(), x.std(correction=0)
    torch.testing.assert_close(encoder.input_mean, mean)
    torch.testing.assert_close(encoder.input_scale, scale)
    read = make()
    read.load_state_dict(vae.state_dict())
    for model in (vae, read):
        pv.fit(model, 2 * x, epochs=1, optimizer=STILL)
        (encoder,) = (m for m in model.modules() if getattr(m, "standardize", False))
        torch.testing.assert_close(encoder.input_mean, mean)


class Elsewhere(pv.likelihoods.Likelihood):
    """A user's likelihood that keeps its network under another name."""

    def __init__(self, latent_dim, event_shape, network):
        super().__init__(latent_dim, event_shape, network)
        self.decoder = network((latent_dim,), self.event_shape)

    def forward(self, z):
        return dist.Normal(self.decoder(z), 1.0).to_event(len(self.event_shape))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"encoder": partial(SMALL, output_bias="data")},
            "expected output_bias 'data' only for the decoder that a likelihood keeps as "
            "self.network; got it for posterior.network: set its output_bias to null",
        ),
        (
            {"decoder": partial(SMALL, standardize=True)},
            "expected standardize only for the encoder that a posterior keeps as self.network, "
            "because a decoder's inputs are latents; got it for likelihood.network: set its "
            "standardize to false",
        ),
        (
            {"likelihood": Elsewhere, "decoder": partial(SMALL, output_bias="data")},
            "keeps as self.network; got it for likelihood.decoder: set its output_bias to null",
        ),
    ],
)
def test_a_network_that_nothing_starts_is_refused(parts, message):
    vae = pv.VAE((3,), 2, **{"encoder": SMALL, "decoder": SMALL, **parts})
    x = torch.bernoulli(torch.full((20, 3), 0.5))
    for start in (pv.initialize, partial(pv.fit, epochs=1)):
        with pytest.raises(ValueError) as error:
            start(vae, x)
        assert str(error.value).endswith(message)


def test_a_network_in_a_program_without_a_likelihood_is_refused_too():
    program = Program()
    program.part = SMALL((1,), (1,), output_bias="data")
    program.again = None
    with pytest.raises(ValueError, match="got it for part: set its output_bias to null"):
        pv.fit(program, torch.randn(6), epochs=1)


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [1, 2])
def test_resumed_is_never_interrupted(tmp_path, after):
    """With a start from data, batch statistics and dropout."""
    x = _data(101)
    arguments = {"valid": _data(20), "epochs": 3, "patience": 3}
    arguments["batch_size"] = 33  # a last minibatch of two

    def make(seed):
        pyro.set_rng_seed(seed)
        net = partial(networks.ConvNet, channels=(3,), norm="batch", dropout=0.3)
        decoder = partial(net, output_bias="data")
        return pv.VAE((1, 6, 5), 2, encoder=net, decoder=decoder)

    def die(history):
        if len(history) == after:
            raise Killed

    whole, path = make(0), tmp_path / "state.pt"
    expected = pv.fit(whole, x, **arguments)
    with pytest.raises(Killed):
        pv.fit(make(0), x, checkpoint=path, on_epoch=die, **arguments)
    other = make(9)
    history = pv.fit(other, x, checkpoint=path, resume=True, **arguments)
    for column in ("elbo", "valid_elbo"):
        assert history[column] == expected[column]
    state = whole.state_dict()
    assert any("running_mean" in name for name in state)
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, state[name]), name
