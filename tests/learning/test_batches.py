"""Minibatches with labels, and objectives that step more than once with each of them."""

from __future__ import annotations

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, pyro_method
from torch import nn

import pyro_vae as pv
from pyro_vae.core.components import Labels
from pyro_vae.data import Split
from pyro_vae.learning import checkpoint
from pyro_vae.learning.batches import Batches
from pyro_vae.learning.checkpoint import CheckpointError
from pyro_vae.learning.objectives import ELBO

STILL = partial(torch.optim.SGD, lr=0.0)


class Shifted(PyroModule):
    """z ~ N(0, 1), x ~ N(z + w c, 1), with the exact posterior: log p(x|c) = log N(x; w c, √2)."""

    labels = Labels.CONDITION

    def __init__(self, w=0.0):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w))

    @pyro_method
    def model(self, x, c):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + self.w * c, 1.0), obs=x)

    @pyro_method
    def guide(self, x, c):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x - self.w * c) / 2, math.sqrt(0.5)))


class Partial(PyroModule):
    """Notes what it is called with; its data are their own numbers."""

    labels = Labels.PARTIAL

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(()))
        self.calls = []

    @pyro_method
    def model(self, x, y=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            shift = 0.0 if y is None else y.to(x.dtype)
            pyro.sample("x", dist.Normal(z + shift, 100.0), obs=x)

    @pyro_method
    def guide(self, x, y=None):
        if self.training:
            self.calls.append((x.tolist(), None if y is None else y.tolist()))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, 1.0))


def some_labels(size=50, every=5):
    """Data 0, 1, 2, …, of which every so-manieth is labelled with itself times ten."""
    x = torch.arange(float(size))
    labels = torch.where(x % every == 0, 10 * x, -1.0).long()
    return Split(x, labels=labels)


def plain(value=1):
    """Pyro's estimator without a look at the program beforehand, so that calls are steps."""
    return ELBO(analytic_kl=False, num_particles=value)


def fitted(program, data, **arguments):
    history = pv.fit(program, data, **{"optimizer": STILL, "epochs": 1, **arguments})
    return history, program


def test_what_it_conditions_on_comes_with_the_data():
    torch.manual_seed(0)
    c = torch.randn(400)
    x = 3.0 * c + math.sqrt(2) * torch.randn(400)
    data = Split(x, labels=c)
    rate = partial(torch.optim.Adam, lr=0.1)
    history, program = fitted(
        Shifted(), data, valid=data.head(100), epochs=30, batch_size=50, optimizer=rate
    )
    # least squares is the maximum of likelihood; its estimate wanders with the minibatches
    best = float((x * c).sum() / (c * c).sum())
    assert program.w.item() == pytest.approx(best, abs=0.15)
    truth = dist.Normal(program.w.detach() * c, math.sqrt(2)).log_prob(x).double()
    # the guide is the posterior, so that every weight is the evidence itself
    assert history["valid_elbo"][-1] == pytest.approx(float(truth[:100].mean()), abs=1e-4)
    for bounds in (
        pv.evaluate(program, data, num_samples=3),
        pv.evaluate(program, x, c, num_samples=3),
        pv.evaluate(program, Split(x), c=c, num_samples=3),
        # what the caller gives counts
        pv.evaluate(program, Split(x, labels=-c), c, num_samples=3),
    ):
        log_evidence = torch.tensor(bounds.per_datum["log_evidence"])
        torch.testing.assert_close(log_evidence, truth, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("data", "missing", "remedy"),
    [
        (torch.zeros(6), 6, r"give pv\.data\.Split\(x, labels=c\)"),
        (Split(torch.zeros(6)), 6, r"give pv\.data\.Split\(x, labels=c\)"),
        (
            Split(torch.zeros(6), labels=torch.tensor([0, 1, -1, 1, -1, 0])),
            2,
            r"leave these out, and data\.labelled at null",
        ),
    ],
)
def test_labels_that_are_missing(data, missing, remedy):
    message = (
        rf"expected a label for every datum, which Shifted conditions on; got {missing} of 6 "
        rf"without: {remedy}"
    )
    whole = Split(torch.zeros(6), labels=torch.zeros(6))
    with pytest.raises(ValueError, match=message):
        pv.fit(Shifted(), data, epochs=1)
    with pytest.raises(ValueError, match=message):
        pv.fit(Shifted(), whole, valid=data, epochs=1)
    with pytest.raises(ValueError, match=message):
        pv.evaluate(Shifted(), data, num_samples=2)


