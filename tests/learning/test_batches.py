"""Minibatches with labels, and objectives with several updates per minibatch."""

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
from pyro_vae.learning.batches import BatchLoader
from pyro_vae.learning.checkpoint import CheckpointError
from pyro_vae.learning.objectives import ELBO

NO_UPDATE = partial(torch.optim.SGD, lr=0.0)


class Shifted(PyroModule):
    """z ~ N(0, 1), x ~ N(z + w c, 1), and the exact posterior: log p(x|c) = log N(x; w c, √2)."""

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
    """Record the arguments of each step; example i has the value i."""

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


def partially_labelled(size=50, every=5):
    """Return examples 0, 1, 2, …, with label 10 i for every ``every``-th example i."""
    x = torch.arange(float(size))
    labels = torch.where(x % every == 0, 10 * x, -1.0).long()
    return Split(x, labels=labels)


def sampled_elbo(num_particles=1):
    """Return an ELBO that does not run the program to select its estimator."""
    return ELBO(analytic_kl=False, num_particles=num_particles)


def fit_once(program, data, **arguments):
    history = pv.fit(program, data, **{"optimizer": NO_UPDATE, "epochs": 1, **arguments})
    if isinstance(program, Partial):
        # without the runs that check the program before the first step
        program.calls = program.calls[-history["step"][-1] :]
    return history, program


def test_conditions_on_the_labels_of_the_data():
    torch.manual_seed(0)
    c = torch.randn(400)
    x = 3.0 * c + math.sqrt(2) * torch.randn(400)
    data = Split(x, labels=c)
    rate = partial(torch.optim.Adam, lr=0.1)
    history, program = fit_once(
        Shifted(), data, valid=data.head(100), epochs=30, batch_size=50, optimizer=rate
    )
    # the maximum-likelihood estimate is least squares; the tolerance allows for minibatch noise
    best = float((x * c).sum() / (c * c).sum())
    assert program.w.item() == pytest.approx(best, abs=0.15)
    truth = dist.Normal(program.w.detach() * c, math.sqrt(2)).log_prob(x).double()
    # the guide is the posterior, so every weight equals p(x|c)
    assert history["valid_elbo"][-1] == pytest.approx(float(truth[:100].mean()), abs=1e-4)
    for bounds in (
        pv.evaluate(program, data, num_samples=3),
        pv.evaluate(program, x, c, num_samples=3),
        pv.evaluate(program, Split(x), c=c, num_samples=3),
        # explicit arguments take precedence
        pv.evaluate(program, Split(x, labels=-c), c, num_samples=3),
    ):
        log_evidence = torch.tensor(bounds.per_datum["log_evidence"])
        torch.testing.assert_close(log_evidence, truth, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("data", "missing", "remedy"),
    [
        (torch.zeros(6), 6, r"pass pv\.data\.Split\(x, labels=c\)"),
        (Split(torch.zeros(6)), 6, r"pass pv\.data\.Split\(x, labels=c\)"),
        (
            Split(torch.zeros(6), labels=torch.tensor([0, 1, -1, 1, -1, 0])),
            2,
            r"leave these out, and set data\.labelled to null",
        ),
    ],
)
def test_rejects_missing_labels(data, missing, remedy):
    message = (
        rf"expected a label for every example, as Shifted conditions on labels; got {missing} of 6 "
        rf"without: {remedy}"
    )
    complete = Split(torch.zeros(6), labels=torch.zeros(6))
    with pytest.raises(ValueError, match=message):
        pv.fit(Shifted(), data, epochs=1)
    with pytest.raises(ValueError, match=message):
        pv.fit(Shifted(), complete, valid=data, epochs=1)
    with pytest.raises(ValueError, match=message):
        pv.evaluate(Shifted(), data, num_samples=2)


def test_minibatches_are_not_mixed_and_contain_every_example_once():
    data = partially_labelled()
    history, program = fit_once(Partial(), data, epochs=3, batch_size=4, objective=sampled_elbo())
    # ten labelled and forty unlabelled examples
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
    # shuffled differently in each epoch
    assert sorted(kinds[0]) not in kinds and kinds[0] != kinds[1]


