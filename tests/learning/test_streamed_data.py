"""Training from containers: the same bits as from a tensor."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from scipy import sparse
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import pyro_vae as pv
from pyro_vae.core import distributed
from pyro_vae.data import Split, containers
from pyro_vae.data.containers import Container
from pyro_vae.learning import svi
from pyro_vae.learning.batches import BatchLoader, ValidationData
from pyro_vae.learning.trainer import validation_elbo

X = (torch.rand(20, 6, generator=torch.Generator().manual_seed(0)) > 0.5).float()
Y = torch.arange(20) % 3


class Items(Dataset):
    """Pairs of an example and its class, with noise if ``scale`` is positive."""

    def __init__(self, x=X, scale=0.0):
        self.x, self.scale = x, scale

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        if not self.scale:  # random numbers of a data set would change those of training
            return self.x[i], int(Y[i])
        noise = self.scale * (torch.rand(6) + random.random() + np.random.rand())
        return self.x[i] + noise, int(Y[i])


class Iterated(IterableDataset):
    def __iter__(self):
        yield from X


@pytest.fixture(autouse=True)
def _nothing_resident(monkeypatch):
    monkeypatch.setattr(containers, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(containers, "_BLOCK_BYTES", 8 * 6 * 4)


def memory_map(path, x=X):
    stored = np.memmap(path, mode="w+", dtype=x.numpy().dtype, shape=tuple(x.shape))
    stored[:] = x.numpy()
    stored.flush()
    return stored


def network(in_shape, out_shape):
    return pv.networks.MLP(in_shape, out_shape, hidden=(5,))


def train(data, program=pv.VAE, dtype=torch.float32, **options):
    """Return the weights after training, flat, and the history."""
    torch.manual_seed(0)
    classes = (3,) if program is pv.ConditionalVAE else ()
    vae = program((6,), *classes, 2, encoder=network, decoder=network).to(dtype)
    history = pv.fit(vae, data, **{"epochs": 2, "batch_size": 8, "compile": False} | options)
    weights = torch.cat([p.flatten() for p in vae.parameters()])
    return weights, history["elbo"] + (history["valid_elbo"] if "valid" in options else [])


STREAMS = {
    "memory map": lambda path: memory_map(path),
    "sparse": lambda path: sparse.csr_matrix(X.numpy()),
    "data set": lambda path: Items(),
    "loader": lambda path: DataLoader(Items(), batch_size=8, shuffle=True),
    "workers": lambda path: DataLoader(Items(), batch_size=8, shuffle=True, num_workers=1),
}


@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
def test_a_stream_trains_as_a_tensor(make, tmp_path):
    weights, elbo = train(X, valid=X[:9])
    stream = make(tmp_path / "x")
    assert isinstance(pv.data.as_split(stream).values, Container)
    same, elbo_of_stream = train(stream, valid=X[:9])
    assert torch.equal(same, weights) and elbo_of_stream == elbo


@pytest.mark.parametrize("options", [{"dynamic": True, "peak": 4}, {"peak": 4}])
def test_transforms_and_labels_of_a_stream(options, tmp_path):
    x = (4 * X).to(torch.uint8)
    resident = Split(x, labels=Y, **options)
    stream = Split(memory_map(tmp_path / "x", x), labels=Y, **options)
    assert isinstance(stream.values, Container)
    expected, elbo = train(resident, pv.ConditionalVAE, valid=resident)
    weights, elbo_of_stream = train(stream, pv.ConditionalVAE, valid=resident)
    assert torch.equal(weights, expected) and elbo == elbo_of_stream
    # a data set has its labels in its items
    if "dynamic" not in options:
        assert torch.equal(train(Items(), pv.ConditionalVAE)[0], expected)


def test_resumes_from_a_tensor_with_a_stream(tmp_path):
    expected, _ = train(X)
    train(X, epochs=1, checkpoint=tmp_path / "c")
    stream = memory_map(tmp_path / "x")
    assert torch.equal(train(stream, checkpoint=tmp_path / "c", resume=True)[0], expected)
    with pytest.raises(ValueError, match="belongs to a fit with another data"):
        train(sparse.csr_matrix(1 - X.numpy()), checkpoint=tmp_path / "c", resume=True)


def test_traced_steps_of_a_stream(tmp_path, monkeypatch):
    # the traced graph, without TorchInductor, which takes a minute
    monkeypatch.setattr(svi, "compile_graph", lambda graph, inputs: graph)
    weights, _ = train(memory_map(tmp_path / "x"), compile=True)
    torch.testing.assert_close(weights, train(X)[0])


@pytest.mark.parametrize("workers", [0, 1])
def test_random_items_are_reproducible(workers, tmp_path):
    # also when the run is interrupted
    def load():
        return DataLoader(Items(X / 2, 0.1), batch_size=8, shuffle=True, num_workers=workers)

    options = {"likelihood": pv.likelihoods.Gaussian}

    def program(*args, **more):
        return pv.VAE(*args, **options, **more)

    expected, _ = train(load(), program)
    train(load(), program, epochs=1, checkpoint=tmp_path / "c")
    resumed, _ = train(load(), program, checkpoint=tmp_path / "c", resume=True)
    assert torch.equal(resumed, expected)
    assert not torch.equal(train(X / 2, program)[0], expected)


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_read_their_shard(rank, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    program = pv.VAE((6,), 2, encoder=network, decoder=network)
    shards = []
    for data in (X, Split(memory_map(tmp_path / "x")), Split(Iterated())):
        torch.manual_seed(0)
        batches = BatchLoader(program, data, 8)
        parts = [(b.index, batches.make_args(b.labelled, *b.source)) for b in batches.iter_epoch()]
        assert all(torch.equal(x, X[index]) for index, (x,) in parts)
        shards.append([index.tolist() for index, _ in parts])
    assert shards[0] == shards[1]
    # an iterable data set keeps its order
    assert shards[2][0] == [4 * rank + i for i in range(4)]


def test_validation_data_of_a_stream():
    vae = pv.VAE((6,), 2, encoder=network, decoder=network)
    # the posterior and the prior are the same, and the decoder ignores z: no noise
    for parameter in vae.parameters():
        torch.nn.init.zeros_(parameter)
    for data in (X, Split(sparse.csr_matrix(X.numpy()))):
        valid = ValidationData(vae, data, 0, torch.device("cpu"))
        assert validation_elbo(vae, valid, 0) == pytest.approx(-6 * np.log(2))
        assert len(valid.head(9)) == 9 and len(list(valid.head(9).iter_args())) <= 2


class TestOrder:
    """Orders of the minibatches of a ``DataLoader`` and of an iterable data set."""

    def orders(self, data, **options):
        seen = []

        class Recorder(pv.VAE):
            def model(self, x=None, size=1):
                if self.training and x is not None:
                    seen.append(x[:, 0].tolist())
                return super().model(x, size)

        torch.manual_seed(0)
        vae = Recorder(
            (1,), 2, likelihood=pv.likelihoods.Gaussian, encoder=network, decoder=network
        )
        pv.fit(vae, data, epochs=2, compile=False, **options)
        return seen

    def test_consecutive(self):
        x = TensorDataset(torch.arange(10.0)[:, None])
        batches = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        assert self.orders(DataLoader(x, batch_size=4))[-6:] == 2 * batches
        last = self.orders(DataLoader(x, batch_size=4, drop_last=True))
        assert last[-4:] == 2 * batches[:2]
        with pytest.raises(ValueError, match="batch_size only once; got 5 and a DataLoader with"):
            self.orders(DataLoader(x, batch_size=4), batch_size=5)

    def test_iterable(self):
        class Numbers(IterableDataset):
            def __iter__(self):
                yield from torch.arange(10.0)[:, None]

        batches = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        assert self.orders(Numbers(), batch_size=4)[-6:] == 2 * batches
        assert self.orders(DataLoader(Numbers(), batch_size=4))[-6:] == 2 * batches


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_dtype_follows_the_program(dtype):
    x = X.double()
    expected, elbo = train(x.to(dtype), dtype=dtype, epochs=1)
    for data in (Split(x), x.numpy(), Items(x)):
        weights, elbo_of_data = train(data, dtype=dtype, epochs=1)
        assert weights.dtype == dtype
        assert torch.equal(weights, expected) and elbo_of_data == elbo


def test_partial_labels_need_all_examples():
    program = pv.SemiSupervisedVAE((6,), 2, 3, encoder=network, decoder=network)
    with pytest.raises(ValueError, match="trained on shuffled minibatches of all examples; got a"):
        pv.fit(program, DataLoader(Items(), batch_size=8), epochs=1)


def test_initialises_from_random_examples_of_a_stream(monkeypatch):
    from pyro_vae.learning import training

    monkeypatch.setattr(training, "_INITIALIZATION_BYTES", 20 * 6 * 4)
    x = torch.arange(50.0)[:, None].expand(50, 6).contiguous()
    sample, total = training._sample_for_initialization(
        pv.VAE((6,), 2), Split(sparse.csr_matrix(x.numpy())), seed=0
    )
    assert sample.shape == (20, 6) and total == 50
    assert len(sample[:, 0].unique()) == 20 and sample[:, 0].tolist() != list(range(20))
    bayesian = pv.BayesianVAE((6,), 2, encoder=network, decoder=network)
    pv.initialize(bayesian, sample, total)
    assert int(bayesian.num_data) == 50


class Pairs(IterableDataset):
    """Pairs of an example and its class, in another order in later passes if it is shuffled."""

    def __init__(self, is_shuffled=False):
        self.is_shuffled, self.passes = is_shuffled, 0

    def __iter__(self):
        self.passes += 1
        step = -1 if self.is_shuffled and self.passes > 2 else 1
        yield from zip(X[range(20)[::step]], Y[range(20)[::step]].tolist(), strict=True)


def test_labels_of_an_iterable_data_set():
    in_order = DataLoader(TensorDataset(X, Y), batch_size=8)
    expected = train(in_order, pv.ConditionalVAE)
    weights, elbo = train(Pairs(), pv.ConditionalVAE)
    assert torch.equal(weights, expected[0]) and elbo == expected[1]
    vae = pv.ConditionalVAE((6,), 3, 2, encoder=network, decoder=network)
    bounds, known = (pv.evaluate(vae, d, num_samples=5) for d in (Pairs(), Items()))
    assert bounds.elbo == known.elbo
    # the order does not matter to programs without labels
    train(Pairs(is_shuffled=True))
    with pytest.raises(ValueError, match=r"same order in every pass, .*; got another label for it"):
        train(Pairs(is_shuffled=True), pv.ConditionalVAE)
    program = pv.SemiSupervisedVAE((6,), 2, 3, encoder=network, decoder=network)
    with pytest.raises(ValueError, match="got an iterable data set, which is read in its order"):
        pv.fit(program, Pairs(), epochs=1)
    with pytest.raises(ValueError, match=r"labels of an iterable data set in its items, .* got an"):
        pv.data.as_split(Iterated(), labels=Y)
