"""Bad proposals, and rate and distortion: what the scripts measure besides their tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pyro import poutine
from scripts import RESULTS, make_args, modification_times, read_json

import pyro_vae as pv
from experiments.cells import Cell
from experiments.studies import bad_proposal, rate_distortion
from pyro_vae.evaluation.annealing.rate_distortion_curve import DEFAULT_BETAS, RateDistortion

ROW = "deep decoder"


@pytest.fixture(scope="module")
def proposals(tmp_path_factory) -> Path:
    """Results of one model with bad proposals."""
    folder = tmp_path_factory.mktemp("bad_proposal")
    assert bad_proposal.main(make_args(folder, "--only", ROW)) == 0
    return folder


def test_every_change_is_measured_and_printed(proposals):
    results = read_json(proposals / "bad_proposal-smoke.json")
    assert (proposals / "bad_proposal-smoke.png").read_bytes().startswith(b"\x89PNG")
    names = [f"{key} {by:g}" for key, amounts in bad_proposal.CHANGES.items() for by in amounts]
    text = bad_proposal.format_results(results)
    assert [*results["models"]] == [ROW]
    assert results["missing"] == {"linear decoder, seed 0": "not started"}
    entry = results["models"][ROW]
    rows = entry["rows"]
    assert [*rows] == ["prior", *names]
    assert rows["mean 0"] == rows["scale 1"]  # the unchanged encoder
    # a shift by four standard deviations in D dimensions adds about 8 D to KL(q ‖ p(z|x))
    lost = rows["mean 0"]["elbo"]["value"] - rows["mean 4"]["elbo"]["value"]
    assert lost > 2 * entry["latents"]
    assert rows["mean 4"]["unreliable"] > results["num_data"] / 2
    assert f"{ROW}, {entry['latents']} latents; AIS from the prior" in text
    assert f"{rows['mean 4']['l_k']['value']:.2f} ± {rows['mean 4']['l_k']['se']:.2f}" in text
    assert "seconds" not in json.dumps(results)


def test_second_call_measures_nothing(proposals):
    before = modification_times(proposals)
    assert bad_proposal.main(make_args(proposals, "--only", ROW)) == 0
    assert modification_times(proposals) == before


def test_guide_is_shifted_and_scaled():
    torch.manual_seed(0)
    vae = pv.VAE((6,), latent_dim=3)
    x = torch.rand(4, 6).round()
    q = vae.posterior(x).base_dist
    trace = poutine.trace(bad_proposal.PerturbedProposal(vae, mean=2.0, scale=0.5).guide).get_trace(
        x
    )
    perturbed = trace.nodes["z"]["fn"].base_dist
    torch.testing.assert_close(perturbed.loc, q.loc + 2.0 * q.scale)
    torch.testing.assert_close(perturbed.scale, 0.5 * q.scale)


def test_committed_results_have_the_expected_pattern():
    """L_K falls by far more than its error, k̂ is bad, and AIS agrees within its error."""
    results = read_json(RESULTS / "bad_proposal-small.json")
    rows = results["models"]["linear decoder"]["rows"]
    unchanged, shifted, prior = rows["mean 0"], rows["mean 4"], rows["prior"]
    errors = 5 * (unchanged["l_k"]["se"] + shifted["l_k"]["se"])
    assert unchanged["l_k"]["value"] - shifted["l_k"]["value"] > errors
    assert unchanged["unreliable"] < results["num_data"] / 5
    assert shifted["unreliable"] > results["num_data"] / 2
    for row in rows.values():
        error = 5 * (row["ais"]["se"] ** 2 + prior["ais"]["se"] ** 2) ** 0.5
        assert abs(row["ais"]["value"] - prior["ais"]["value"]) < error + 0.1


def test_curve_of_the_first_row_is_computed_once(tmp_path, monkeypatch, capsys):
    def run(*rows: str) -> int:
        return rate_distortion.main(make_args(tmp_path, "--only", *rows))

    assert run("beta 10") == 0
    results = read_json(tmp_path / "rate_distortion-smoke.json")
    assert "curve" not in results  # that of the first row is missing
    assert run("beta 1", "beta 10") == 0
    results = read_json(tmp_path / "rate_distortion-smoke.json")
    summary = results["curve"]
    assert summary["betas"] == list(DEFAULT_BETAS)
    assert summary["num_data"] == 4 and summary["row"] == "beta 1"
    cell = Cell(rate_distortion.TABLE, "smoke", "beta 1", runs=tmp_path / "runs")
    curve = RateDistortion.from_netcdf(cell.folder / "curve.nc")
    assert [row["value"] for row in summary["rate"]] == pytest.approx(curve.rate)
    assert f"{DEFAULT_BETAS[0]:6.3g}{curve.rate[0]:11.2f}" in capsys.readouterr().out
    for row in results["rows"].values():
        (record,) = row["runs"]
        measures = record["measures"]
        elbo = -measures["rate"]["value"] - measures["distortion"]["value"]
        # measures use 100 test examples, bounds the first 20
        assert elbo == pytest.approx(record["bounds"]["estimates"]["elbo"]["value"], rel=0.1)
        information = measures["mutual information"]
        assert 0 <= information["value"] <= information["limit"]
        dimensions = measures["rate"]["dimensions"]["z"]
        assert sum(dimensions) == pytest.approx(measures["rate"]["value"], rel=1e-3)
    before = modification_times(tmp_path)
    monkeypatch.setattr(rate_distortion, "rate_distortion", None)
    assert run("beta 1", "beta 10") == 0
    assert modification_times(tmp_path) == before
    # a curve of other weights is computed again
    curve.to_netcdf(cell.folder / "curve.nc", provenance={"weights": "others"})
    with pytest.raises(TypeError, match="not callable"):
        rate_distortion.load_or_make_curve(cell)
