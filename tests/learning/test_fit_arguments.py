"""Further arguments of model and guide in ``fit``: masks, covariates, lengths and settings."""

from __future__ import annotations

import copy
import math
from functools import partial

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn
from torch.utils.data import Dataset

import pyro_vae as pv
from pyro_vae.core.components import Labels
from pyro_vae.data import Split, as_split, containers
from pyro_vae.learning import svi
from pyro_vae.learning.checkpoint import CheckpointError

N, D = 40, 4
W, NOISE = torch.tensor([1.0, -0.5, 0.8, 0.3]), 0.7
GENERATOR = torch.Generator().manual_seed(3)
X = torch.randn(N, 1, generator=GENERATOR) * W + NOISE * torch.randn(N, D, generator=GENERATOR)
SEEN = torch.rand(N, D, generator=GENERATOR) < 0.6
SHIFT = torch.randn(N, D, generator=GENERATOR)
ADAM = partial(torch.optim.Adam, lr=0.05)
FAST = partial(torch.optim.Adam, lr=0.15)


@pytest.fixture
def uncompiled(monkeypatch):
    """Run the traced graph without compiling it, to save time."""
    monkeypatch.setattr(svi, "compile_graph", lambda graph, inputs: graph)


class Masked(nn.Module):
    """z ~ N(0, 1), x | z ~ N(w z + shift, s²) where seen. The guide contains the exact posterior.

    Its precision is 1 + Σ_d seen_d w_d² / s², and its mean Σ_d seen_d w_d (x_d − shift_d) / s²
    divided by the precision.
    """

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(D)), nn.Parameter(torch.zeros(D))
        self.record = []

    def model(self, x, seen, shift=0.0, scale=NOISE):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            fn = dist.Normal(z[..., None] * W + shift, scale).mask(seen)
            pyro.sample("x", fn.to_event(1), obs=x)

    def guide(self, x, seen, shift=0.0, scale=NOISE):
        self.record.append((torch.get_rng_state(), x, seen, shift))
        with pyro.plate("data", len(x)):
            precision = 1 + (seen * self.b.exp()).sum(-1)
            mean = (seen * self.a * (x - shift)).sum(-1) / precision
            pyro.sample("z", dist.Normal(mean, precision.rsqrt()))


def log_evidence(x=X, seen=SEEN, shift=0.0):
    """Return log p of the observed values, ``(N,)``."""
    x = x - shift
    rows = []
    for row, mask in zip(x, seen, strict=True):
        w = W[mask]
        covariance = w[:, None] * w + NOISE**2 * torch.eye(len(w))
        fn = dist.MultivariateNormal(torch.zeros(len(w)), covariance) if len(w) else None
        rows.append(fn.log_prob(row[mask]) if fn else torch.tensor(0.0))
    return torch.stack(rows)


def _weights(program):
    return torch.cat([p.detach().flatten() for p in program.parameters()])


def _fit(*args, program=None, **options):
    program = Masked() if program is None else program
    settings = {"batch_size": 15, "epochs": 3, "optimizer": ADAM, "compile": False, **options}
    return program, pv.fit(program, *args, **settings)


SHORT = pv.Annealing(num_chains=2, num_temperatures=5)
STL = pv.objectives.ELBO(gradient="stl")


def test_trained_elbo_is_the_evidence_of_the_observed_values():
    program, history = _fit(X, SEEN, shift=SHIFT, epochs=60, optimizer=FAST, objective=STL)
    truth = log_evidence(shift=SHIFT).mean()
    assert history["elbo"][-1] == pytest.approx(float(truth), abs=2e-3)
    torch.testing.assert_close(program.a.detach(), W / NOISE**2, atol=0.05, rtol=0)
    bounds = pv.evaluate(program, X, SEEN, shift=SHIFT, num_samples=20)
    assert bounds.elbo == pytest.approx(float(truth), abs=2e-3)


