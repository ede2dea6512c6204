"""The experiment on bad proposals runs, resumes, and reports its measurements."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import pytest
import torch
from pyro import poutine

import pyro_vae as pv

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # experiments are not installed with the package

from experiments.studies import bad_proposal  # noqa: E402
from experiments.table import Cell  # noqa: E402


@pytest.fixture(scope="module")
def results_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bad_proposal")
    assert bad_proposal.main(make_args(folder)) == 0
    return folder


def make_args(folder: Path) -> list[str]:
    folders = ["--folder", str(folder / "runs"), "--results", str(folder)]
    return ["--preset", "smoke", "--device", "cpu", *folders]


def read(folder: Path) -> dict:
    return json.loads((folder / "bad_proposal-smoke.json").read_text(encoding="utf-8"))


def test_every_row_is_measured_and_printed(results_folder, capsys):
    results = read(results_folder)
    assert (results_folder / "bad_proposal-smoke.png").read_bytes().startswith(b"\x89PNG")
    names = [f"{key} {by:g}" for key, amounts in bad_proposal.CHANGES.items() for by in amounts]
    text = bad_proposal.format_results(results)
    for model, entry in results["models"].items():
        rows = entry["rows"]
        assert [*rows] == ["prior", *names]
        assert rows["mean 0"] == rows["scale 1"]  # the unchanged encoder
        # a shift by four standard deviations in D dimensions adds about 8 D to KL(q ‖ p(z|x))
        lost = rows["mean 0"]["elbo"]["value"] - rows["mean 4"]["elbo"]["value"]
        assert lost > 2 * entry["latents"]
        assert rows["mean 4"]["unreliable"] > results["num_data"] / 2
        assert f"{model}, {entry['latents']} latents; AIS from the prior" in text
        assert f"{rows['mean 4']['l_k']['value']:.2f} ± {rows['mean 4']['l_k']['se']:.2f}" in text
    assert "seconds" not in json.dumps(results)


def test_second_call_measures_nothing(results_folder, monkeypatch):
    before = (results_folder / "bad_proposal-smoke.json").read_bytes()
    monkeypatch.setattr(bad_proposal, "ais", None)
    assert bad_proposal.main(make_args(results_folder)) == 0
    assert (results_folder / "bad_proposal-smoke.json").read_bytes() == before


def test_missing_row_is_measured_again(results_folder, monkeypatch):
    file = results_folder / "bad_proposal-smoke.json"
    before = read(results_folder)
    part = json.loads(json.dumps(before))
    del part["models"]["linear decoder"]["rows"]["scale 4"]
    file.write_text(json.dumps(part), encoding="utf-8")
    calls = []
    evaluate_program = bad_proposal.evaluate_program

    @functools.wraps(evaluate_program)
    def recorded(program, *args):
        calls.append((program.mean, program.scale))
        return evaluate_program(program, *args)

    monkeypatch.setattr(bad_proposal, "evaluate_program", recorded)
    assert bad_proposal.main(make_args(results_folder)) == 0
    assert calls == [(0.0, 4.0)]
    assert read(results_folder) == before


def test_rows_are_measured_again_for_other_weights(results_folder, monkeypatch):
    file = results_folder / "bad_proposal-smoke.json"
    part = read(results_folder)
    part["models"]["deep decoder"]["weights"] = "weights of another machine"
    file.write_text(json.dumps(part), encoding="utf-8")
    monkeypatch.setattr(bad_proposal, "evaluate_program", lambda *args: {"new": True})
    monkeypatch.setattr(bad_proposal, "evaluate_ais", lambda *args: {"new": True})
    saved = []
    cell = Cell(bad_proposal.TABLE, "smoke", "deep decoder", runs=results_folder / "runs")
    bad_proposal.measure_model(cell, part["models"]["deep decoder"], "cpu", saved.append)
    assert all(row == {"new": True} for row in saved[-1]["rows"].values())


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


def test_arguments_of_every_preset_are_valid():
    for preset in bad_proposal.TABLE.presets:
        for row in bad_proposal.TABLE.rows(preset):
            Cell(bad_proposal.TABLE, preset, row, runs=Path("nowhere")).check()
    assert bad_proposal.ANNEALING.keys() == bad_proposal.TABLE.presets.keys()


def test_committed_results_have_the_expected_pattern():
    """L_K falls by far more than its error, k̂ is bad, and AIS agrees within its error."""
    file = ROOT / "experiments" / "results" / "bad_proposal-small.json"
    assert file.is_file(), f"`{bad_proposal.TABLE.command('small')}` writes it"
    results = json.loads(file.read_text(encoding="utf-8"))
    rows = results["models"]["linear decoder"]["rows"]
    unchanged, shifted, prior = rows["mean 0"], rows["mean 4"], rows["prior"]
    errors = 5 * (unchanged["l_k"]["se"] + shifted["l_k"]["se"])
    assert unchanged["l_k"]["value"] - shifted["l_k"]["value"] > errors
    assert unchanged["unreliable"] < results["num_data"] / 5
    assert shifted["unreliable"] > results["num_data"] / 2
    for row in rows.values():
        error = 5 * (row["ais"]["se"] ** 2 + prior["ais"]["se"] ** 2) ** 0.5
        assert abs(row["ais"]["value"] - prior["ais"]["value"]) < error + 0.1
