"""Benchmarks: rounds and ratios on fake times; all contenders do the same work."""

# the peers' modules are not a package, and some of their dependencies are not installed here
# pyright: reportMissingImports=false

from __future__ import annotations

import math
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyro
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "benchmarks"))

import bench
import busy
import cores
import harness
import limits
import ours
import rounds
import scaling
import table
import topics
import worker
from job import Job, find_fastest
from peers import plain_torch, pyro_svi
from process import Worker, WorkerError

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "benchmarks"
PIXELS, TOY_HIDDEN = 6, 3
LOCAL = {"ours": ours, "pyro": pyro_svi, "torch": plain_torch}
needs_peers = pytest.mark.skipif(
    not bench.PEER_PYTHON.exists(), reason="requires the peers' environment: make bench-peers"
)
TRAINING_PEERS = [
    pytest.param("peers.numpyro_scan", marks=needs_peers),
    pytest.param("peers.pythae_trainer", marks=needs_peers),
]
EVALUATION_PEERS = [
    pytest.param("peers.jax_jit", marks=needs_peers),
    pytest.param("peers.pythae_trainer", marks=needs_peers),
]


@pytest.fixture(autouse=True)
def restore_validation():
    """Enable Pyro's validation again after each test; contenders switch it off."""
    with pyro.validation_enabled(True):
        yield


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> str:
    """A problem with six pixels and one latent variable, so that log p(x) is a sum over a grid."""
    rng = np.random.default_rng(0)
    arrays = {}
    sizes = {"encoder": (PIXELS, TOY_HIDDEN, 2), "decoder": (1, TOY_HIDDEN, PIXELS)}
    for name, widths in sizes.items():
        for i, shape in enumerate(zip(widths[1:], widths[:-1], strict=True)):
            arrays[f"{name}.{i}.weight"] = rng.normal(size=shape).astype(np.float32)
            arrays[f"{name}.{i}.bias"] = rng.normal(size=shape[0]).astype(np.float32) / 2
    # q is slightly wider than the prior: with arbitrary weights it may be too narrow for log p(x)
    arrays["encoder.1.weight"] /= 5
    arrays["encoder.1.bias"] = np.array([0.1, 0.5], dtype=np.float32)
    arrays["train"] = rng.random((500, PIXELS)) < 0.4
    arrays["test"] = rng.random((20, PIXELS)) < 0.4
    path = tmp_path_factory.mktemp("toy") / "toy.npz"
    np.savez(path, **arrays)
    return str(path)


def compute_bounds(job: Job) -> tuple[np.ndarray, np.ndarray]:
    """Return the ELBO of the training data and log p(x) of the test data by quadrature."""

    def mlp(layers, h):
        for weight, bias in layers[:-1]:
            h = np.tanh(h @ weight.T + bias)
        return h @ layers[-1][0].T + layers[-1][1]

    def joint(x, z):
        logits = mlp(job.data.decoder, z[..., None])
        log_likelihood = (x[:, None] * logits - np.logaddexp(0, logits)).sum(-1)
        return log_likelihood - z**2 / 2 - math.log(2 * math.pi) / 2

    grid = np.linspace(-9, 9, 4001)
    step = grid[1] - grid[0]
    loc, log_scale = mlp(job.data.encoder, job.data.train).T[..., None]
    density = np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi) * step
    entropy = 0.5 * math.log(2 * math.pi * math.e) + log_scale[:, 0]
    energy = joint(job.data.train, loc + np.exp(log_scale) * grid) @ density
    z = np.broadcast_to(grid, (len(job.data.test), len(grid)))
    evidence = np.log(np.exp(joint(job.data.test, z)).sum(1) * step)
    return energy + entropy, evidence


# rounds and statistics


def test_interleaving_rotates_the_contenders():
    order = []
    results = rounds.interleave(["a", "b", "c"], 4, lambda name: order.append(name) or len(order))
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert results == {"a": [1, 6, 8, 10], "b": [2, 4, 9, 11], "c": [3, 5, 7, 12]}


