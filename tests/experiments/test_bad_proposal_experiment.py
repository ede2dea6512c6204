"""The experiment on spoilt proposals runs, goes on, and says what it measured."""

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
sys.path.insert(0, str(ROOT))  # the experiments are no part of the installed package

from experiments import bad_proposal  # noqa: E402
from experiments.table import Cell  # noqa: E402


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("done")
    assert bad_proposal.main(words(folder)) == 0
    return folder


def words(folder: Path) -> list[str]:
    places = ["--folder", str(folder / "runs"), "--results", str(folder)]
    return ["--preset", "smoke", "--device", "cpu", *places]


def read(folder: Path) -> dict:
    return json.loads((folder / "bad_proposal-smoke.json").read_text(encoding="utf-8"))


def test_every_row_is_there_and_told(done, capsys):
    results = read(done)
    assert (done / "bad_proposal-smoke.png").read_bytes().startswith(b"\x89PNG")
    names = [f"{what} {by:g}" for what, amounts in bad_proposal.SPOILT.items() for by in amounts]
    text = bad_proposal.text(results)
    for model, found in results["models"].items():
        rows = found["rows"]
        assert [*rows] == ["prior", *names]
        assert rows["mean 0"] == rows["scale 1"]  # the encoder as it is
        # moved by four standard deviations in D dimensions, KL(q ‖ p(z|x)) is some 8 D larger
        lost = rows["mean 0"]["elbo"]["value"] - rows["mean 4"]["elbo"]["value"]
        assert lost > 2 * found["latents"]
        assert rows["mean 4"]["unreliable"] > results["num_data"] / 2
        assert f"{model}, {found['latents']} latents; AIS from the prior" in text
        assert f"{rows['mean 4']['l_k']['value']:.2f} ± {rows['mean 4']['l_k']['se']:.2f}" in text
    assert "seconds" not in json.dumps(results)


def test_a_second_call_measures_nothing(done, monkeypatch):
    before = (done / "bad_proposal-smoke.json").read_bytes()
    monkeypatch.setattr(bad_proposal, "ais", None)
    assert bad_proposal.main(words(done)) == 0
    assert (done / "bad_proposal-smoke.json").read_bytes() == before


def test_a_row_that_is_missing_is_measured_again(done, monkeypatch):
    file = done / "bad_proposal-smoke.json"
    before = read(done)
    part = json.loads(json.dumps(before))
    del part["models"]["linear decoder"]["rows"]["scale 4"]
    file.write_text(json.dumps(part), encoding="utf-8")
    taken = []
    judged = bad_proposal.judged

    @functools.wraps(judged)
    def watched(program, *args):
        taken.append((program.mean, program.scale))
        return judged(program, *args)

    monkeypatch.setattr(bad_proposal, "judged", watched)
    assert bad_proposal.main(words(done)) == 0
    assert taken == [(0.0, 4.0)]
    assert read(done) == before


def test_other_weights_are_another_model(done, monkeypatch):
    file = done / "bad_proposal-smoke.json"
    part = read(done)
    part["models"]["deep decoder"]["weights"] = "those of another machine"
    file.write_text(json.dumps(part), encoding="utf-8")
    monkeypatch.setattr(bad_proposal, "judged", lambda *args: {"anew": True})
    monkeypatch.setattr(bad_proposal, "annealed", lambda *args: {"anew": True})
    saved = []
    cell = Cell(bad_proposal.TABLE, "smoke", "deep decoder", runs=done / "runs")
    bad_proposal.measure(cell, part["models"]["deep decoder"], "cpu", saved.append)
    assert all(row == {"anew": True} for row in saved[-1]["rows"].values())


def test_a_spoilt_guide_is_as_far_off_as_it_says():
    torch.manual_seed(0)
    vae = pv.VAE((6,), latent_dim=3)
    x = torch.rand(4, 6).round()
    q = vae.posterior(x).base_dist
    trace = poutine.trace(bad_proposal.Spoilt(vae, mean=2.0, scale=0.5).guide).get_trace(x)
    moved = trace.nodes["z"]["fn"].base_dist
    torch.testing.assert_close(moved.loc, q.loc + 2.0 * q.scale)
    torch.testing.assert_close(moved.scale, 0.5 * q.scale)


def test_the_words_of_every_preset_mean_something():
    for preset in bad_proposal.TABLE.presets:
        for row in bad_proposal.TABLE.rows(preset):
            Cell(bad_proposal.TABLE, preset, row, runs=Path("nowhere")).check()
    assert bad_proposal.ANNEALING.keys() == bad_proposal.TABLE.presets.keys()


def test_the_committed_results_show_it():
    """L_K falls by far more than the errors, k̂ warns, and AIS stays within its own."""
    file = ROOT / "experiments" / "results" / "bad_proposal-small.json"
    assert file.is_file(), f"`{bad_proposal.TABLE.command('small')}` writes it"
    results = json.loads(file.read_text(encoding="utf-8"))
    rows = results["models"]["linear decoder"]["rows"]
    fine, spoilt, prior = rows["mean 0"], rows["mean 4"], rows["prior"]
    errors = 5 * (fine["l_k"]["se"] + spoilt["l_k"]["se"])
    assert fine["l_k"]["value"] - spoilt["l_k"]["value"] > errors
    assert fine["unreliable"] < results["num_data"] / 5
    assert spoilt["unreliable"] > results["num_data"] / 2
    for row in rows.values():
        error = 5 * (row["ais"]["se"] ** 2 + prior["ais"]["se"] ** 2) ** 0.5
        assert abs(row["ais"]["value"] - prior["ais"]["value"]) < error + 0.1
