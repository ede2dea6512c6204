"""Training and evaluation in two processes agree with a single process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shared_work
import torch
from run_folders import TINY, snapshot
from safetensors.torch import load_file

import pyro_vae as pv
from pyro_vae.core import distributed
from pyro_vae.evaluation.sharding import merge_shards
from pyro_vae.learning.batches import BatchLoader
from pyro_vae.learning.training import resolve_device
from pyro_vae.runs.run import Run

TESTS = Path(__file__).parents[1]


def torchrun(*args: str, folder: Path = TESTS) -> subprocess.CompletedProcess[str]:
    """Run two processes on this machine, with a timeout."""
    launch = [sys.executable, "-W", "error", "-m", "torch.distributed.run"]
    return subprocess.run(
        [*launch, "--standalone", "--nproc-per-node", "2", *args],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    done = torchrun("shared_work.py", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def results(work) -> list[dict]:
    """Results of each process."""
    return [torch.load(work / f"rank{r}.pt", weights_only=False) for r in (0, 1)]


def assert_fits_close(expected: dict, actual: dict) -> None:
    assert expected["weights"].keys() == actual["weights"].keys()
    for name, value in expected["weights"].items():
        torch.testing.assert_close(actual["weights"][name], value, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(expected["elbo"], actual["elbo"], rtol=1e-9)
    assert expected["lr"] == actual["lr"]


@pytest.mark.parametrize("name", shared_work.EXACT_FITS)
def test_fit_in_two_processes_equals_fit_in_one(results, double, name):
    alone = shared_work.EXACT_FITS[name]()
    start = shared_work.GivenNoiseVAE() if "encoder.weight" in alone["weights"] else None
    if start is not None:  # the fit changed the parameters
        assert alone["weights"]["mean"].abs() > 1e-3
    for each in results:
        assert_fits_close(alone, each[name])


@pytest.mark.parametrize("name", [*shared_work.EXACT_FITS, "early_stopping", "bayesian"])
def test_parameters_are_bitwise_equal_across_processes(results, name):
    first, second = (each[name]["weights"] for each in results)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_early_stopping_at_the_same_epoch(results):
    first, second = (each["early_stopping"] for each in results)
    for key in ("elbo", "valid_elbo", "lr", "step", "best"):
        assert first[key] == second[key]
    assert first["best"] == len(first["elbo"]) - 2 < 28


def test_seed_by_rank_gives_separate_streams(results):
    first, second = (each["noise"] for each in results)
    assert (first[0], first[2]) == (second[0], second[2])
    assert first[1] != second[1]


@pytest.mark.parametrize("name", shared_work.ERRORS)
def test_unsupported_settings_raise(results, name):
    for each in results:
        message = each["errors"][name]
        assert re.match(shared_work.ERRORS[name][1], message), message
        assert "\n" not in message


@pytest.mark.parametrize("name", ["free bits", "batch norm", "best scale", "shared site"])
def test_the_same_settings_work_in_one_process(double, name):
    shared_work.ERRORS[name][0]()


def test_no_threads_of_the_process_group_remain(results):
    """Remaining gloo threads sometimes abort the process on exit."""
    for each in results:
        assert not [name for name in each["threads"] if "gloo" in name]


def test_only_the_main_process_writes(work):
    assert (work / "rank0" / "state.pt").is_file()
    assert not (work / "rank1").exists()


def test_fit_resumes_with_a_different_number_of_processes(work, results, double, tmp_path):
    whole = shared_work.fit_given_noise(epochs=3)
    for each in results:
        assert_fits_close(whole, each["resumed"])
    alone = tmp_path / "state.pt"
    shared_work.fit_given_noise(epochs=2, checkpoint=alone)
    assert_fits_close(whole, shared_work.fit_given_noise(epochs=3, checkpoint=alone, resume=True))
    (tmp_path / "two.pt").write_bytes((work / "state.pt").read_bytes())
    options = {"checkpoint": tmp_path / "two.pt", "resume": True}
    assert_fits_close(
        shared_work.fit_given_noise(epochs=4), shared_work.fit_given_noise(epochs=4, **options)
    )


@pytest.mark.parametrize("name", shared_work.ESTIMATORS)
def test_evaluation_shards_are_merged(results, double, name):
    """Each shard equals a single-process evaluation with the rank's seed; all ranks get all."""
    parts = []
    for number, rows in enumerate((slice(0, 10), slice(10, 21))):
        seed = int(np.random.SeedSequence([7, number, 2]).generate_state(1)[0])
        parts.append(shared_work.run_evaluation(name, rows, seed))
    expected = merge_shards(parts, 7)
    content = expected.to_datatree()["bounds"].to_dataset().to_dict()
    for each in results:
        actual = each[f"bounds {name}"]
        assert actual["attrs"] == content["attrs"]
        assert actual["data_vars"].keys() == content["data_vars"].keys()
        for column, values in content["data_vars"].items():
            if column == "iwae_variance":  # uses all shards, see test_coverage.py
                continue
            np.testing.assert_allclose(
                actual["data_vars"][column]["data"], values["data"], rtol=1e-9, err_msg=column
            )
        if name == "weights":
            np.testing.assert_array_equal(each["log_weights"], expected.log_weights)
    assert len(expected) == shared_work.N


