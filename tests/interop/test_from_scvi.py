"""Programs from scvi-tools: its own ELBO is ours, for every likelihood and kind of library size."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.interop import from_scvi

COVARIATES = {"continuous_covariate_keys": ["real"], "categorical_covariate_keys": ["class"]}


def simulate(size=120, genes=10):
    anndata = pytest.importorskip("anndata")
    rng = np.random.default_rng(0)
    batch = rng.integers(0, 2, size)
    rate = np.exp(rng.normal(size=(size, 2)) @ rng.normal(size=(2, genes)) / 2 + 1)
    x = rng.poisson(rng.gamma(2, rate / 2 * (1 + batch[:, None])))
    x[:, 0] += 1  # no empty cell
    adata = anndata.AnnData(x.astype(np.float32))
    adata.obs["batch"] = batch.astype(str)
    adata.obs["class"] = rng.integers(0, 3, size).astype(str)
    adata.obs["real"] = rng.normal(size=size)
    adata.obs["factor"] = x.sum(1) / x.sum(1).mean()
    return adata


def train(adata, setup=None, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scvi = pytest.importorskip("scvi")
        torch.manual_seed(0)
        scvi.model.SCVI.setup_anndata(adata, batch_key="batch", **(setup or {}))
        model = scvi.model.SCVI(adata, n_latent=2, n_hidden=8, **options)
        model.train(5, accelerator="cpu", enable_progress_bar=False, logger=False)
    return model


@pytest.mark.parametrize(
    ("setup", "options"),
    [
        ({}, {"gene_likelihood": "zinb"}),
        ({}, {"gene_likelihood": "nb", "dispersion": "gene-cell"}),
        ({}, {"gene_likelihood": "poisson", "latent_distribution": "ln"}),
        ({}, {"gene_likelihood": "normal"}),
        (COVARIATES, {"gene_likelihood": "nb", "dispersion": "gene-batch"}),
        (COVARIATES, {"gene_likelihood": "nb", "encode_covariates": True}),
        ({}, {"gene_likelihood": "nb", "use_observed_lib_size": False}),
        ({"size_factor_key": "factor"}, {"gene_likelihood": "nb"}),
        ({"labels_key": "class"}, {"gene_likelihood": "zinb", "dispersion": "gene-label"}),
        ({}, {"gene_likelihood": "zinb", "batch_representation": "embedding"}),
    ],
)
def test_elbo_is_its_own(setup, options):
    adata = simulate()
    model = train(adata, setup, **options)
    program = from_scvi(model)
    x, covariates = program.read()
    assert torch.equal(x, torch.as_tensor(adata.X))
    assert ("continuous" in covariates) == (setup is COVARIATES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        repeats = [model.get_elbo(return_mean=False).numpy() for _ in range(40)]
    # samples of z, given closed-form divergences
    own = np.mean(repeats, 0, dtype=float)
    own_error = np.std(repeats, 0, ddof=1, dtype=float) / 40**0.5
    bounds = pv.evaluate(program, x, num_samples=1000, ks=(5,), **covariates)
    error = math.hypot(
        bounds.estimates["elbo"].se_monte_carlo, math.sqrt((own_error**2).mean() / 120)
    )
    # false alarms: 6e-5
    assert bounds.elbo == pytest.approx(
        float(own.mean()), abs=4 * error + 1e-4 * abs(float(own.mean()))
    )
    assert bounds.elbo < bounds.log_evidence
    needed = {"size_factor_key": "size_factor", "labels_key": "labels"}
    for key, name in needed.items():
        if key in setup:
            with pytest.raises(ValueError, match=f"expected {name}, which .* depends on; got none"):
                pv.evaluate(program, x, num_samples=5, batch=covariates["batch"])


def test_marginal_likelihood_and_arguments():
    adata = simulate()
    model = train(adata, gene_likelihood="nb")
    program = from_scvi(model)
    x, covariates = program.read(indices=range(40))
    bounds = pv.evaluate(program, x, num_samples=2000, ks=(5,), **covariates)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = model.get_marginal_ll(indices=range(40), n_mc_samples=2000, return_mean=False)
    assert bounds.log_evidence == pytest.approx(float(own.mean()), abs=0.1)
    names = {name for name, _ in program.named_parameters()}
    assert names == {f"module.{name}" for name, _ in model.module.named_parameters()}
    with pytest.raises(
        ValueError, match=r"expected batch, the code of one of 2 batches .* got none"
    ):
        pv.evaluate(program, x, num_samples=5)
    with pytest.raises(ValueError, match=r"expected counts x, for the library sizes .* like=x"):
        pv.queries.sample(program, 3)
    args = covariates["batch"], covariates["labels"], covariates["library"]
    assert torch.equal(args[2], x.sum(1, keepdim=True).log())
    alone = pv.evaluate(program, x, num_samples=60, ks=(5,), batch=args[0])
    given = pv.evaluate(program, x, num_samples=60, ks=(5,), **covariates)
    assert alone.elbo == pytest.approx(given.elbo)
    assert pv.queries.sample(program, 40, *args, like=x).x.shape == (40, 10)
    torch.testing.assert_close(
        torch.as_tensor(pv.queries.encode(program, x, *args)["z.mean"]),
        torch.as_tensor(model.get_latent_representation(indices=range(40))),
        atol=1e-5,
        rtol=1e-4,
    )
    for wrong, message in (
        (x / 2, "expected counts 0, 1, 2, …; got other values: pass the raw counts"),
        (x * 0, "at least one count, .*got 40 of 40 without"),
        (x[:, 1:], r"counts of shape \(N, 10\); got \(40, 9\)"),
    ):
        with pytest.raises(ValueError, match=message):
            pv.evaluate(program, wrong, num_samples=5, **covariates)


def test_refusals():
    with pytest.raises(ValueError, match="expected an SCVI model of scvi-tools; got a Linear"):
        from_scvi(nn.Linear(2, 2))