def test_ratios_are_computed_within_rounds():
    # the machine was ten times slower in the second round, and twice in the third
    summary = rounds.summarise_ratio([2.0, 30.0, 5.0], [4.0, 40.0, 8.0])
    assert summary == {"median": 0.625, "quartiles": [0.5625, 0.6875], "range": [0.5, 0.75]}
    # unlike the ratio of medians
    assert np.median([2, 30, 5]) / np.median([4, 40, 8]) == 0.625
    assert rounds.summarise_ratio([1, 30, 5], [4, 40, 2])["median"] == 0.75
    with pytest.raises(ValueError, match="zip"):
        rounds.summarise_ratio([1.0], [1.0, 2.0])


def test_ratios_are_named_after_their_pairs():
    seconds = {"ours": [1.0], "ours_eager": [3.0], "pyro": [4.0], "limit": [0.5]}
    ratios = rounds.summarise_ratios(seconds)
    assert {name: summary["median"] for name, summary in ratios.items()} == {
        "ours / ours_eager": 0.3333,
        "ours / pyro": 0.25,
        "ours / limit": 2.0,
        "ours_eager / pyro": 0.75,
    }


def test_deviating_losses_are_rejected():
    losses = {"a": [150.0, 120.0], "b": [151.0, 119.0], "c": [149.0, 121.0]}
    rounds.check_losses_agree(losses)
    for wrong in ([150.0, 150.0], [135.0, 105.0], [150.0, math.nan]):
        with pytest.raises(rounds.DisagreementError, match="expected the loss of 'd' in round"):
            rounds.check_losses_agree({**losses, "d": wrong})


def test_deviating_estimates_are_rejected():
    # seeded; false-alarm rate 1e-4
    rng = np.random.default_rng(0)
    rows = {n: [list(rng.normal(-90, 0.1, k)) for _ in range(7)] for n, k in (("a", 9), ("b", 4))}
    rows["c"] = [list(rng.normal(-90, 0.1, 4)) for _ in range(7)]
    rounds.check_estimates_agree(rows)
    rows["c"] = [[value + 0.3 for value in row] for row in rows["c"]]
    with pytest.raises(rounds.DisagreementError, match=r"expected the mean L_K of '.' on 4 images"):
        rounds.check_estimates_agree(rows)


def test_seconds_are_per_step_or_sample_and_the_limit_is_its_value():
    measured = harness.Measurements(
        counts={"ours": 10, "limit": 1},
        seconds={"ours": [5.0], "limit": [77.0]},
        steady={"ours": 1, "limit": 1},
        values={"ours": [[1.0]], "limit": [[0.25, 0.125, 0.0625, 0.0625]]},
        info={"ours": {"busy_seconds": 0.4, "wall_seconds": 9.0}, "limit": {}},
    )
    assert measured.seconds_per() == {"ours": [0.5], "limit": [0.25]}
    assert measured.seconds_per(100) == {"ours": [0.005], "limit": [0.25]}
    result = topics.make_result(harness.Harness(Path(), None, "cpu", 1), measured)
    assert result["limit"]["products"]["median"] == 0.125
    assert result["fraction_of_limit"]["median"] == 0.5
    assert result["ratios"]["ours / its kernels"]["median"] == 1.25
    assert result["utilisation"]["ours"]["median"] == 0.8


def test_find_fastest_returns_the_fastest_candidate():
    calls = []
    candidates = {"slow": lambda: sum(range(300_000)), "fast": lambda: calls.append(0)}
    assert find_fastest(candidates) == "fast"
    assert len(calls) == 2


def test_speedup_of_one_thread_is_one(toy):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        checks = [cores.plan_core_check(Job("step", toy))(1)() for _ in range(5)]
    finally:
        torch.set_num_threads(threads)
    speedups, rates = zip(*checks, strict=True)
    assert 0.7 < np.median(speedups) < 1.4
    # bytes per second: faster than any disk, slower than registers
    assert 1e8 < 4 * 2**20 * np.median(rates) < 1e12


# equal work