def test_gradient_of_a_step_is_that_of_plain_pyro():
    program = Masked()
    before = copy.deepcopy(program)
    sgd = partial(torch.optim.SGD, lr=1e-3)
    options = {"optimizer": sgd, "epochs": 1, "batch_size": N}
    _fit(
        X,
        SEEN,
        shift=SHIFT,
        program=program,
        objective=pv.objectives.ELBO(analytic_kl=False),
        **options,
    )
    state, x, seen, shift = program.record[-1]
    rows = [int((row == X).all(1).nonzero()) for row in x]
    assert sorted(rows) == list(range(N)) != rows  # shuffled, all arguments alike
    assert torch.equal(seen, SEEN[rows]) and torch.equal(shift, SHIFT[rows])
    torch.set_rng_state(state)
    with pyro.get_param_store().scope():
        plain = Trace_ELBO().differentiable_loss(before.model, before.guide, x, seen, shift)
    plain.backward()
    for old, new in zip(before.parameters(), program.parameters(), strict=True):
        torch.testing.assert_close(old.detach() - 1e-3 * old.grad, new.detach())


@pytest.mark.parametrize(
    "given",
    [
        lambda: ((X,), {"seen": SEEN}),
        lambda: ((X,), {"seen": SEEN.numpy()}),
        lambda: ((X,), {"arguments": {"seen": SEEN}}),
        lambda: ((Split(X, arguments={"seen": SEEN}),), {}),
        lambda: ((Split(X, arguments={"seen": ~SEEN}),), {"seen": SEEN}),
        lambda: ((X.numpy(), pd.DataFrame(SEEN.numpy())), {}),
    ],
)
def test_ways_to_pass_an_argument(given):
    args, options = given()
    expected, _ = _fit(X, SEEN)
    assert torch.equal(_weights(_fit(*args, **options)[0]), _weights(expected))


def test_model_guide_and_data_in_this_order():
    program = Masked()
    pv.fit(program.model, program.guide, X, SEEN, batch_size=15, epochs=3, optimizer=ADAM)
    assert torch.equal(_weights(program), _weights(_fit(X, SEEN)[0]))


def test_streamed_data_give_the_same_bits(tmp_path, monkeypatch):
    stored = np.memmap(tmp_path / "x", mode="w+", dtype=np.float32, shape=(N, D))
    stored[:] = X.numpy()
    stored.flush()
    split = Split(X, arguments={"seen": SEEN, "shift": SHIFT})
    expected, history = _fit(split, valid=split.head(30))
    monkeypatch.setattr(containers, "RESIDENT_BYTES", 0)
    streamed = Split(stored, arguments={"seen": SEEN, "shift": SHIFT})
    program, other = _fit(streamed, valid=streamed.head(30))
    assert not isinstance(streamed.values, torch.Tensor)
    assert torch.equal(_weights(program), _weights(expected))
    assert history["elbo"] == other["elbo"]
    # the validation noise of blocks differs
    assert history["valid_elbo"] == pytest.approx(other["valid_elbo"], abs=1.0)
    evaluated = pv.evaluate(program, streamed, num_samples=400).elbo
    assert evaluated == pytest.approx(pv.evaluate(expected, split, num_samples=400).elbo, abs=0.05)
    encoded = pv.queries.encode(program, streamed)["z.mean"]
    np.testing.assert_allclose(encoded, pv.queries.encode(program, split)["z.mean"], atol=1e-5)


def test_compiled_steps(uncompiled, caplog):
    expected, history = _fit(X, SEEN, shift=SHIFT)
    program, compiled = _fit(X, SEEN, shift=SHIFT, compile=True)
    assert "eagerly" not in caplog.text
    torch.testing.assert_close(_weights(program), _weights(expected))
    assert compiled["elbo"] == pytest.approx(history["elbo"], rel=1e-5)


