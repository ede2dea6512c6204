"""Two processes do what one does: they learn together, judge shares, and speak with one voice."""

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
from pyro_vae.evaluation.sharding import joined
from pyro_vae.learning.batches import Batches
from pyro_vae.learning.training import find_device
from pyro_vae.runs.run import Run

TESTS = Path(__file__).parents[1]


def torchrun(*words: str, folder: Path = TESTS) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine, which end or are ended."""
    launch = [sys.executable, "-W", "error", "-m", "torch.distributed.run"]
    return subprocess.run(
        [*launch, "--standalone", "--nproc-per-node", "2", *words],
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
def found(work) -> list[dict]:
    """What each process found."""
    return [torch.load(work / f"rank{r}.pt", weights_only=False) for r in (0, 1)]


def close(one: dict, other: dict) -> None:
    assert one["weights"].keys() == other["weights"].keys()
    for name, value in one["weights"].items():
        torch.testing.assert_close(other["weights"][name], value, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(one["elbo"], other["elbo"], rtol=1e-9)
    assert one["lr"] == other["lr"]


@pytest.mark.parametrize("name", shared_work.TRUTHS)
def test_two_processes_learn_what_one_does(found, double, name):
    alone = shared_work.TRUTHS[name]()
    start = shared_work.ToldVAE() if "encoder.weight" in alone["weights"] else None
    if start is not None:  # it did learn
        assert alone["weights"]["mean"].abs() > 1e-3
    for each in found:
        close(alone, each[name])


@pytest.mark.parametrize("name", [*shared_work.TRUTHS, "freely", "bayesian"])
def test_both_hold_the_same_weights_bit_for_bit(found, name):
    first, second = (each[name]["weights"] for each in found)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_both_stop_early_at_the_same_epoch(found):
    first, second = (each["freely"] for each in found)
    for key in ("elbo", "valid_elbo", "lr", "step", "best"):
        assert first[key] == second[key]
    assert first["best"] == len(first["elbo"]) - 2 < 28


def test_noise_is_each_process_its_own(found):
    first, second = (each["noise"] for each in found)
    assert (first[0], first[2]) == (second[0], second[2])
    assert first[1] != second[1]


@pytest.mark.parametrize("name", shared_work.REFUSED)
def test_what_has_no_parts_is_refused(found, name):
    for each in found:
        message = each["refused"][name]
        assert re.match(shared_work.REFUSED[name][1], message), message
        assert "\n" not in message


@pytest.mark.parametrize("name", ["free bits", "batch norm", "best scale", "shared site"])
def test_one_process_refuses_none_of_it(double, name):
    shared_work.REFUSED[name][0]()


def test_nothing_of_the_group_is_left(found):
    """Of threads that are, the process was seen to die at its end, now and then."""
    for each in found:
        assert not [name for name in each["threads"] if "gloo" in name]


def test_the_first_process_alone_writes(work):
    assert (work / "rank0" / "state.pt").is_file()
    assert not (work / "rank1").exists()


def test_a_fit_goes_on_with_another_number_of_processes(work, found, double, tmp_path):
    whole = shared_work.told(epochs=3)
    for each in found:
        close(whole, each["resumed"])
    alone = tmp_path / "state.pt"
    shared_work.told(epochs=2, checkpoint=alone)
    close(whole, shared_work.told(epochs=3, checkpoint=alone, resume=True))
    (tmp_path / "theirs.pt").write_bytes((work / "state.pt").read_bytes())
    more = {"checkpoint": tmp_path / "theirs.pt", "resume": True}
    close(shared_work.told(epochs=4), shared_work.told(epochs=4, **more))


@pytest.mark.parametrize("name", shared_work.RULERS)
def test_shares_of_an_evaluation_are_put_together(found, double, name):
    """Each share is what one process finds of it with that process's seed, and all get all."""
    parts = []
    for number, rows in enumerate((slice(0, 10), slice(10, 21))):
        seed = int(np.random.SeedSequence([7, number, 2]).generate_state(1)[0])
        parts.append(shared_work.judged(name, rows, seed))
    expected = joined(parts, 7)
    told = expected.to_datatree()["bounds"].to_dataset().to_dict()
    for each in found:
        theirs = each[f"bounds {name}"]
        assert theirs["attrs"] == told["attrs"]
        assert theirs["data_vars"].keys() == told["data_vars"].keys()
        for column, values in told["data_vars"].items():
            np.testing.assert_allclose(
                theirs["data_vars"][column]["data"], values["data"], rtol=1e-9, err_msg=column
            )
        if name == "weights":
            np.testing.assert_array_equal(each["raw"], expected.log_weights)
    assert len(expected) == shared_work.N