def test_minibatches_are_reproducible_and_cover_all_data(toy):
    job = Job("step", toy, batch=8)
    first, second = job.make_minibatch_sampler(), job.make_minibatch_sampler()
    rows = first(125)
    np.testing.assert_array_equal(rows, np.concatenate([second(n) for n in (3, 60, 62)]))
    assert rows.shape == (125, 8)
    assert [(*np.sort(half),) for half in np.split(rows.ravel(), 2)] == [(*range(500),)] * 2


def check_losses(run_step, elbo: np.ndarray) -> None:
    """Check that losses at learning rate zero average to −ELBO; the false-alarm rate is 6e-7."""
    losses = np.array([run_step() for _ in range(60)])
    assert abs(losses.mean() + elbo.mean()) < 5 * losses.std(ddof=1) / math.sqrt(len(losses))


@pytest.mark.parametrize("name", LOCAL)
def test_loss_is_negative_elbo(name, toy):
    job = Job("step", toy, batch=50, learning_rate=0.0)
    elbo, _ = compute_bounds(job)
    plan = LOCAL[name].TASKS["step"](job)
    check_losses(lambda: plan(1)()[0], elbo)


@pytest.mark.parametrize("module", TRAINING_PEERS)
def test_loss_of_peers_is_negative_elbo(module, toy):
    job = Job("step", toy, batch=50, learning_rate=0.0)
    elbo, _ = compute_bounds(job)
    with Worker(module, bench.PEER_PYTHON, module, job, 1) as worker:
        check_losses(lambda: worker.ask(run=1)["values"][0], elbo)


def train(run) -> list[float]:
    """Return the mean losses of six rounds of fifty steps."""
    return [run(50)[0] for _ in range(6)]


def test_all_contenders_train_alike(toy):
    job = Job("step", toy, batch=50, learning_rate=0.01)
    elbo, _ = compute_bounds(job)
    losses = {}
    for name, module in LOCAL.items():
        plan = module.TASKS["step"](job)
        losses[name] = train(lambda count, plan=plan: plan(count)())
    if bench.PEER_PYTHON.exists():
        for (module,) in (peer.values for peer in TRAINING_PEERS):
            with Worker(module, bench.PEER_PYTHON, module, job, 1) as worker:
                losses[module] = train(lambda count: worker.ask(run=count)["values"])
    rounds.check_losses_agree(losses)
    for name, values in losses.items():
        assert values[-1] < -elbo.mean() - 0.3, name


@pytest.mark.parametrize("name", ["ours", "pyro"])
def test_iwae_loss_with_many_samples_is_negative_log_evidence(name, toy):
    job = Job("iwae", toy, batch=100, num_samples=500, learning_rate=0.0)
    plan = LOCAL[name].TASKS["iwae"](job)
    loss = np.mean([plan(1)()[0] for _ in range(20)])
    # the bias and the noise of four passes are about 0.001; L_50 would be off by 0.02
    job.data.test = job.data.train
    _, evidence = compute_bounds(job)
    assert loss == pytest.approx(-evidence.mean(), abs=0.008)


@pytest.mark.parametrize("name", ["ours", "pyro", "evaluate"])
def test_estimate_is_log_evidence(name, toy):
    job = Job("evaluation", toy, num_samples=20_000)
    _, evidence = compute_bounds(job)
    tasks = LOCAL.get(name, ours).TASKS
    plan = tasks["evaluate" if name == "evaluate" else "evaluation"](job)
    np.testing.assert_allclose(plan(8)(), evidence[:8], atol=0.05)


@pytest.mark.parametrize("module", EVALUATION_PEERS)
def test_estimate_of_peers_is_log_evidence(module, toy):
    job = Job("evaluation", toy, num_samples=20_000)
    _, evidence = compute_bounds(job)
    with Worker(module, bench.PEER_PYTHON, module, job, 1) as worker:
        np.testing.assert_allclose(worker.ask(run=8)["values"], evidence[:8], atol=0.05)


# worker processes

FAKE = """
import os, sys
import numpy as np
PACKAGES = ("numpy",)

def good(job):
    arrays = []
    def plan(count):
        def run():
            print("output of a library")
            if job.batch == 64:
                arrays.append(np.ones(64 * 2**17))
            return [count * 2.0]
        return run
    return plan

def dying(job):
    def run():
        print("out of memory", file=sys.stderr, flush=True)
        os._exit(7)
    return lambda count: run

def wrong(job):
    raise ValueError("expected something;\\n got nothing")

TASKS = {"good": good, "dying": dying, "wrong": wrong}
"""