def test_resumes_bit_for_bit_with_the_same_arguments(tmp_path):
    split, path = Split(X, arguments={"seen": SEEN}), tmp_path / "state.pt"
    expected, history = _fit(split, epochs=4, valid=split)
    _fit(split, epochs=2, valid=split, checkpoint=path)
    resumed, other = _fit(split, epochs=4, valid=split, checkpoint=path, resume=True)
    assert torch.equal(_weights(resumed), _weights(expected))
    assert history["valid_elbo"] == other["valid_elbo"]
    for changed in ({"seen": ~SEEN}, {"seen": SEEN, "scale": 0.5}):
        with pytest.raises(CheckpointError, match="a fit with another data"):
            _fit(X, valid=split, epochs=5, checkpoint=path, resume=True, **changed)


def test_validation_elbo_uses_the_arguments_of_the_validation_data():
    valid = Split(X[:9], arguments={"seen": SEEN[:9]})
    program, history = _fit(X, SEEN, epochs=60, optimizer=FAST, objective=STL, valid=valid)
    assert history["valid_elbo"][-1] == pytest.approx(float(log_evidence()[:9].mean()), abs=0.01)
    assert history["valid_elbo"][-1] == pytest.approx(
        pv.evaluate(program, X[:9], SEEN[:9], num_samples=1000).elbo, abs=0.01
    )


def test_values_without_a_row_per_example_are_passed_as_they_are():
    wide = torch.full((D,), NOISE)
    expected, _ = _fit(X, SEEN)
    assert torch.equal(_weights(_fit(X, SEEN, scale=wide)[0]), _weights(expected))
    assert not torch.equal(_weights(_fit(X, SEEN, scale=0.2)[0]), _weights(expected))