def test_no_minibatch_is_mixed_and_every_datum_comes_once():
    data = some_labels()
    history, program = fitted(Partial(), data, epochs=3, batch_size=4, objective=plain())
    # ten labelled data and forty others
    assert history["step"] == [13, 26, 39]
    assert len(program.calls) == 39
    kinds = []
    for epoch in range(3):
        calls = program.calls[13 * epoch : 13 * (epoch + 1)]
        assert sorted(i for x, _ in calls for i in x) == list(range(50))
        for x, y in calls:
            assert y == ([10 * i for i in x] if x[0] % 5 == 0 else None)
            assert y is not None or all(i % 5 for i in x)
        kinds.append([y is None for _, y in calls])
    # shuffled, and each epoch in its own way
    assert sorted(kinds[0]) not in kinds and kinds[0] != kinds[1]


def test_so_many_unlabelled_minibatches_for_each_labelled_one():
    data = some_labels(50, every=10)  # five with labels, forty-five without
    history, program = fitted(
        Partial(), data, epochs=2, batch_size=3, labelled_every=2, objective=plain()
    )
    # fifteen minibatches without labels, and one with after every second of them
    assert history["step"] == [22, 44] and len(program.calls) == 44
    for epoch in (program.calls[:22], program.calls[22:]):
        assert [y is not None for _, y in epoch] == [(i % 3) == 2 for i in range(22)]
        assert sorted(i for x, y in epoch if y is None for i in x) == [
            i for i in range(50) if i % 10
        ]
        labelled = [x for x, y in epoch if y is not None]
        assert [len(x) for x in labelled] == [3, 2, 3, 2, 3, 2, 3]
        passes = [sorted(a + b) for a, b in zip(labelled[::2], labelled[1::2], strict=False)]
        assert passes == [[0, 10, 20, 30, 40]] * 3
        assert len({tuple(x) for x in labelled}) > 3  # in new orders


@pytest.mark.parametrize("labels", [None, torch.full((50,), -1), torch.arange(50)])
def test_all_labelled_or_none(labels):
    history, program = fitted(
        Partial(), Split(torch.arange(50.0), labels=labels), batch_size=20, objective=plain()
    )
    assert history["step"] == [3]
    known = labels is not None and bool((labels >= 0).all())
    assert all((y is not None) == known for _, y in program.calls)
    assert sorted(i for x, _ in program.calls for i in x) == list(range(50))


def test_metrics_are_per_datum_seen():
    """At a rate of 0 the epoch's mean is the mean over its calls, by the closed form."""
    data = some_labels(50, every=10)
    history, program = fitted(
        Partial(), data, batch_size=3, labelled_every=1, objective=plain(2000)
    )
    # z ~ N(0, 1) in both, so the KL is 0 and E (x − z − y)² = (x − y)² + 1
    terms = []
    for x, y in program.calls:
        for i, value in enumerate(x):
            rest = value - (0 if y is None else y[i])
            terms.append(-0.5 * (rest**2 + 1) / 1e4 - math.log(100) - 0.5 * math.log(2 * math.pi))
    expected = sum(terms) / len(terms)
    # the noise of a term is at most 360 / 1e4 / √2000; that of their mean far below
    assert history["elbo"][0] == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize(
    ("program", "data", "message"),
    [
        (Partial, torch.zeros(6), "expected some data with labels .*; got 0 of 6 with labels"),
        (
            Partial,
            Split(torch.zeros(6), labels=torch.zeros(6).long()),
            "expected some data with labels and some without .*; got 6 of 6 with labels: leave it",
        ),
        (
            Shifted,
            Split(torch.zeros(6), labels=torch.zeros(6)),
            "expected labelled_every only for a program that learns with and without .* Shifted",
        ),
    ],
)
def test_labelled_every_needs_both(program, data, message):
    with pytest.raises(ValueError, match=message):
        pv.fit(program(), data, labelled_every=2)
    with pytest.raises(ValueError, match="expected labelled_every to be a positive integer; got 0"):
        pv.fit(program(), data, labelled_every=0)


def test_labelled_every_so_rarely_that_no_label_would_be_seen():
    data = Split(torch.zeros(12), labels=torch.tensor([-1] * 9 + [0] * 3))
    # 9 without labels make 3 minibatches of 4, the last a small one
    with pytest.raises(ValueError, match=r"to be at most 3, the minibatches .*; got 4"):
        Batches(Partial(), data, 4, labelled_every=4)
    batches = Batches(Partial(), data, 4, labelled_every=3)
    assert [len(batches.arguments(b.index, b.labelled)) for b in batches.epoch()].count(2) == 1