@pytest.fixture
def fake(tmp_path, monkeypatch, toy):
    (tmp_path / "fake.py").write_text(FAKE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def start(task: str, python: str = sys.executable, module: str = "fake", **options) -> Worker:
        return Worker("peer", Path(python), module, Job(task, toy, **options), 1)

    return start


def test_worker_returns_times_values_and_memory(fake):
    with fake("good", batch=64) as worker:
        assert worker.versions == {"numpy": np.__version__}
        before = worker.ask(memory=True)["above_mib"]
        answer = worker.ask(run=21)
        assert answer["values"] == [42.0] and answer["seconds"] > 0
        if before is not None:
            assert worker.ask(memory=True)["above_mib"] - before == pytest.approx(64, abs=3)


def test_planning_and_warming_up_are_not_timed(monkeypatch):
    clock = [0.0]
    fake = SimpleNamespace(perf_counter=lambda: clock[0], process_time=lambda: clock[0] / 2)
    monkeypatch.setattr(worker, "time", fake)

    def plan(count):
        clock[0] += 100.0

        def run():
            clock[0] += count
            return [count * 2.0]

        return run

    request = {"run": 21, "warm": 5}
    answer = worker.handle_request(request, plan, worker.PeakMemory())
    assert answer == {"seconds": 21.0, "cpu_seconds": 10.5, "values": [42.0]}


def test_exit_of_a_worker_is_reported_in_one_sentence(fake):
    with (
        fake("dying") as worker,
        pytest.raises(
            WorkerError,
            match=r"^expected the contender 'peer' to answer; got exit status 7 after the output "
            r"'out of memory'$",
        ),
    ):
        worker.ask(run=1)


def test_errors_in_a_worker_are_reported_in_one_sentence(fake):
    message = "^expected the contender 'peer' to answer; got ValueError: expected something; got no"
    with pytest.raises(WorkerError, match=message):
        fake("wrong")
    with pytest.raises(WorkerError, match="No module named 'nowhere'"):
        fake("good", module="nowhere")
    with pytest.raises(WorkerError, match=r"create the peers' environment with make bench-peers$"):
        fake("good", python="/nowhere/python")


def test_overlapping_kernels_count_once():
    assert busy.union_length([]) == 0
    assert busy.union_length([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 1.75)]) == 4.0


def test_profiler_records_operators():
    x = torch.ones(200, 200)
    profile = busy.profile_run(lambda: [float((x @ x).sum()) for _ in range(20)])
    assert 0 < profile["busy_seconds"] <= profile["wall_seconds"]


def test_worker_can_be_profiled(toy):
    with Worker("ours", Path(sys.executable), "ours", Job("step", toy), 1) as worker:
        profile = worker.ask(profile=5)
    assert 0 < profile["busy_seconds"] <= profile["wall_seconds"]


def test_contenders_are_interleaved_and_profiled_on_a_gpu(tmp_path, monkeypatch):
    requests = []

    class FakeWorker:
        def __init__(self, name, python, module, job, threads):
            self.name, self.seconds = name, 1.5
            self.versions = {"jax": "1"} if module == "jax" else {"torch": "2"}
            assert (job.device, job.compiled, threads) == ("cuda", name == "ours", 2)
            assert str(python) == ("peers" if module == "jax" else sys.executable)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            requests.append((self.name, "end"))

        def ask(self, **request):
            requests.append((self.name, next(iter(request))))
            answers = {
                "run": {"seconds": 2.0, "values": [float(len(requests))]},
                "memory": {"above_mib": 8.0},
                "profile": {"busy_seconds": 3.0, "wall_seconds": 6.0},
            }
            return next(answers[kind] for kind in request)

    monkeypatch.setattr(harness, "Worker", FakeWorker)
    runner = harness.Harness(tmp_path, Path("peers"), "cuda", 2)
    contenders = [
        harness.Contender("ours", "ours", 6, options={"compiled": True}),
        harness.Contender("jax", "jax", 3, needs_peers=True),
        harness.Contender("limit", "limits", 1),
    ]
    measured = runner.measure(contenders, Job("step", "nowhere"), 2)
    order = [name for name, kind in requests if kind == "run"]
    # the first round is not counted
    assert order == ["ours", "jax", "limit"] * 2 + ["jax", "limit", "ours"]
    assert measured.values == {"ours": [[4], [9]], "jax": [[5], [7]], "limit": [[6], [8]]}
    assert measured.seconds_per()["ours"] == [2 / 6] * 2
    assert measured.info["ours"]["busy_seconds"] == 0.5
    assert ["profile" in str(request) for request in requests].count(True) == 1
    # contenders from the peers' environment are left out if it is missing
    requests.clear()
    runner = harness.Harness(tmp_path, None, "cuda", 2)
    assert {*runner.measure(contenders, Job("step", "nowhere"), 1).info} == {"ours", "limit"}


