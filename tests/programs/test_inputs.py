"""Programs and data become checked inputs in one way."""

from __future__ import annotations

import functools

import pytest
import torch
from components import SMALL
from linear_gaussian import LinearGaussian

import pyro_vae as pv
from pyro_vae.programs.arguments import ProgramInputs
from pyro_vae.programs.inputs import prepare

LABELS = torch.tensor([0, 1, 1, 0])


def make_conditional():
    return pv.ConditionalVAE((3,), 2, 2, encoder=SMALL, decoder=SMALL)


def test_model_and_guide_are_accepted_in_the_order_of_log_weights():
    program = LinearGaussian(2)
    x = program.sample(3)
    model, guide = (functools.partial(f) for f in (program.model, program.guide))
    expected = pv.evaluate(program, x, num_samples=4).elbo
    assert pv.evaluate((model, guide), x, num_samples=4).elbo == expected
    assert pv.evaluate(model, guide, x, num_samples=4).elbo == expected
    assert pv.queries.anomaly_scores(model, guide, x, num_samples=4).mean() == expected
    with pytest.raises(ValueError, match=r"expected x to be a tensor .*; got NoneType"):
        pv.evaluate(model, guide, num_samples=4)


@pytest.mark.parametrize(
    ("program", "got"),
    [(pv.VAE, "the class VAE"), (torch.nn.Linear(3, 3), "Linear"), ((1, 2, 3), "tuple")],
)
def test_other_objects_are_not_programs(program, got):
    message = rf"expected an object with a model and a guide, .*; got {got}"
    for run in (pv.evaluate, pv.queries.reconstruct):
        with pytest.raises(ValueError, match=message):
            run(program, torch.zeros(2, 3))


def test_labels_are_those_of_the_split_unless_given():
    program, x = make_conditional(), torch.zeros(4, 3)
    split = pv.data.Split(x, labels=LABELS)
    assert torch.equal(prepare(program, split).args[0], LABELS)
    assert torch.equal(prepare(program, split, (1 - LABELS,)).args[0], 1 - LABELS)
    assert prepare(program, split, kwargs={"c": LABELS}).args == ()
    with pytest.raises(ValueError, match="expected a label for every example"):
        prepare(program, x)
    with pytest.raises(ValueError, match="expected a class from 0 to 1"):
        prepare(program, x, (LABELS + 1,))
    assert prepare(program, x, (LABELS + 1,), check=False).x is x


def test_selection_and_copies_follow_the_examples():
    x, shift, power = torch.arange(5.0), torch.arange(5.0) + 10, torch.ones(3)
    inputs = ProgramInputs(print, print, x, (shift, "name"), {"power": power})
    for index in (slice(1, 3), torch.tensor([1, 2])):
        part = inputs.select(index)
        assert part.x.tolist() == [1.0, 2.0] and part.args[0].tolist() == [11.0, 12.0]
        assert part.args[1] == "name" and part.kwargs["power"] is power
    assert inputs.repeat(2).args[0].tolist() == 2 * shift.tolist()
    blocks = list(inputs.blocks(2))
    assert [rows for rows, _ in blocks] == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert torch.cat([block.x for _, block in blocks]).tolist() == x.tolist()
