"""Advice for data whose scale is too large for the encoder."""

from __future__ import annotations

import re
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from components import SMALL, small_vae
from pyro.nn import PyroModule
from torch import nn

import pyro_vae as pv
from pyro_vae.learning.diagnostics import NonFiniteLossError
from pyro_vae.learning.input_scale import advise_scaling

CONV = partial(pv.networks.ConvNet, channels=(4,))
LEVELS = pv.likelihoods.DiscretizedLogistic


def _bytes(*shape):
    return torch.randint(256, shape).float()


class Scaling(PyroModule):
    """A program of a user, whose networks are plain layers."""

    def __init__(self, divisor):
        super().__init__()
        self.divisor, self.encoder = divisor, nn.Linear(4, 2)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample(
                "x",
                dist.Normal(z.sum(-1, keepdim=True), 1e3).expand([len(x), 4]).to_event(1),
                obs=x,
            )

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x / self.divisor), 1.0).to_event(1))


@pytest.mark.parametrize(
    ("make", "x", "advice"),
    [
        (
            lambda: small_vae(event_shape=(3, 4, 6), encoder=CONV, likelihood=LEVELS),
            _bytes(8, 3, 4, 6),
            r"the inputs of 'posterior.network' have a root mean square of 1\d\d .*: set "
            r"standardize=True of the encoder \(--model.encoder.standardize true\)$",
        ),
        (
            lambda: pv.HierarchicalVAE((4,), (2, 2), likelihood=LEVELS, encoders=SMALL),
            _bytes(8, 4),
            r"of the encoders \(--model.encoders.standardize true\)$",
        ),
        # one column in another unit
        (
            lambda: small_vae(event_shape=(4,), likelihood=pv.likelihoods.Gaussian),
            torch.randn(8, 4) * torch.tensor([1.0, 1e6, 1.0, 1.0]) + 0.5,
            r"standardise the data, .* \(--data.scale standard\), or set standardize=True of",
        ),
        (lambda: Scaling(1.0), _bytes(8, 4), r"inputs of 'encoder' .*\): standardise the data, \("),
    ],
    ids=["bytes", "hierarchy", "column", "own layers"],
)  # fmt: skip
def test_large_inputs_give_advice_before_training(make, x, advice, caplog):
    program = make()
    with caplog.at_level("WARNING", "pyro_vae"):
        try:
            pv.fit(program, x, epochs=1, batch_size=4)
        except NonFiniteLossError as error:
            assert "try a lower learning rate" not in str(error)
    start = "training may fail or stall: the inputs of "
    (message,) = (r.getMessage() for r in caplog.records if r.getMessage().startswith(start))
    assert re.search(advice, message)


@pytest.mark.parametrize(
    ("make", "x"),
    [
        (small_vae, torch.rand(8, 3)),
        (lambda: small_vae(likelihood=pv.likelihoods.Gaussian), torch.randn(8, 3) * 3 + 5),
        (lambda: small_vae(likelihood=pv.likelihoods.Poisson), torch.randint(30, (8, 3)).float()),
        (
            lambda: small_vae(encoder=partial(SMALL, standardize=True), likelihood=LEVELS),
            _bytes(8, 3),
        ),
        (lambda: small_vae(encoder=partial(SMALL, norm="layer"), likelihood=LEVELS), _bytes(8, 3)),
        (lambda: Scaling(255.0), _bytes(8, 4)),
    ],
    ids=["unit", "real", "counts", "standardize", "norm", "own scaling"],
)
def test_no_false_alarm(make, x):
    program = make()
    pv.initialize(program, x)
    assert advise_scaling(program, (x,)) is None


def test_semi_supervised_names_both_networks():
    program = pv.SemiSupervisedVAE((3,), 2, 2, classifier=SMALL, encoder=SMALL, decoder=SMALL)
    advice = advise_scaling(program, (100 * torch.randint(3, (8, 3)).float(),))
    assert advice is not None
    flags = "--model.classifier.standardize true --model.encoder.standardize true"
    assert f"standardize=True of the classifier and the encoder ({flags})" in advice


@pytest.mark.parametrize(
    ("levels", "error", "start"),
    [
        (500, NonFiniteLossError, r"epoch 1, step 1: .*; the inputs of "),
        (
            65535,
            ValueError,
            r"^expected finite parameters of q\(z\|x\) before .*, because the inputs of ",
        ),
    ],
)
def test_a_non_finite_first_step_names_the_remedy(levels, error, start):
    torch.manual_seed(0)
    x = (levels * (0.8 + 0.2 * torch.rand(16, 1, 8, 8))).round()
    likelihood = partial(LEVELS, levels=levels)
    make = partial(small_vae, event_shape=(1, 8, 8), likelihood=likelihood)
    message = rf"{start}'posterior.network' .* \(--model.encoder.standardize true\)$"
    with pytest.raises(error, match=message):
        pv.fit(make(encoder=CONV), x, epochs=1, batch_size=16)
    history = pv.fit(make(encoder=partial(CONV, standardize=True)), x, epochs=1, batch_size=16)
    assert -1e6 < history["elbo"][0] < 0