class SharedTable(nn.Module):
    """The loadings are an argument, one row for each of D variables; there are D examples too."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(D))

    def model(self, x, loadings, offset):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = z[..., None] * loadings + offset[..., None]
            pyro.sample("x", dist.Normal(loc, NOISE).to_event(1), obs=x)

    def guide(self, x, loadings, offset):
        with pyro.plate("data", len(x)):
            scale = (1 + (loadings / NOISE).square().sum()).rsqrt()
            pyro.sample("z", dist.Normal((x - offset[..., None]) @ self.a, scale))


def test_a_tensor_of_n_rows_that_all_examples_share():
    """Both arguments have N rows: the offset is gathered, and the loadings are not."""
    offset = torch.tensor([5.0, -5.0, 20.0, 0.0])
    x = X[:D] + offset[:, None]
    options = {"program": SharedTable(), "batch_size": 2, "epochs": 100, "objective": STL}
    program, history = _fit(x, W, offset, **options)
    posterior_mean = X[:D] @ W / NOISE**2 / (1 + (W / NOISE).square().sum())
    torch.testing.assert_close(X[:D] @ program.a.detach(), posterior_mean, atol=0.02, rtol=0)
    truth = float(log_evidence(X[:D], torch.ones(D, D) > 0).mean())
    assert history["elbo"][-1] == pytest.approx(truth, abs=0.01)
    evaluated = pv.evaluate(program, x, W, offset, num_samples=10).elbo
    assert evaluated == pytest.approx(truth, abs=0.01)


class Conditional(Masked):
    """Conditions on labels, with a further argument."""

    labels = Labels.CONDITION

    def model(self, x, labels, seen):
        super().model(x, seen, labels[..., None])

    def guide(self, x, labels, seen):
        super().guide(x, seen, labels[..., None])


@pytest.mark.parametrize("by_name", [True, False])
def test_labels_and_arguments(by_name):
    labels = torch.randn(N, generator=torch.Generator().manual_seed(1))
    expected, history = _fit(X, SEEN, labels[:, None])
    split = Split(X, labels=labels, arguments={"seen": SEEN} if by_name else None)
    program, other = _fit(split, *(() if by_name else (SEEN,)), program=Conditional())
    assert torch.equal(_weights(program), _weights(expected))
    assert history["elbo"] == other["elbo"]
    if by_name:
        evaluated = pv.evaluate(program, split, num_samples=50).elbo
        assert evaluated == pv.evaluate(expected, X, SEEN, labels[:, None], num_samples=50).elbo


class Sequence(nn.Module):
    """A random walk of given length, z_t ~ N(z_{t−1}, 1) and x_t ~ N(z_t, 1), in a time loop."""

    def __init__(self):
        super().__init__()
        self.gain, self.scale = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))

    def model(self, x, lengths):
        with pyro.plate("data", len(x)):
            z = torch.zeros(len(x))
            for t in pyro.markov(range(int(lengths.max()))):
                with pyro.poutine.mask(mask=t < lengths):
                    z = pyro.sample(f"z_{t}", dist.Normal(z, 1.0))
                    pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[..., t])

    def guide(self, x, lengths):
        with pyro.plate("data", len(x)):
            z = torch.zeros(len(x))
            for t in pyro.markov(range(int(lengths.max()))):
                with pyro.poutine.mask(mask=t < lengths):
                    loc = z + self.gain[t] * (x[..., t] - z)
                    z = pyro.sample(f"z_{t}", dist.Normal(loc, self.scale[t].exp()))


def test_time_loop_with_lengths(caplog):
    """Steps whose control flow depends on the lengths run eagerly, with the same result."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.arange(30) % 3 + 1
    x = torch.randn(30, 3, generator=generator).cumsum(1) + torch.randn(30, 3, generator=generator)
    split = Split(x, arguments={"lengths": lengths})
    runs = [_fit(split, program=Sequence(), epochs=4, compile=c) for c in (False, True)]
    assert torch.equal(*(_weights(program) for program, _ in runs))
    assert "the step is not compiled and runs eagerly" in caplog.text
    covariance = torch.minimum(torch.arange(1, 4)[:, None], torch.arange(1, 4)) + torch.eye(3)
    truth = sum(
        dist.MultivariateNormal(torch.zeros(n), covariance[:n, :n]).log_prob(row[:n])
        for row, n in zip(x, lengths.tolist(), strict=True)
    )
    options = {"epochs": 60, "batch_size": 30, "optimizer": FAST}
    bounds = pv.evaluate(_fit(split, program=Sequence(), **options)[0], split, num_samples=500)
    # the filter is the posterior for length 1, and differs from it for the others
    assert float(truth) / 30 - 0.3 < bounds.elbo < float(truth) / 30


class Items(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, i):
        return {"x": X[i], "seen": SEEN[i], "age": float(i), "length": i % 3}


def test_arguments_from_the_items_of_a_data_set():
    split = as_split(Items(), x="x", arguments=["seen", "age"])
    assert list(split.arguments) == ["seen", "age"] and split.labels is None
    assert torch.equal(split.arguments["seen"], SEEN)
    assert torch.equal(split.arguments["age"], torch.arange(N).float())
    part = split.at(torch.tensor([3, 1]))
    assert torch.equal(part.arguments["seen"], SEEN[[3, 1]])
    del split.arguments["age"]
    assert torch.equal(_weights(_fit(split)[0]), _weights(_fit(X, SEEN)[0]))
    with pytest.raises(ValueError, match="an entry 'mask', an argument; got 'x', 'seen', 'age'"):
        as_split(Items(), x="x", arguments=["mask"])


def test_arguments_from_the_columns_of_a_frame():
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0], "age": [5.0, 6.0], "y": [0, 1]})
    split = as_split(frame, labels="y", arguments=["age"])
    assert split.values.tolist() == [[1.0, 3.0], [2.0, 4.0]]
    assert split.arguments["age"].tolist() == [5.0, 6.0] and split.labels.tolist() == [0, 1]
    with pytest.raises(ValueError, match="expected a column named 'ages'; found 'a', 'b'"):
        as_split(frame, arguments=["ages"])


