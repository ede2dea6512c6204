"""CUDA graph capture of training steps, with a fake CUDA graph on the CPU."""

from __future__ import annotations

import logging
from contextlib import contextmanager, nullcontext

import pytest
import torch

from pyro_vae.learning.cuda_graph import CudaGraph, enable_capturable


class Stream:
    def __init__(self, device=None):
        pass

    def wait_stream(self, other):
        pass


class Graph:
    """Fake CUDA graph whose replay calls the recorded function."""

    replays = 0

    def replay(self):
        Graph.replays += 1
        STATE["captured"]._output.copy_(function(*STATE["captured"]._inputs))


STATE: dict = {}


def function(x):
    STATE["calls"] = STATE.get("calls", 0) + 1
    return (2 * x).sum()


@pytest.fixture(autouse=True)
def fake_cuda(monkeypatch):
    STATE.clear()
    Graph.replays = 0

    @contextmanager
    def record(graph, stream):
        yield

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", record)


def test_replays_with_new_inputs_after_warm_up():
    STATE["captured"] = captured = CudaGraph(function, [torch.zeros(3)])
    results = [captured(torch.full((3,), float(i))) for i in range(6)]
    # every result is a separate tensor that later replays do not overwrite
    assert [float(r) for r in results] == [6.0 * i for i in range(6)]
    assert Graph.replays == 3


def test_runs_eagerly_if_capture_fails(monkeypatch, caplog):
    @contextmanager
    def fail(graph, stream):
        yield
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(torch.cuda, "graph", fail)
    captured = CudaGraph(function, [torch.zeros(3)])
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        results = [float(captured(torch.full((3,), float(i)))) for i in range(6)]
    assert results == [6.0 * i for i in range(6)] and Graph.replays == 0
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "steps are not captured as a CUDA graph: operation not permitted when stream is capturing"
    ]


def test_schedules_update_a_capturable_learning_rate_in_place():
    weight = torch.nn.Parameter(torch.ones(2))
    adam, sgd = torch.optim.Adam([weight], lr=0.1), torch.optim.SGD([weight], lr=0.1)
    for optimizer in (adam, sgd):
        enable_capturable(optimizer)
    (group,) = adam.param_groups
    lr = group["lr"]
    assert group["capturable"] and torch.is_tensor(lr) and sgd.param_groups[0]["lr"] == 0.1
    schedule = torch.optim.lr_scheduler.StepLR(adam, 1, gamma=0.5)
    weight.grad = torch.zeros(2)
    adam.param_groups[0]["capturable"] = False  # no GPU to step on
    adam.step()
    schedule.step()
    assert group["lr"] is lr and float(lr) == pytest.approx(0.05)
