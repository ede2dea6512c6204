"""Programs from the models of scvi-tools, for single-cell counts."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, pyro_method
from torch import Tensor

from .. import distributions
from .given_distributions import as_pyro

__all__ = ["SCVIProgram", "from_scvi"]

#: scvi-tools adds it to the means of counts, before their logarithm.
_EPSILON = 1e-8
#: Names of the covariates of a cell, by the key of scvi-tools.
_COVARIATES = {
    "batch": "batch",
    "labels": "labels",
    "extra_continuous_covs": "continuous",
    "extra_categorical_covs": "categorical",
    "size_factor": "size_factor",
}


def from_scvi(model: Any) -> SCVIProgram:
    """Return the program of a trained ``SCVI`` model of scvi-tools 1.4, which shares its weights.

    z ~ N(0, I), x ~ p(x | z, ℓ, batch), with the counts' likelihood of the model. With an observed
    library size, ℓ is the total of the cell that is scored, so that the ELBO bounds
    log p(x | ℓ, batch), which cannot be compared with models that predict the total.

        program = pv.interop.from_scvi(model)
        x, covariates = program.read(model.adata)
        print(pv.evaluate(program, x, **covariates))

    Arguments:
        model: a ``scvi.model.SCVI`` after ``train``.

    Raises:
        ValueError: if the model is of another class, or was not trained.
    """
    cls = type(model)
    if cls.__name__ != "SCVI" or cls.__module__.split(".")[0] != "scvi":
        raise ValueError(
            f"expected an SCVI model of scvi-tools; got a {cls.__name__}: pass its encoder and "
            f"decoder to pv.interop.from_modules, or write its model and guide in Pyro"
        )
    if not model.is_trained:
        raise ValueError("expected a trained model; got one without training: call model.train()")
    return SCVIProgram(model)


class SCVIProgram(PyroModule):
    """The model and the guide of an ``SCVI`` model, from :func:`from_scvi`.

    The latent sites are ``z``, ``(N, n_latent)``, and ``library``, ``(N, 1)``, the logarithm of
    the library size, unless this is observed. The observed site is ``x``, ``(N, genes)``.

    ``model`` and ``guide`` take the counts and the covariates of each cell, from :meth:`read`:
    ``batch``, ``labels`` and ``categorical`` are integer codes, ``(N, 1)`` or ``(N, columns)``;
    ``continuous`` and ``size_factor`` are real. ``library``, ``(N, 1)``, is the observed log ℓ, by
    default that of the total of x; new cells need it. ``batch`` may be omitted if there is only
    one. The queries take them in this order: ``batch``, ``labels``, ``library``, ``continuous``,
    ``categorical``, ``size_factor``.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.module = model.module
        # an object of scvi-tools, and no module
        self.trained: Any = model

    def read(self, adata: Any = None, indices: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the counts of an AnnData object and the covariates that the model uses.

        Arguments:
            adata: the object; by default the training data.
            indices: the cells, by default all.

        Returns:
            x, ``(N, genes)``, and the keyword arguments of ``model`` and ``guide``.
        """
        model = self.trained
        adata = model._validate_anndata(adata)
        loader = model._make_data_loader(adata=adata, indices=indices, shuffle=False)
        batches = list(loader)
        x = torch.cat([batch["X"] for batch in batches])
        covariates = {
            name: torch.cat([batch[key] for batch in batches])
            for key, name in _COVARIATES.items()
            if batches[0].get(key) is not None
        }
        if self.module.use_observed_lib_size:
            covariates["library"] = x.sum(1, keepdim=True).log()
        return x, covariates

    def check(self, x: Tensor, *_: Any) -> None:
        """Raise a ``ValueError`` unless x are counts ``(N, genes)`` and no cell is empty."""
        genes = self.module.n_input
        if x.ndim != 2 or x.shape[1] != genes:
            raise ValueError(f"expected counts of shape (N, {genes}); got {tuple(x.shape)}")
        if self.module.gene_likelihood != "normal" and bool(((x < 0) | (x != x.round())).any()):
            raise ValueError(
                "expected counts 0, 1, 2, …; got other values: pass the raw counts, not normalised "
                "or logarithmic ones"
            )
        empty = int((x.sum(1) <= 0).sum())
        if self.module.use_observed_lib_size and empty:
            raise ValueError(
                f"expected cells with at least one count, whose total is the library size; got "
                f"{empty} of {len(x)} without: leave them out"
            )

    @pyro_method
    def model(
        self,
        x: Tensor | None = None,
        batch: Tensor | None = None,
        labels: Tensor | None = None,
        library: Tensor | None = None,
        continuous: Tensor | None = None,
        categorical: Tensor | None = None,
        size_factor: Tensor | None = None,
        size: int = 1,
    ) -> Tensor:
        """Run p(z) p(ℓ) p(x | z, ℓ) on counts ``(N, genes)``.

        Raises:
            ValueError: without x or a covariate that the model needs, or with a library size that
                is latent.
        """
        if x is None:
            raise ValueError(
                "expected counts x, for the library sizes and the number of cells; got None: pass "
                "like=x, and the covariates"
            )
        module: Any = self.module
        batch = self._batch(x, batch)
        needed = {
            "labels": module.dispersion == "gene-label" and labels is None,
            "size_factor": module.use_size_factor_key and size_factor is None,
        }
        for name in (name for name, is_missing in needed.items() if is_missing):
            raise ValueError(
                f"expected {name}, which p(x|z) of this model depends on; got none: pass "
                f"{name}=…, (N, 1), e.g. from program.read(adata)"
            )
        if library is not None and not module.use_observed_lib_size:
            raise ValueError(
                "expected no library, which is latent in this model; got one: leave it out"
            )
        with pyro.plate("data", len(x)):
            zeros = x.new_zeros(module.n_latent)
            z = pyro.sample("z", dist.Normal(zeros, 1.0).to_event(1))
            if module.use_observed_lib_size:
                library = x.sum(1, keepdim=True).log() if library is None else library
            else:
                means, variances = module._compute_local_library_params(batch)
                library = pyro.sample("library", dist.Normal(means, variances.sqrt()).to_event(1))
            shape = torch.broadcast_shapes(z.shape[:-1], library.shape[:-1])

            def flat(value: Tensor | None) -> Tensor | None:
                """Repeat per-datum values for each particle, in one batch dimension."""
                if value is None:
                    return None
                return value.expand(*shape, -1).reshape(-1, value.shape[-1])

            outputs = module.generative(
                z=module.z_encoder.z_transformation(flat(z)),
                library=flat(library),
                batch_index=flat(batch),
                cont_covs=flat(continuous),
                cat_covs=flat(categorical),
                size_factor=flat(None if size_factor is None else size_factor.log()),
                y=flat(labels),
            )
            fn = _unflatten(outputs["px"], module.gene_likelihood, (*shape, module.n_input))
            return pyro.sample("x", fn.to_event(1), obs=x)

    @pyro_method
    def guide(
        self,
        x: Tensor,
        batch: Tensor | None = None,
        labels: Tensor | None = None,
        library: Tensor | None = None,
        continuous: Tensor | None = None,
        categorical: Tensor | None = None,
        size_factor: Tensor | None = None,
    ) -> None:
        """Run q(z|x), and q(ℓ|x) unless the library size is observed."""
        outputs = self.module.inference(x, self._batch(x, batch), continuous, categorical)
        with pyro.plate("data", len(x)):
            pyro.sample("z", as_pyro(outputs["qz"]).to_event(1))
            if not self.module.use_observed_lib_size:
                pyro.sample("library", as_pyro(outputs["ql"]).to_event(1))

    def _batch(self, x: Tensor, batch: Tensor | None) -> Tensor:
        if batch is not None:
            return batch.reshape(len(x), 1)
        if self.module.n_batch > 1:
            raise ValueError(
                f"expected batch, the code of one of {self.module.n_batch} batches for each cell; "
                f"got none: pass batch=…, (N, 1), e.g. from program.read(adata)"
            )
        return x.new_zeros(len(x), 1)


def _unflatten(px: Any, kind: str, shape: tuple[int, ...]) -> Any:
    """Return a distribution of scvi-tools as one of Pyro, with its batch dimensions unflattened."""

    def unflatten(value: Tensor) -> Tensor:
        return value.reshape(shape) if value.ndim > 1 else value

    if kind == "normal":
        return dist.Normal(unflatten(px.loc), unflatten(px.scale))
    if kind == "poisson":
        return dist.Poisson(unflatten(px.rate))
    # evaluated in float64
    log_theta = (unflatten(px.theta) + _EPSILON).log()
    logits = (unflatten(px.mu) + _EPSILON).log() - log_theta
    counts = distributions.NegativeBinomial(log_theta, logits)
    if kind == "nb":
        return counts
    return dist.ZeroInflatedDistribution(counts, gate_logits=unflatten(px.zi_logits))