class Counting(ELBO):
    """Three updates with each minibatch, and a memory of how many there were."""

    updates = 3

    def __init__(self):
        super().__init__(analytic_kl=False)
        self._count = torch.zeros(())
        self._moments = []

    def loss_and_grads(self, *args, **kwargs):
        self._count += 1
        self._moments.append((self._moment.epoch, self._moment.update, self._moment.index.tolist()))
        return super().loss_and_grads(*args, **kwargs)

    def state_dict(self):
        return {"count": self._count.clone()}

    def load_state_dict(self, state):
        self._count = state["count"].clone()


def test_several_updates_with_each_minibatch():
    objective = Counting()
    history, program = fitted(Partial(), some_labels(), batch_size=20, objective=objective)
    # one minibatch of ten with labels, two of twenty without
    assert history["step"] == [9] and objective._count == 9
    assert [update for _, update, _ in objective._moments] == [0, 1, 2] * 3
    assert [m[0] for m in objective._moments] == [i / 3 for i in (0, 0, 0, 1, 1, 1, 2, 2, 2)]
    for (_, _, index), (x, _) in zip(objective._moments, program.calls, strict=True):
        assert index == x


class Killed(Exception):
    pass


class Decaying(Counting):
    """Its bound's gradient shrinks with the count, so that a count that was lost shows."""

    def differentiable_loss(self, model, guide, *args, **kwargs):
        loss = super().differentiable_loss(model, guide, *args, **kwargs)
        return loss / (1 + self._count)

    def loss_and_grads(self, model, guide, *args, **kwargs):
        self._count += 1
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.item()


@pytest.mark.parametrize("after", [1, 3])
def test_resumed_with_labels_updates_and_the_objectives_memory(after, tmp_path):
    data = some_labels(50, every=10)
    arguments = {
        "epochs": 4,
        "batch_size": 3,
        "labelled_every": 2,
        "valid": data.head(9),
        "optimizer": partial(torch.optim.Adam, lr=0.1),
    }
    whole = Partial()
    expected = pv.fit(whole, data, objective=Decaying(), **arguments)

    def die(history):
        if len(history) == after:
            raise Killed

    path = tmp_path / "state.pt"
    with pytest.raises(Killed):
        pv.fit(Partial(), data, objective=Decaying(), checkpoint=path, on_epoch=die, **arguments)
    again, objective = Partial(), Decaying()
    resumed = partial(pv.fit, again, data, objective=objective, checkpoint=path, resume=True)
    history = resumed(**arguments)
    assert torch.equal(again.loc, whole.loc) and history["elbo"] == expected["elbo"]
    assert objective._count == 4 * 22 * 3
    # other labels, or another rhythm, are another fit
    with pytest.raises(CheckpointError, match="another labelled_every"):
        resumed(**{**arguments, "labelled_every": 3})
    other = Split(data.values, labels=data.labels.clone().index_fill_(0, torch.tensor([0]), 7))
    with pytest.raises(CheckpointError, match="another data"):
        pv.fit(Partial(), other, objective=Decaying(), checkpoint=path, resume=True, **arguments)


def test_a_checkpoint_of_before_there_were_such_things(tmp_path):
    """Without labelled_every, an objective's state or arguments that came later."""
    path = tmp_path / "state.pt"
    arguments = {"optimizer": partial(torch.optim.Adam, lr=0.1), "batch_size": 10}
    x = torch.arange(30.0)
    whole, again = Partial(), Partial()
    pv.fit(whole, x, epochs=2, **arguments)
    pv.fit(again, x, epochs=1, checkpoint=path, **arguments)
    state = checkpoint.load(path)
    del state["objective"], state["settings"]["labelled_every"], state["format"]
    del state["settings"]["objective"][1]["num_particles"]
    checkpoint.save(path, state)
    with pytest.raises(CheckpointError, match="another objective"):
        pv.fit(again, x, epochs=2, checkpoint=path, resume=True, objective=ELBO(2), **arguments)
    pv.fit(again, x, epochs=2, checkpoint=path, resume=True, **arguments)
    assert torch.equal(again.loc, whole.loc)


def test_batch_norm_never_sees_one_datum_of_a_kind():
    program = Partial()
    program.norm = nn.BatchNorm1d(3)
    with pytest.raises(ValueError, match="got 1 in the last of 10 data by 9"):
        pv.fit(program, some_labels(), batch_size=9)
    pv.fit(program, some_labels(), batch_size=8, epochs=1)