def test_labelled_every():
    data = partially_labelled(50, every=10)  # five labelled and forty-five unlabelled examples
    history, program = fit_once(
        Partial(), data, epochs=2, batch_size=3, labelled_every=2, objective=sampled_elbo()
    )
    # fifteen unlabelled minibatches, and a labelled one after every second of them
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
        assert len({tuple(x) for x in labelled}) > 3  # reshuffled


@pytest.mark.parametrize("labels", [None, torch.full((50,), -1), torch.arange(50)])
def test_all_or_no_labels(labels):
    history, program = fit_once(
        Partial(), Split(torch.arange(50.0), labels=labels), batch_size=20, objective=sampled_elbo()
    )
    assert history["step"] == [3]
    known = labels is not None and bool((labels >= 0).all())
    assert all((y is not None) == known for _, y in program.calls)
    assert sorted(i for x, _ in program.calls for i in x) == list(range(50))


def test_metrics_are_means_over_the_examples_seen():
    """With a learning rate of 0, the metric is the mean over all calls, in closed form."""
    data = partially_labelled(50, every=10)
    history, program = fit_once(
        Partial(), data, batch_size=3, labelled_every=1, objective=sampled_elbo(2000)
    )
    # z ~ N(0, 1) in both, so the KL is 0 and E (x − z − y)² = (x − y)² + 1
    terms = []
    for x, y in program.calls:
        for i, value in enumerate(x):
            residual = value - (0 if y is None else y[i])
            terms.append(
                -0.5 * (residual**2 + 1) / 1e4 - math.log(100) - 0.5 * math.log(2 * math.pi)
            )
    expected = sum(terms) / len(terms)
    # the standard deviation of a term is at most 360 / 1e4 / √2000, that of the mean much less
    assert history["elbo"][0] == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize(
    ("program", "data", "message"),
    [
        (Partial, torch.zeros(6), "expected both labelled and .*; got 0 of 6 examples with labels"),
        (
            Partial,
            Split(torch.zeros(6), labels=torch.zeros(6).long()),
            "expected both labelled and unlabelled .*; got 6 of 6 examples with labels: leave it",
        ),
        (
            Shifted,
            Split(torch.zeros(6), labels=torch.zeros(6)),
            "expected labelled_every only for a program with partial labels; got Shifted",
        ),
    ],
)
def test_rejects_labelled_every_without_partial_labels(program, data, message):
    with pytest.raises(ValueError, match=message):
        pv.fit(program(), data, labelled_every=2)
    with pytest.raises(ValueError, match="expected labelled_every to be a positive integer; got 0"):
        pv.fit(program(), data, labelled_every=0)


def test_rejects_labelled_every_above_the_number_of_minibatches():
    data = Split(torch.zeros(12), labels=torch.tensor([-1] * 9 + [0] * 3))
    # 9 unlabelled examples make 3 minibatches of 4, the last one smaller
    with pytest.raises(ValueError, match=r"to be at most 3, the number .*; got 4"):
        BatchLoader(Partial(), data, 4, labelled_every=4)
    batches = BatchLoader(Partial(), data, 4, labelled_every=3)
    assert [len(batches.make_args(b.labelled, *b.source)) for b in batches.iter_epoch()].count(
        2
    ) == 1


class Counting(ELBO):
    """Makes three updates per minibatch and counts them."""

    updates = 3

    def __init__(self):
        super().__init__(analytic_kl=False)
        self._count = torch.zeros(())
        self._steps = []

    def loss_and_grads(self, *args, **kwargs):
        self._count += 1
        info = self._step_info
        self._steps.append((info.epoch, info.update, info.index.tolist()))
        return super().loss_and_grads(*args, **kwargs)

    def state_dict(self):
        return {"count": self._count.clone()}

    def load_state_dict(self, state):
        self._count = state["count"].clone()