def test_queries_and_evaluations_use_the_arguments_of_a_split():
    """In the order of the signature, whatever the order in the split, also on parts of it."""
    program, _ = _fit(X, SEEN, shift=SHIFT)
    split = Split(X, arguments={"scale": 0.9, "seen": SEEN})
    explicit = X, SEEN, 0.0, 0.9

    def weigh(*args, **kwargs):
        torch.manual_seed(0)
        return pv.log_weights(program.model, program.guide, *args, num_samples=5, **kwargs)

    expected = weigh(*explicit)
    torch.testing.assert_close(weigh(split), expected)
    ours, theirs = (pv.evaluate(program, *args, num_samples=5) for args in ((split,), explicit))
    assert ours.log_evidence == theirs.log_evidence
    ours, theirs = (pv.ais(program, *args, annealing=SHORT) for args in ((split,), explicit))
    np.testing.assert_allclose(ours.per_datum["ais"], theirs.per_datum["ais"], rtol=1e-5)
    # explicit arguments replace those of the split
    other = Split(X, arguments={"scale": 0.9, "seen": ~SEEN})
    torch.testing.assert_close(weigh(other, SEEN), expected)
    torch.testing.assert_close(weigh(other, seen=SEEN), expected)
    observed = torch.arange(D) < 2
    options = {"observed": observed, "num_samples": 20, "refit_steps": 0, "rounds": 0}
    ours, theirs = (
        pv.queries.score_missing(program, *args, **options).value
        for args in ((split.head(5),), (X[:5], SEEN[:5], 0.0, 0.9))
    )
    torch.testing.assert_close(ours, theirs)


def test_a_split_keeps_its_arguments():
    split = Split(X, arguments={"seen": SEEN.numpy(), "rate": 0.5, "table": torch.zeros(3)})
    for part in (split.head(5), split.at(slice(5)), split.to("cpu").head(5)):
        assert torch.equal(part.arguments["seen"], SEEN[:5])
        assert part.arguments["rate"] == 0.5 and len(part.arguments["table"]) == 3
    assert "arguments=seen, rate, table" in repr(split)
    with pytest.raises(ValueError, match="expected arguments to be a mapping of names to values"):
        Split(X, arguments=[SEEN])


class Clash(Masked):
    def model(self, x, seed):
        super().model(x, seed)

    def guide(self, x, seed):
        super().guide(x, seed)


def test_arguments_with_the_name_of_an_option():
    expected, _ = _fit(X, SEEN)
    program, _ = _fit(X, program=Clash(), arguments={"seed": SEEN})
    assert torch.equal(_weights(program), _weights(expected))
    with pytest.raises(ValueError, match=r"'seed' of the model; got none: pass arguments={'seed'"):
        _fit(X, program=Clash(), seed=1)


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ((X,), {}, r"the argument 'seen' of the model; got none: pass fit\(program, x, seen=…\)"),
        ((X, SEEN), {"epoch": 3}, "got 'epoch', which is neither; did you mean epochs?"),
        ((X, SEEN), {"seen": SEEN}, "'seen' once; got it by position and by name"),
        ((X,), {"seen": SEEN, "arguments": {"seen": SEEN}}, "'seen' once; got it twice"),
        ((X, SEEN), {"valid": X}, "'seen' of the validation data, with one row for each of 40"),
        (
            (X, SEEN),
            {"valid": Split(X, arguments={"seen": SEEN, "shift": SHIFT})},
            "got 'shift' too: pass it with the training data, or leave it out",
        ),
    ],
)
def test_refusals(args, options, message):
    with pytest.raises(ValueError, match=message):
        _fit(*args, **options)


def test_shared_values_are_not_missing_from_validation_data():
    split = Split(X[:9], arguments={"seen": SEEN[:9]})
    _, history = _fit(X, SEEN, scale=0.5, valid=split)
    assert math.isfinite(history["valid_elbo"][-1])