@pytest.mark.parametrize("name", ["weights", "adaptive", "ais"])
def test_shares_agree_with_one_process(found, double, name):
    ours = shared_work.judged(name).estimates
    theirs = found[0][f"bounds {name}"]["data_vars"]
    for row in ("elbo", "ais") if name == "ais" else ("elbo",):
        value = np.mean(theirs[row]["data"])
        error = np.sqrt(np.mean(theirs[f"{row}_variance"]["data"]) / shared_work.N)
        # five standard errors: false alarm below 1e-5 where errors are normal
        assert abs(value - ours[row].value) < 5 * np.hypot(error, ours[row].se_monte_carlo)


def test_a_failure_of_one_ends_both_and_names_the_datum():
    done = torchrun("shared_work.py", "fail")
    assert done.returncode != 0
    assert "ValueError: the log weights of datum 8 are NaN" in done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run that two processes have learned and judged, from the command line."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "x.yaml").write_text(TINY)
    fit = torchrun(
        *("-m", "pyro_vae", "--", "fit", "--config", "x.yaml", "--run", "run"), folder=folder
    )
    assert fit.returncode == 0, fit.stderr
    assert fit.stdout.count("ELBO after epoch 1: ") == 1
    judged = torchrun(
        *("-m", "pyro_vae", "evaluate", "run", "--num-samples", "30", "--num-data", "21"),
        *("--ais", "--ais.num_chains", "2", "--ais.num_temperatures", "3"),
        folder=folder,
    )
    assert judged.returncode == 0, judged.stderr
    assert judged.stdout.count("21 data × 30 draws") == 1
    assert judged.stdout.count("next: pyro-vae report run") == 1
    assert judged.stderr.count("evaluate: 100%") <= 2  # a bar ends twice, once drawn and once left
    return folder / "run"


@pytest.mark.recorded_seed  # the data were split by other processes, which no offset reaches
def test_a_run_of_two_processes_is_a_run(run):
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
    # the ELBO of the very weights that were saved; five standard errors, false alarm below 1e-5
    valid = pv.evaluate(model, data.valid, num_samples=200)
    spread = np.sqrt(np.mean(valid.per_datum["elbo_variance"] * 200) / len(data.valid))
    assert abs(record["valid_elbo"] - valid.elbo) < 5 * spread
    assert load_file(run / "weights.safetensors").keys() == model.state_dict().keys()


def test_what_both_stumble_over_is_told_once(run):
    before = snapshot(run)
    words = ("-m", "pyro_vae", "--", "fit", "--config", "x.yaml", "--run", "run")
    done = torchrun(*words, folder=run.parent)
    assert done.returncode != 0
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("pyro-vae: ")]
    assert told.startswith("pyro-vae: run already holds a run: go on with --resume")
    assert snapshot(run) == before


@pytest.fixture
def pretend(monkeypatch):
    """Makes this process take itself for one of several."""

    def be(rank: int, world: int) -> None:
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: world)

    return be


@pytest.mark.parametrize(("size", "world"), [(0, 2), (1, 2), (5, 2), (7, 3), (2, 5), (100, 8)])
def test_shares_are_neighbours_and_even(pretend, size, world):
    parts = []
    for rank in range(world):
        pretend(rank, world)
        parts.append(list(range(size))[distributed.shard(size)])
    assert [number for part in parts for number in part] == list(range(size))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_minibatches_are_those_of_one_process(pretend):
    program, data = shared_work.ToldVAE(), shared_work.data()
    torch.manual_seed(5)
    whole = [batch.index for batch in Batches(program, data, 5).epoch()]
    parts = []
    for rank in range(3):
        pretend(rank, 3)
        torch.manual_seed(5)
        parts.append([batch.index for batch in Batches(program, data, 5).epoch()])
    together = [torch.cat(batch) for batch in zip(*parts, strict=True)]
    assert [b.tolist() for b in together] == [b.tolist() for b in whole]


def test_every_process_has_a_gpu_of_its_own(pretend, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setenv("LOCAL_RANK", "1")
    pretend(3, 4)
    assert find_device("auto") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match=r"^expected a GPU for each process .* got 2 for 3"):
        find_device("cuda")
    assert find_device("cpu") == torch.device("cpu")


def test_other_commands_are_not_shared(pretend, capsys):
    from pyro_vae.cli import app

    pretend(0, 2)
    assert app.main(["gaps", "nowhere"]) == 1
    assert capsys.readouterr().err == (
        "pyro-vae: expected fit or evaluate under torchrun with 2 processes; got gaps, which would "
        "do the same in each: call it by itself\n"
    )