def test_several_updates_with_each_minibatch():
    objective = Counting()
    history, program = fit_once(Partial(), partially_labelled(), batch_size=20, objective=objective)
    # one minibatch of ten with labels, two of twenty without
    assert history["step"] == [9] and objective._count == 9
    assert [update for _, update, _ in objective._steps] == [0, 1, 2] * 3
    assert [s[0] for s in objective._steps] == [i / 3 for i in (0, 0, 0, 1, 1, 1, 2, 2, 2)]
    for (_, _, index), (x, _) in zip(objective._steps, program.calls, strict=True):
        assert index == x


class Killed(Exception):
    pass


class Decaying(Counting):
    """The gradient shrinks with the count, so a lost count changes the result."""

    def differentiable_loss(self, model, guide, *args, **kwargs):
        loss = super().differentiable_loss(model, guide, *args, **kwargs)
        return loss / (1 + self._count)

    def loss_and_grads(self, model, guide, *args, **kwargs):
        self._count += 1
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.item()


@pytest.mark.parametrize("after", [1, 3])
def test_resumes_with_labels_updates_and_objective_state(after, tmp_path):
    data = partially_labelled(50, every=10)
    arguments = {
        "epochs": 4,
        "batch_size": 3,
        "labelled_every": 2,
        "valid": data.head(9),
        "optimizer": partial(torch.optim.Adam, lr=0.1),
    }
    uninterrupted = Partial()
    expected = pv.fit(uninterrupted, data, objective=Decaying(), **arguments)

    def kill(history):
        if len(history) == after:
            raise Killed

    path = tmp_path / "state.pt"
    with pytest.raises(Killed):
        pv.fit(Partial(), data, objective=Decaying(), checkpoint=path, on_epoch=kill, **arguments)
    resumed, objective = Partial(), Decaying()
    resume = partial(pv.fit, resumed, data, objective=objective, checkpoint=path, resume=True)
    history = resume(**arguments)
    assert torch.equal(resumed.loc, uninterrupted.loc) and history["elbo"] == expected["elbo"]
    assert objective._count == 4 * 22 * 3
    # other labels or another labelled_every are another fit
    with pytest.raises(CheckpointError, match="another labelled_every"):
        resume(**{**arguments, "labelled_every": 3})
    other = Split(data.values, labels=data.labels.clone().index_fill_(0, torch.tensor([0]), 7))
    with pytest.raises(CheckpointError, match="another data"):
        pv.fit(Partial(), other, objective=Decaying(), checkpoint=path, resume=True, **arguments)


def test_resumes_from_an_older_checkpoint(tmp_path):
    """Without labelled_every, the objective's state and one of its arguments."""
    path = tmp_path / "state.pt"
    arguments = {"optimizer": partial(torch.optim.Adam, lr=0.1), "batch_size": 10}
    x = torch.arange(30.0)
    uninterrupted, resumed = Partial(), Partial()
    pv.fit(uninterrupted, x, epochs=2, **arguments)
    pv.fit(resumed, x, epochs=1, checkpoint=path, **arguments)
    state = checkpoint.load_checkpoint(path)
    del state["objective"], state["settings"]["labelled_every"], state["format"]
    del state["settings"]["objective"][1]["num_particles"]
    checkpoint.save_checkpoint(path, state)
    with pytest.raises(CheckpointError, match="another objective"):
        pv.fit(resumed, x, epochs=2, checkpoint=path, resume=True, objective=ELBO(2), **arguments)
    pv.fit(resumed, x, epochs=2, checkpoint=path, resume=True, **arguments)
    assert torch.equal(resumed.loc, uninterrupted.loc)


def test_rejects_batch_norm_with_minibatches_of_one_example():
    program = Partial()
    program.norm = nn.BatchNorm1d(3)
    with pytest.raises(ValueError, match="got 1 in the last minibatch of 10 examples by 9"):
        pv.fit(program, partially_labelled(), batch_size=9)
    pv.fit(program, partially_labelled(), batch_size=8, epochs=1)
