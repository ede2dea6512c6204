"""Exported functions equal the program, in a process that has neither this package nor Pyro."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae.runs import ExportError, export

#: Opens the functions as another project would, and refuses to import what they must not need.
OTHER_PROCESS = """
import sys
for name in ("pyro", "pyro_vae"):
    sys.modules[name] = None
import torch
folder, file = sys.argv[1:]
given = torch.load(file, weights_only=True)
x, noise = given["x"], given["noise"]
encoder, decoder, log_weight = (
    torch.export.load(f"{folder}/{name}.pt2").module()
    for name in ("encoder", "decoder", "log_weight")
)
z, log_q = encoder(x, noise)
result = {"z": z, "log_q": log_q, "mean": decoder(z), "log_w": log_weight(x, noise)}
torch.save(result, file)
"""

SMALL = partial(pv.networks.MLP, hidden=(5,))


def make_program(**parts) -> pv.VAE:
    torch.manual_seed(0)
    return pv.VAE((4, 3), latent_dim=2, encoder=SMALL, decoder=SMALL, **parts)


def test_functions_of_another_process(tmp_path):
    program = make_program(prior=partial(pv.priors.MixtureOfNormals, components=2))
    signature = export(program, tmp_path / "exported")
    assert signature["noise"] == 2
    assert json.loads((tmp_path / "exported" / "signature.json").read_text()) == signature
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(11, 4, 3, generator=generator).round()
    noise = torch.randn(11, 2, generator=generator)
    file = tmp_path / "values.pt"
    torch.save({"x": x, "noise": noise}, file)
    command = [sys.executable, "-c", OTHER_PROCESS, str(tmp_path / "exported"), str(file)]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    got = {name: value.numpy() for name, value in torch.load(file, weights_only=True).items()}

    # by the formulas of a normal posterior and a Bernoulli likelihood
    with torch.no_grad():
        q, p = program.posterior(x).base_dist, program.prior()
        z = q.loc + q.scale * noise
        log_q = (-(noise**2) / 2 - q.scale.log() - math.log(2 * math.pi) / 2).sum(-1)
        mean = program.likelihood(z).base_dist.probs
        log_x = torch.where(x == 1, mean, 1 - mean).log().sum((1, 2))
        log_w = p.log_prob(z) + log_x - log_q
    for name, value in {"z": z, "log_q": log_q, "mean": mean, "log_w": log_w}.items():
        np.testing.assert_allclose(got[name], value.numpy(), atol=1e-5, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", ["LogNormal", "ZeroInflatedNegativeBinomial"])
def test_other_likelihoods(name, tmp_path):
    """One that has no density at 0, and one whose mean switches gradients on."""
    program = make_program(likelihood=getattr(pv.likelihoods, name))
    program.posterior.requires_grad_(False)
    program.train()
    before, state = [p.requires_grad for p in program.parameters()], torch.get_rng_state()
    export(program, tmp_path / "exported")
    # the program and the generator are unchanged
    assert [p.requires_grad for p in program.parameters()] == before
    assert program.training
    assert torch.equal(torch.get_rng_state(), state)
    decoder = torch.export.load(tmp_path / "exported" / "decoder.pt2").module()
    z = torch.randn(6, 2, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = program.likelihood(z).mean
    torch.testing.assert_close(decoder(z), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "program, message",
    [
        (
            lambda: make_program(
                prior=pv.priors.UniformSphere, posterior=pv.posteriors.PowerSpherical
            ),
            "expected samples of q(z|x) to be functions of normal noise; got PowerSpherical",
        ),
        (
            lambda: pv.HierarchicalVAE((4, 3), latent_dims=(2, 2)),
            "expected a VAE, or a subclass with its model and guide; got HierarchicalVAE",
        ),
    ],
)
def test_what_cannot_be_exported(program, message, tmp_path):
    with pytest.raises(ExportError, match=re.escape(message)):
        export(program(), tmp_path / "exported")
    assert not [*tmp_path.iterdir()]


def test_folder_with_files_is_kept(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="expected a new folder"):
        export(make_program(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_onnx(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    program = make_program()
    export(program, tmp_path / "exported", onnx=True)
    session = onnxruntime.InferenceSession(tmp_path / "exported" / "decoder.onnx")
    z = torch.randn(9, 2, generator=torch.Generator().manual_seed(2))
    (mean,) = session.run(None, {"z": z.numpy()})
    with torch.no_grad():
        expected = program.likelihood(z).base_dist.probs
    np.testing.assert_allclose(mean, expected.numpy(), atol=1e-5)