# the limit


def test_limit_counts_every_matrix_product(monkeypatch, tmp_path):
    monkeypatch.setattr(limits, "time_matmul", lambda n, k, m, device: 2.0 * n * k * m)
    monkeypatch.setattr(limits, "time_elementwise", lambda kernels, size, device: 1.0)
    monkeypatch.setattr(limits, "time_add_per_byte", lambda size, device: 1.0)
    path = str(harness.Harness(tmp_path, None, "cpu", 1).problem((200, 200), 50))
    total, products, elements, memory = limits.plan_step(Job("step", path, batch=20))(1)()
    layers = [(784, 200), (200, 200), (200, 100), (50, 200), (200, 200), (200, 784)]
    # one forward and two backward products, except for the gradient of the data
    assert products == 2 * 20 * (3 * sum(a * b for a, b in layers) - 784 * 200)
    assert elements == 20 * (2 * 784 + 2 * 400)
    parameters = sum((a + 1) * b for a, b in layers)
    assert memory == 4 * (7 * parameters + 2 * 20 * 784)
    assert total == products + elements + memory
    _, products, elements, _ = limits.plan_evaluation(Job("evaluation", path, num_samples=9))(1)()
    assert products == 2 * (50 * 200 + 200 * 200 + 200 * 784)
    assert elements == 400 + 784


def test_limit_uses_float32_products_only():
    a, b = torch.randn(64, 300), torch.randn(300, 50)
    assert "highest" in limits.float32_precisions(a, b)
    before = torch.get_float32_matmul_precision()
    assert limits.time_matmul(64, 300, 50, "cpu") > 0
    assert torch.get_float32_matmul_precision() == before


# topics


class LocalWorker:
    """A contender in this process, which answers as its worker process does."""

    def __init__(self, name, python, module, job, threads):
        self.versions, self.seconds = {"torch": torch.__version__}, 0.0
        self.plan, self.memory = import_module(module).TASKS[job.task](job), worker.PeakMemory()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def ask(self, **request):
        return worker.handle_request(request, self.plan, self.memory)


def test_quick_run_of_step_and_evaluation(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "Worker", LocalWorker)
    args = ["--quick", "--threads", "1", "--results", str(tmp_path)]
    assert bench.main([*args, "--only", "step", "evaluation"]) == 0
    results = table.read_results(tmp_path)
    assert {*results} == {"step", "evaluation"}
    step = results["step"]
    assert step["threads"] == 1
    assert {*step["ratios"]} == {"ours / pyro", "ours / torch", "ours / limit"}
    for name, info in step["contenders"].items():
        assert info["versions"]["torch"] == torch.__version__
        assert len(step["losses"].get(name, [0] * 3)) == step["rounds"] == 3
    # the limit is a lower bound
    assert step["limit"]["all"]["range"][0] < step["seconds"]["ours"]["median"]
    rows = {row[0]: row for row in table.format_rows(table.CPU_METRICS, results)}
    assert sum(row[-1] == "not measured" for row in rows.values()) == 6


