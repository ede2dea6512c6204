"""Data-dependent initialisation by ``initialize`` and ``fit``."""

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
NO_UPDATE = partial(torch.optim.SGD, lr=0.0)


def _data(size=300):
    """Binary images with a different mean for each pixel."""
    return torch.bernoulli(torch.linspace(0.2, 0.8, 30).reshape(1, 6, 5).expand(size, 1, 6, 5))


def _vae(make=DECODERS["MLP"], output_bias="data", init="torch", seed=0):
    pyro.set_rng_seed(seed)
    decoder = partial(make, output_bias=output_bias, init=init)
    return pv.VAE((1, 6, 5), 2, encoder=SMALL, decoder=decoder)


@pytest.mark.parametrize("make", DECODERS.values(), ids=DECODERS)
class TestOutputBias:
    def test_decoder_mean_equals_data_mean_for_zero_weights(self, make):
        vae, x = _vae(make), _data()
        with torch.no_grad():
            for name, parameter in vae.likelihood.network.named_parameters():
                # keep the weights of normalisation layers, to preserve gradients
                parameter.zero_() if "bias" in name or parameter.ndim > 1 else None
        pv.initialize(vae, x)
        vae.eval()
        mean = vae.likelihood(torch.randn(4, 2)).mean
        torch.testing.assert_close(mean, x.mean(0).expand_as(mean), atol=1e-5, rtol=0)

    def test_decoder_mean_is_close_to_data_mean_for_small_weights(self, make):
        vae, x = _vae(make, init=0.001), _data()
        pv.initialize(vae, x)
        vae.eval()
        mean = vae.likelihood(torch.randn(4, 2)).mean
        torch.testing.assert_close(mean, x.mean(0).expand_as(mean), atol=0.01, rtol=0)
        without_bias = _vae(make, output_bias=None, init=0.001).eval()
        difference = without_bias.likelihood(torch.randn(4, 2)).mean - x.mean(0)
        assert difference.abs().max() > 0.25

    def test_fit_initializes_before_the_first_step(self, make):
        expected, vae, x = _vae(make), _vae(make), _data()
        pv.initialize(expected, x)
        pv.fit(vae, x, epochs=1, optimizer=NO_UPDATE)
        bias = expected.likelihood.network.layers[-1].bias
        assert torch.equal(vae.likelihood.network.layers[-1].bias, bias)
        assert not torch.equal(_vae(make).likelihood.network.layers[-1].bias, bias)


def test_initializes_only_once():
    vae, x = _vae(), _data()
    pv.fit(vae, x, epochs=2, optimizer=partial(torch.optim.Adam, lr=0.1))
    trained = vae.likelihood.network.layers[-1].bias.clone()
    loaded = _vae(seed=5)
    loaded.load_state_dict(vae.state_dict())
    for model in (vae, loaded):
        pv.initialize(model, 1 - x)
        assert torch.equal(model.likelihood.network.layers[-1].bias, trained)
        pv.fit(model, 1 - x, epochs=1, optimizer=NO_UPDATE)
        assert torch.equal(model.likelihood.network.layers[-1].bias, trained)


def test_dynamic_data_are_binarised_once_for_initialization():
    data = pv.data.load("digits", binarize="dynamic").train
    pyro.set_rng_seed(0)
    make = partial(networks.MLP, hidden=(), output_bias="data")
    vae = pv.VAE(data.event_shape, 2, encoder=SMALL, decoder=make)
    other = pv.VAE(data.event_shape, 2, encoder=SMALL, decoder=make)
    pv.fit(vae, data, epochs=1, optimizer=NO_UPDATE, seed=7)
    pv.initialize(other, data.materialize(7))
    biases = [v.likelihood.network.layers[-1].bias for v in (vae, other)]
    assert torch.equal(*biases)


class RecordingModule(nn.Module):
    """Records calls of ``init_from_data``."""

    def __init__(self):
        super().__init__()
        self.calls, self.weight = [], nn.Parameter(torch.zeros(()))

    def init_from_data(self, x):
        self.calls.append((x, torch.is_grad_enabled(), float(torch.rand(()))))


class Program(PyroModule):
    """Custom program with a module that is initialised from data, registered twice."""

    def __init__(self):
        super().__init__()
        self.part, self.again, self.other = RecordingModule(), None, nn.Linear(1, 1)
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