@pytest.mark.parametrize("name", ["weights", "adaptive", "ais"])
def test_sharded_estimates_agree_with_one_process(results, double, name):
    single = shared_work.run_evaluation(name).estimates
    columns = results[0][f"bounds {name}"]["data_vars"]
    for row in ("elbo", "ais") if name == "ais" else ("elbo",):
        value = np.mean(columns[row]["data"])
        error = np.sqrt(np.mean(columns[f"{row}_variance"]["data"]) / shared_work.N)
        # five standard errors: false-alarm rate below 1e-5 for normal errors
        assert abs(value - single[row].value) < 5 * np.hypot(error, single[row].se_monte_carlo)


def test_failure_of_one_process_ends_both():
    done = torchrun("shared_work.py", "fail")
    assert done.returncode != 0
    assert "ValueError: expected finite log weights; got NaN or +inf for example 8" in done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run trained and evaluated in two processes from the command line."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "x.yaml").write_text(TINY)
    fit = torchrun(
        *("-m", "pyro_vae", "--", "fit", "--config", "x.yaml", "--run", "run"), folder=folder
    )
    assert fit.returncode == 0, fit.stderr
    assert fit.stdout.count("ELBO after epoch 1: ") == 1
    evaluation = torchrun(
        *("-m", "pyro_vae", "evaluate", "run", "--num-samples", "30", "--num-data", "21"),
        *("--estimators.Annealing.num_chains", "2"),
        *("--estimators.Annealing.num_temperatures", "3"),
        folder=folder,
    )
    assert evaluation.returncode == 0, evaluation.stderr
    assert evaluation.stdout.count("21 examples × 30 samples") == 1
    assert evaluation.stdout.count("next: pyro-vae report run") == 1
    assert evaluation.stderr.count("evaluate: 100%") <= 2  # the final bar may be drawn twice
    return folder / "run"


@pytest.mark.recorded_seed  # the subprocesses split the data without the seed offset
def test_run_of_two_processes_is_complete(run):
    names = {p.name for p in run.iterdir()}
    assert names == {
        *("config.yaml", "metrics.jsonl", "state.pt", "weights.safetensors"),
        *("bounds.nc", "result.json"),
    }
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    assert result["fit"]["processes"] == result["bounds"]["processes"] == 2
    bounds = Run(run).read_bounds()
    assert len(bounds) == 21
    assert bounds.elbo == result["bounds"]["estimates"]["elbo"]["value"]
    _, data, model = Run(run).open()
    (record,) = Run(run).read_metrics().epochs
    assert record["step"] == -(-len(data.train) // 500)
    # the ELBO of the saved weights within five standard errors: false-alarm rate below 1e-5
    valid = pv.evaluate(model, data.valid, num_samples=200)
    spread = np.sqrt(np.mean(valid.per_datum["elbo_variance"] * 200) / len(data.valid))
    assert abs(record["valid_elbo"] - valid.elbo) < 5 * spread
    assert load_file(run / "weights.safetensors").keys() == model.state_dict().keys()


def test_common_errors_are_printed_once(run):
    before = snapshot(run)
    args = ("-m", "pyro_vae", "--", "fit", "--config", "x.yaml", "--run", "run")
    done = torchrun(*args, folder=run.parent)
    assert done.returncode != 0
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("pyro-vae: ")]
    assert message.startswith("pyro-vae: run already contains a run: continue it with --resume")
    assert snapshot(run) == before


@pytest.fixture
def set_rank(monkeypatch):
    """Set the rank and the number of processes."""

    def set_values(rank: int, world: int) -> None:
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: world)

    return set_values


@pytest.mark.parametrize(("size", "world"), [(0, 2), (1, 2), (5, 2), (7, 3), (2, 5), (100, 8)])
def test_shards_are_contiguous_and_balanced(set_rank, size, world):
    parts = []
    for rank in range(world):
        set_rank(rank, world)
        parts.append(list(range(size))[distributed.shard(size)])
    assert [item for part in parts for item in part] == list(range(size))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_minibatches_match_those_of_one_process(set_rank):
    program, data = shared_work.GivenNoiseVAE(), shared_work.make_split()
    torch.manual_seed(5)
    whole = [batch.index for batch in BatchLoader(program, data, 5).iter_epoch()]
    parts = []
    for rank in range(3):
        set_rank(rank, 3)
        torch.manual_seed(5)
        parts.append([batch.index for batch in BatchLoader(program, data, 5).iter_epoch()])
    merged = [torch.cat(batch) for batch in zip(*parts, strict=True)]
    assert [b.tolist() for b in merged] == [b.tolist() for b in whole]


def test_each_process_has_its_own_gpu(set_rank, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setenv("LOCAL_RANK", "1")
    set_rank(3, 4)
    assert resolve_device("auto") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(
        ValueError, match=r"^expected a GPU for each process .* got 2 for at least 3"
    ):
        resolve_device("cuda")
    assert resolve_device("cpu") == torch.device("cpu")


def test_other_commands_raise_under_torchrun(set_rank, capsys):
    from pyro_vae.cli import app

    set_rank(0, 2)
    assert app.main(["gaps", "nowhere"]) == 1
    assert capsys.readouterr().err == (
        "pyro-vae: expected fit or evaluate under torchrun with 2 processes; got gaps, which every "
        "process would repeat: run it without torchrun\n"
    )
