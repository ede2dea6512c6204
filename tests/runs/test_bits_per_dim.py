"""Bits per dimension on the command line: where they exist, and where they do not."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from pyro_vae.cli import app
from pyro_vae.report.tables import paired_difference
from pyro_vae.runs.run import Run

SMALL = """\
--model.latent_dim 2 --model.encoder.hidden [8] --model.decoder.hidden [8]
--model.decoder.output_bias data --fit.epochs 1 --fit.batch_size 500 --fit.device cpu"""


def _evaluated(run, options, capsys):
    """What ``evaluate`` prints of a new run, and what it leaves in ``result.json``."""
    argv = ["fit", "--run", run, *SMALL.split(), *options.split()]
    assert app.main([*argv, "--data.binarize", "none"] if "binarize" not in options else argv) == 0
    capsys.readouterr()
    assert app.main(["evaluate", run, "--num-samples", "10", "--num-data", "30"]) == 0
    return capsys.readouterr().out, json.loads(Path(run, "result.json").read_text())


CASES = {
    "levels": ("--data.values integer --model.likelihood Categorical", 1, True),
    "binarised": ("--data.binarize dynamic --model.likelihood Bernoulli", 1, False),
    "dequantised": ("--data.values dequantized --model.likelihood Beta", 17, False),
    "dequantised, reals": ("--data.values dequantized --model.likelihood Gaussian", 17, False),
}


@pytest.mark.parametrize("case", CASES)
def test_printed_and_recorded(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options, levels, sixteen = CASES[case]
    options += " --model.likelihood.levels 16" if sixteen else ""
    printed, result = _evaluated("run", f"--data.name digits {options}", capsys)
    bounds = result["bounds"]
    lines = []
    for name, label in (("elbo", "ELBO"), ("log_evidence", "log p̂")):
        nats, bits = bounds["estimates"][name], bounds["bits_per_dim"][name]
        expected = (-nats["value"] + 64 * math.log(levels)) / (64 * math.log(2))
        assert bits["value"] == pytest.approx(expected)
        for key in ("se_data", "se_monte_carlo"):
            assert bits[key] == pytest.approx(nats[key] / (64 * math.log(2)))
        lines.append(f"{label} {bits['value']:.4f} ± {bits['se_data']:.4f}")
    assert f"bits per dimension (lower is better, ± data): {', '.join(lines)}\n" in printed
    if case != "dequantised":  # a report takes seconds
        return
    assert app.main(["report", "run"]) == 0
    assert lines[0] in Path("run/report.html").read_text(encoding="utf-8")


def test_a_single_datum_has_no_error(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _evaluated("run", "--data.name digits --data.binarize dynamic", capsys)
    assert app.main(["evaluate", "run", "--num-samples", "10", "--num-data", "1"]) == 0
    assert "± nan" in capsys.readouterr().out
    result = json.loads(Path("run/result.json").read_text())
    assert result["bounds"]["bits_per_dim"]["elbo"]["se_data"] is None


@pytest.mark.parametrize(
    "options",
    [
        "--data.values unit --model.likelihood ContinuousBernoulli",
        "--data.values integer --model.likelihood Gaussian",  # a density at integers
        "--data.binarize static --model.likelihood ContinuousBernoulli",
        # who is told the total does not code it
        "--data.values integer --model.likelihood Poisson --model.likelihood.library observed",
    ],
)
def test_no_bits_of_a_density(options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    printed, result = _evaluated("run", f"--data.name digits {options}", capsys)
    assert "bits" not in printed
    assert "bits_per_dim" not in result["bounds"]
    if "unit" not in options:
        return
    assert app.main(["report", "run"]) == 0
    assert "bits per dimension" not in Path("run/report.html").read_text(encoding="utf-8")


def test_runs_on_other_values_of_the_same_data_do_not_compare(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    likelihood = "--data.name digits --model.likelihood Gaussian --data.values"
    for values in ("unit", "integer", "dequantized"):
        _, result = _evaluated(values, f"{likelihood} {values}", capsys)
        assert result["data"]["values"] == values
    assert app.main(["compare", "unit", "integer", "dequantized"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert rows["integer"].endswith("other data") and rows["dequantized"].endswith("other data")


def test_probabilities_and_densities_of_the_same_data_do_not_compare(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = "--data.name digits --data.values integer --model.likelihood"
    measures = {
        "poisson": ("Poisson", "probability"),
        "binomial": ("Binomial --model.likelihood.levels 16", "probability"),
        "gaussian": ("Gaussian", "density"),
        "observed": ("Poisson --model.likelihood.library observed", "given the total"),
        "decoded": ("Poisson --model.likelihood.library decoded", "probability"),
    }
    for name, (likelihood, measure) in measures.items():
        _, result = _evaluated(name, f"{base} {likelihood}", capsys)
        assert result["bounds"]["measure"] == measure
    assert app.main(["compare", *measures]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    for name in ("gaussian", "observed"):
        assert rows[name].endswith("  other measure")
    for name in ("binomial", "decoded"):
        assert "other" not in rows[name]
    runs = {name: Run(name) for name in measures}
    # the likelihoods' table turns both into bits; what was told the total has none
    assert paired_difference(runs["gaussian"], runs["poisson"], any_values=True) is not None
    assert paired_difference(runs["observed"], runs["poisson"], any_values=True) is None
    assert paired_difference(runs["observed"], runs["gaussian"]) is None
    # results from before it was noted
    for run in runs.values():
        result = json.loads(run.result.read_text(encoding="utf-8"))
        del result["bounds"]["measure"]
        run.result.write_text(json.dumps(result), encoding="utf-8")
    assert paired_difference(runs["gaussian"], runs["poisson"]) is not None


def test_counts_of_an_array(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("counts.npy", np.random.default_rng(0).poisson(300, (200, 6)))
    options = "--data.name array --data.path counts.npy --model.likelihood NegativeBinomial"
    printed, result = _evaluated("run", options, capsys)
    nats = result["bounds"]["estimates"]["elbo"]["value"]
    bits = result["bounds"]["bits_per_dim"]["elbo"]["value"]
    assert bits == pytest.approx(-nats / (6 * math.log(2)))
    assert "bits per dimension" in printed
