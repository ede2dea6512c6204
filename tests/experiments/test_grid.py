"""Tables whose rows are jobs of submitit, on this machine: the same command as on Slurm."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # no part of the installed package

from experiments.table import Cell, Preset, Table, main

pytest.importorskip("submitit")

from experiments import grid

TOY = Table(
    name="toy",
    title="Learning rates of two latents",
    base="--data.name digits --data.binarize threshold --data.test 1600 --model.latent_dim 2",
    cells={
        "good": "--fit.optimizer Adam --fit.optimizer.lr 0.01",
        "bad": "--fit.optimizer Adam --fit.optimizer.lr 1e30",
    },
    presets={"smoke": Preset("--fit.epochs 2", 30, 20)},
)


@pytest.fixture
def toy(tmp_path):
    def run(*words: str) -> int:
        places = ["--folder", str(tmp_path / "runs"), "--results", str(tmp_path)]
        return main(TOY, ["--preset", "smoke", "--device", "cpu", *places, *words])

    return run


def test_rows_are_jobs_and_failures_are_named_with_their_logs(toy, tmp_path, capsys):
    assert toy("--jobs", "2") == 1
    out, err = capsys.readouterr()
    good, bad = (Cell(TOY, "smoke", row, runs=tmp_path / "runs") for row in ("good", "bad"))
    bounds = good.run.read_bounds()
    line = f"good, seed 0: ELBO {bounds.elbo:.3f}, log p̂ {bounds.log_evidence:.3f}"
    assert out.count(line) == 1
    assert "2 jobs, local, 2 at a time" in out
    told = next(word for word in err.splitlines() if word.startswith("bad, seed 0: "))
    sentence, _, log = told.partition("; its log is ")
    assert "became" in sentence or "overflowed" in sentence or "not finite" in sentence
    assert sentence in Path(log).read_text(encoding="utf-8")
    assert "good" not in err
    assert not bad.run.weights.exists()
    results = json.loads((tmp_path / "toy-smoke.json").read_text(encoding="utf-8"))
    assert list(results["rows"]) == ["good"]
    problem = sentence.removeprefix("bad, seed 0: ")
    assert results["missing"] == {"bad, seed 0": f"failed: {problem}"}

    # what is finished is not submitted, and a job that is killed is not taken for a result
    before = {p: p.stat().st_mtime_ns for p in good.folder.iterdir()}
    assert toy("--jobs", "1", "--slurm", "timeout_min=0", "slurm_partition=none") == 1
    out, err = capsys.readouterr()
    assert "good, seed 0: finished, left as it is" in out
    assert "1 jobs, local, 1 at a time" in out
    assert "bad, seed 0: the job ended without a result" in err
    assert {p: p.stat().st_mtime_ns for p in good.folder.iterdir()} == before


def test_no_more_jobs_at_a_time_than_were_asked_for():
    class Job:
        going = most = 0

        def __init__(self):
            self.left = 3
            Job.going += 1
            Job.most = max(Job.most, Job.going)

        def done(self):
            self.left -= 1
            Job.going -= self.left == 0
            return self.left <= 0

        def result(self):
            return None

        def cancel(self, check):
            raise AssertionError("nothing was interrupted")

    class Line:
        def line(self):
            return "done"

    pause, grid._PAUSE = grid._PAUSE, 0.0
    try:
        assert grid._all([Line() for _ in range(7)], 3, lambda cell: Job()) == []
    finally:
        grid._PAUSE = pause
    assert (Job.most, Job.going) == (3, 0)


@pytest.mark.parametrize(
    ("signalled", "raised"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)],
)
def test_who_is_interrupted_or_terminated_ends_the_jobs(signalled, raised):
    ended = []

    class Job:
        def done(self):
            signal.raise_signal(signalled)

        def cancel(self, check):
            ended.append(self)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(raised), grid._jobs_end_with_us():
        grid._all(list("abc"), 2, lambda cell: Job())
    assert len(ended) == 2
    assert signal.getsignal(signal.SIGTERM) == before


def test_jobs_do_not_inherit_that_interruptions_are_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with grid._jobs_end_with_us():
            signal.raise_signal(signal.SIGINT)  # ignored as before
            assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_words_for_slurm():
    words = ["timeout_min=60", "mem_gb=1.5", "slurm_partition=gpu", "slurm_constraint=a=b"]
    assert grid.options(words) == {
        "timeout_min": 60,
        "mem_gb": 1.5,
        "slurm_partition": "gpu",
        "slurm_constraint": "a=b",
    }


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--jobs", "0"], "expected --jobs of at least 1; got 0"),
        (["--slurm", "mem_gb=1"], "expected --jobs beside --slurm; got none: say how many"),
        (["--jobs", "1", "--slurm", "mem_gb"], "expected --slurm KEY=VALUE; got 'mem_gb'"),
        (["--jobs", "1", "--slurm", "memory=1"], "expected --slurm to name parameters of submitit"),
        (["--jobs", "1", "--slurm", "mem_gb=all"], "expected --slurm to name parameters of submit"),
    ],
)
def test_refusals(toy, tmp_path, capsys, words, sentence):
    assert toy(*words) == 1
    out, err = capsys.readouterr()
    assert err.startswith(f"toy: {sentence}")
    assert err.count("\n") == 1
    assert out == ""
    assert not list((tmp_path / "runs").rglob("*.yaml"))