def test_init_from_data_is_called_once_per_module():
    program, x = Program(), torch.randn(6)
    pv.initialize(program, x)
    ((data, grad_enabled, _),) = program.part.calls
    assert torch.equal(data, x) and not grad_enabled


def test_data_are_moved_to_the_device_of_the_program():
    program = Program().to("meta")
    pv.initialize(program, torch.randn(6))
    assert program.part.calls[0][0].is_meta


def test_initialization_has_its_own_random_stream():
    samples, elbos = [], []
    x = torch.randn(6)
    for seed, initialized in ((0, True), (0, True), (1, True), (0, False)):
        program = Program()
        if not initialized:
            program.part.init_from_data = None  # hide the method
            program.part.__class__ = type("Plain", (nn.Module,), {})
        before = torch.get_rng_state()
        elbos.append(pv.fit(program, x, epochs=2, seed=seed)["elbo"])
        assert torch.equal(torch.get_rng_state(), before)
        if initialized:
            ((_, _, sample),) = program.part.calls
            samples.append(sample)
    assert samples[0] == samples[1] != samples[2]
    # initialisation does not change the random numbers of training
    assert elbos[0] == elbos[1] == elbos[3] != elbos[2]


def test_program_without_data_initialization_is_unchanged():
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
def test_standardizing_encoder_uses_the_training_data_once(posterior):
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
    pv.fit(vae, x, epochs=1, optimizer=NO_UPDATE)
    (encoder,) = (m for m in vae.modules() if getattr(m, "standardize", False))
    mean, scale = x.mean(), x.std(correction=0)
    torch.testing.assert_close(encoder.input_mean, mean)
    torch.testing.assert_close(encoder.input_scale, scale)
    loaded = make()
    loaded.load_state_dict(vae.state_dict())
    for model in (vae, loaded):
        pv.fit(model, 2 * x, epochs=1, optimizer=NO_UPDATE)
        (encoder,) = (m for m in model.modules() if getattr(m, "standardize", False))
        torch.testing.assert_close(encoder.input_mean, mean)


class RenamedNetwork(pv.likelihoods.Likelihood):
    """Custom likelihood that stores its network under another name."""

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
            {"likelihood": RenamedNetwork, "decoder": partial(SMALL, output_bias="data")},
            "keeps as self.network; got it for likelihood.decoder: set its output_bias to null",
        ),
    ],
)
def test_rejects_networks_that_are_never_initialized(parts, message):
    vae = pv.VAE((3,), 2, **{"encoder": SMALL, "decoder": SMALL, **parts})
    x = torch.bernoulli(torch.full((20, 3), 0.5))
    for run in (pv.initialize, partial(pv.fit, epochs=1)):
        with pytest.raises(ValueError) as error:
            run(vae, x)
        assert str(error.value).endswith(message)


def test_rejects_uninitialized_networks_without_a_likelihood():
    program = Program()
    program.part = SMALL((1,), (1,), output_bias="data")
    program.again = None
    with pytest.raises(ValueError, match="got it for part: set its output_bias to null"):
        pv.fit(program, torch.randn(6), epochs=1)


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [1, 2])
def test_resumed_run_equals_uninterrupted_run(tmp_path, after):
    """With data-dependent initialisation, batch norm and dropout."""
    x = _data(101)
    arguments = {"valid": _data(20), "epochs": 3, "patience": 3}
    arguments["batch_size"] = 33  # a last minibatch of two

    def make(seed):
        pyro.set_rng_seed(seed)
        net = partial(networks.ConvNet, channels=(3,), norm="batch", dropout=0.3)
        decoder = partial(net, output_bias="data")
        return pv.VAE((1, 6, 5), 2, encoder=net, decoder=decoder)

    def kill(history):
        if len(history) == after:
            raise Killed

    uninterrupted, path = make(0), tmp_path / "state.pt"
    expected = pv.fit(uninterrupted, x, **arguments)
    with pytest.raises(Killed):
        pv.fit(make(0), x, checkpoint=path, on_epoch=kill, **arguments)
    resumed = make(9)
    history = pv.fit(resumed, x, checkpoint=path, resume=True, **arguments)
    for column in ("elbo", "valid_elbo"):
        assert history[column] == expected[column]
    state = uninterrupted.state_dict()
    assert any("running_mean" in name for name in state)
    for name, tensor in resumed.state_dict().items():
        assert torch.equal(tensor, state[name]), name
