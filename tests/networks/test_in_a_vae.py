"""Networks as encoders and decoders: training, evaluation, YAML and command line."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pyro
import pytest
import torch
import yaml

import pyro_vae as pv
from pyro_vae import networks
from pyro_vae.cli.app import main
from pyro_vae.config import experiment
from pyro_vae.core.evaluation_mode import eval_mode
from pyro_vae.runs.run import Run

NETWORKS = {
    "ConvNet": partial(networks.ConvNet, channels=(6, 8)),
    "ConvNet, batch norm": partial(networks.ConvNet, channels=(6, 8), norm="batch", dropout=0.1),
    "ResNet": partial(networks.ResNet, channels=(6, 8), blocks=1, norm="layer"),
    "MLP, batch norm": partial(networks.MLP, hidden=(20,), norm="batch", dropout=0.1),
    "GatedMLP": partial(networks.GatedMLP, hidden=(20,), dropout=0.1),
}
ADAM = partial(torch.optim.Adam, lr=0.01)


@pytest.fixture(scope="module")
def digits():
    return pv.data.load("digits", binarize="dynamic", valid=200)


#: Every network, and the output bias with either kind of decoder.
DIGITS = [*((name, None) for name in NETWORKS), ("ConvNet", "data"), ("GatedMLP", "data")]


@pytest.mark.parametrize(("name", "output_bias"), DIGITS)
def test_trains_on_digits_and_evaluates_per_example(name, output_bias, digits):
    # warnings are errors, including "does not support a particle dimension"
    pyro.set_rng_seed(0)
    make = NETWORKS[name]
    vae = pv.VAE((1, 8, 8), 4, encoder=make, decoder=partial(make, output_bias=output_bias))
    train = digits.train.head(510)
    history = pv.fit(vae, train, valid=digits.valid, epochs=14, batch_size=50, optimizer=ADAM)
    assert (
        history["elbo"][-1] > history["elbo"][0] + 0.5
    )  # initialisation at the mean is already close
    assert history["valid_elbo"][-1] > history["valid_elbo"][0]
    x = digits.test.materialize(0)[:30]
    bounds = pv.evaluate(vae, x, num_samples=50)
    assert bounds.elbo < bounds.iwae[50]
    # validation is evaluation with one sample; 5 standard errors (false-alarm rate 1e-6), less
    # than the effect of batch norm and dropout in training mode
    elbo, _, error = pv.evaluate(vae, digits.valid, num_samples=50).estimates["elbo"]
    assert history["valid_elbo"][-1] == pytest.approx(elbo, abs=5 * 51**0.5 * error)
    assert 5 * 51**0.5 * error < 1.5
    assert vae.training  # the mode is restored
    with torch.no_grad(), eval_mode(vae.model, vae.guide):
        single, batch = vae.posterior(x[:1]), vae.posterior(x)
        for a, b in zip((single.mean, single.stddev), (batch.mean, batch.stddev), strict=True):
            torch.testing.assert_close(a, b[:1])
        z = torch.randn(7, 30, 4)
        torch.testing.assert_close(
            vae.likelihood(z[3, :1]).log_prob(x[:1]), vae.likelihood(z).log_prob(x)[3, :1]
        )


@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_trains_with_particles(make, num_particles, digits):
    pyro.set_rng_seed(0)
    vae = pv.VAE((1, 8, 8), 2, encoder=make, decoder=make)
    objective = pv.objectives.ELBO(num_particles)
    history = pv.fit(vae, digits.train.head(100), objective=objective, epochs=3, optimizer=ADAM)
    assert history["elbo"][-1] > history["elbo"][0]


@pytest.mark.parametrize(
    ("name", "scale"), [("ConvNet, batch norm", "decoded"), ("ResNet", "learned")]
)
def test_trains_on_frey_faces(name, scale, real_data):
    data = pv.data.load("frey", binarize="none", root=str(real_data))
    pyro.set_rng_seed(0)
    vae = pv.VAE(
        data.event_shape,
        3,
        likelihood=partial(pv.likelihoods.Gaussian, scale=scale, min_scale=0.05),
        encoder=NETWORKS[name],
        decoder=partial(NETWORKS[name], init="glorot"),
    )
    history = pv.fit(vae, data.train.head(200), epochs=5, batch_size=20, optimizer=ADAM)
    assert history["elbo"][-1] > history["elbo"][0] + 10
    bounds = pv.evaluate(vae, data.test.materialize(0)[:5], num_samples=20)
    assert bounds.elbo < bounds.iwae[20]


@pytest.mark.parametrize("event_shape", [(4, 5), (1, 4, 5), (3, 4, 5), (2, 2, 4, 5)])
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_every_event_shape(make, event_shape):
    vae = pv.VAE(
        event_shape,
        2,
        likelihood=partial(pv.likelihoods.Gaussian, scale="decoded"),
        posterior=pv.posteriors.FullCovarianceNormal,
        encoder=make,
        decoder=make,
    )
    x = torch.rand(6, *event_shape)
    pv.fit(vae, x, epochs=1)
    assert pv.log_weights(vae.model, vae.guide, x, num_samples=3).shape == (3, 6)


ARGUMENTS = [
    *("--data.name", "digits", "--data.binarize", "dynamic", "--model.latent_dim", "2"),
    *("--model.decoder", "ConvNet", "--model.decoder.channels", "[3,4]"),
    *("--model.decoder.init", "glorot", "--model.decoder.output_bias", "data"),
    *("--model.encoder", "ResNet", "--model.encoder.channels", "[3]"),
    *("--model.encoder.norm", "batch", "--model.encoder.init", "0.01"),
    *("--model.encoder.activation", "SiLU", "--model.encoder.blocks", "1"),
]
RESOLVED = {
    "decoder": {
        "class_path": "pyro_vae.networks.ConvNet",
        "init_args": {
            "channels": [3, 4],
            "hidden": [],
            "kernel": 3,
            "activation": {
                "class_path": "torch.nn.ELU",
                "init_args": {"alpha": 1.0, "inplace": False},
            },
            "norm": None,
            "dropout": 0.0,
            "init": "glorot",
            "output_bias": "data",
            "standardize": False,
            "mask": False,
        },
    },
    "encoder": {
        "class_path": "pyro_vae.networks.ResNet",
        "init_args": {
            "channels": [3],
            "blocks": 1,
            "hidden": [],
            "kernel": 3,
            "activation": {"class_path": "torch.nn.SiLU", "init_args": {"inplace": False}},
            "norm": "batch",
            "dropout": 0.0,
            "init": 0.01,
            "output_bias": None,
            "standardize": False,
            "mask": False,
        },
    },
}


def test_command_line_options_round_trip_through_yaml(tmp_path):
    first = experiment.parse(ARGUMENTS)
    settings = first.settings_dict()["model"]
    assert {side: settings[side] for side in RESOLVED} == RESOLVED
    (tmp_path / "again.yaml").write_text(first.to_yaml())
    again = experiment.load_experiment(tmp_path / "again.yaml")
    assert again.to_yaml() == first.to_yaml()
    vae = again.build_model(SimpleNamespace(event_shape=(1, 8, 8)))
    decoder, encoder = vae.likelihood.network, vae.posterior.network
    assert type(decoder) is networks.ConvNet and decoder.output_bias == "data"
    assert type(encoder) is networks.ResNet and encoder.has_batch_norm
    assert encoder.layers[-1].weight.std().item() < 0.03


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("norm", ["layer", "batch", None]),
        ("init", ["torch", "glorot", 0.5, 1]),
        ("output_bias", ["data", None]),
    ],
)
def test_every_choice_in_yaml(name, values, tmp_path):
    for value in values:
        tree = {
            "data": {"name": "digits", "binarize": "dynamic"},
            "model": {
                "latent_dim": 2,
                "decoder": {"class_path": "MLP", "init_args": {"hidden": [5, 4], name: value}},
            },
        }
        file = tmp_path / "x.yaml"
        file.write_text(yaml.safe_dump(tree))
        settings = experiment.load_experiment(file).settings_dict()
        assert settings["model"]["decoder"]["init_args"][name] == value
        experiment.load_experiment(file).build_model(SimpleNamespace(event_shape=(1, 8, 8)))


@pytest.mark.parametrize("file", [None, {"hidden": [7]}, {"class_path": "MLP"}])
def test_replaced_class_has_its_own_defaults(file, tmp_path):
    # not those of MLP: 200, 200 and tanh
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({"model": {"decoder": file or "MLP"}}))
    arguments = ["--config", str(tmp_path / "x.yaml")] if file else []
    arguments += ARGUMENTS[:6]
    for options, hidden in (
        (["--model.decoder", "GatedMLP"], [300, 300]),
        (["--model.decoder", "ConvNet"], []),
        (["--model.decoder.class_path", "ConvNet", "--model.decoder.kernel", "5"], []),
        (["--model.decoder", "ConvNet", "--model.decoder.hidden", "[4]"], [4]),
        # for the same class, earlier settings are kept
        (["--model.decoder.norm", "batch"], (file or {}).get("hidden", [200, 200])),
        (["--model.decoder", "MLP"], (file or {}).get("hidden", [200, 200])),
    ):
        settings = experiment.parse([*arguments, *options]).settings
        assert list(settings.model.decoder.init_args.hidden) == hidden, options


def _is_batch_norm(module):
    return isinstance(module, torch.nn.modules.batchnorm._BatchNorm)


def test_run_can_be_reopened(tmp_path):
    folder = tmp_path / "run"
    assert main(["fit", *ARGUMENTS, "--fit.epochs", "1", "--run", str(folder)]) == 0
    assert main(["evaluate", str(folder), "--num-samples", "3"]) == 0
    run = Run(folder)
    experiment, data, vae = run.open()
    decoder, encoder = vae.likelihood.network, vae.posterior.network
    assert type(decoder) is networks.ConvNet and type(encoder) is networks.ResNet
    # the data-dependent initialisation and the batch statistics are saved
    assert decoder.started and decoder.layers[-1].bias.abs().sum() > 0
    assert any(m.num_batches_tracked == 15 for m in encoder.modules() if _is_batch_norm(m))
    assert experiment.build_model(data).likelihood.network.started == False  # noqa: E712
    bounds = pv.evaluate(vae, data.test, num_samples=3)
    assert bounds.elbo == pytest.approx(run.read_bounds().elbo, rel=1e-6)


def test_misspelt_option_value_raises(capsys):
    arguments = ["fit", *ARGUMENTS, "--model.decoder.norm", "bach", "--run", "nowhere"]
    assert main(arguments) == 1
    assert capsys.readouterr().err == (
        "pyro-vae: expected model.decoder.norm to be layer, batch or null; got 'bach'; did you "
        "mean batch?\n"
    )