def test_import_times_are_interleaved(tmp_path, monkeypatch):
    calls = []

    def fake_run_timed(harness, command, cache=None):
        calls.append((command[-1], cache))
        return 3.0 if "pyro_vae" in str(command) else 2.0

    monkeypatch.setattr(topics, "_run_timed", fake_run_timed)
    result = topics.measure_import_time(harness.Harness(tmp_path, None, "cpu", 1, quick=True))
    assert result["ratios"]["ours / torch_and_pyro"]["median"] == 1.5
    imports = ["pyro_vae" in code for code, _ in calls if code.startswith("import time")]
    assert imports == [True, False] * 2 + [False, True]
    caches = [cache for code, cache in calls if '"compiled": true' in code]
    assert len({*caches}) == 2  # a warm cache, used twice, and a cold one


def test_time_to_first_step_includes_imports(tmp_path, toy):
    runner = harness.Harness(tmp_path, None, "cpu", 1, quick=True)
    script = FOLDER / "startup.py"
    command = [sys.executable, script, "peers.plain_torch", Job("step", toy).dumps()]
    seconds = topics._run_timed(runner, command)
    assert seconds > 0.1
    with pytest.raises(WorkerError, match="No module named 'nowhere'"):
        topics._run_timed(runner, [sys.executable, script, "nowhere", Job("step", toy).dumps()])


def test_scaling_measures_every_axis(tmp_path, monkeypatch):
    def fake_measure(self, contenders, job, rounds):
        names = [c.name for c in contenders]
        return harness.Measurements(
            counts={c.name: c.count for c in contenders},
            seconds={c.name: [c.count * (2.0 if c.name == "pyro" else 1.0)] for c in contenders},
            steady=dict.fromkeys(names, 1),
            values={name: [[0.0]] for name in names},
            info={name: {"above_mib": 1.0} for name in names},
        )

    monkeypatch.setattr(harness.Harness, "measure", fake_measure)
    rows = scaling.measure_scaling(harness.Harness(tmp_path, None, "cpu", 1, quick=True))["rows"]
    axes = ["batch", "latent_dim", "IWAE k", "L_K: K", "L_500: images"]
    assert [row["axis"] for row in rows] == axes
    assert [row["value"] for row in rows] == [16, 2, 1, 50, 10]
    assert all(row["ratios"]["ours / pyro"]["median"] == 0.5 for row in rows)
    # evaluations are measured per sample
    assert [row["seconds"]["ours"]["median"] for row in rows] == [1, 1, 1, 1 / 50, 1 / 500]


@pytest.mark.skipif(torch.cuda.is_available(), reason="requires a machine without a GPU")
def test_missing_gpu_is_reported_in_one_sentence(capsys):
    assert bench.main(["--device", "cuda", "--check"]) == 1
    assert capsys.readouterr().err == (
        "expected a CUDA device for --device cuda; torch finds none: run make bench to measure the "
        "CPU\n"
    )


def test_quick_run_requires_a_results_folder(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--quick", "--only", "step"])
    message = (
        "expected --results FOLDER with --quick; got none: quick results must not replace those in "
        "results/\n"
    )
    assert capsys.readouterr().err.endswith(message)


def test_failure_of_a_contender_is_reported(tmp_path, monkeypatch, capsys):
    def fail(harness):
        raise WorkerError("expected the contender 'pyro' to answer; got silence")

    monkeypatch.setitem(bench.TOPICS, "step", fail)
    monkeypatch.setattr("os.getloadavg", lambda: (0.1, 0.1, 0.1))
    assert bench.main(["--quick", "--only", "step", "--results", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        "step: expected the contender 'pyro' to answer; got silence\n"
    )
    assert not list(tmp_path.iterdir())


def test_busy_machine_is_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(bench.TOPICS, "step", lambda harness: {"what": "nothing"})
    monkeypatch.setattr("os.getloadavg", lambda: (1.7, 0.1, 0.1))
    assert bench.main(["--quick", "--only", "step", "--results", str(tmp_path)]) == 0
    assert capsys.readouterr().err == (
        "expected an idle machine; got a load of 1.7: stop other processes\n"
    )
    assert table.read_results(tmp_path)["step"]["load_before"] == 1.7
