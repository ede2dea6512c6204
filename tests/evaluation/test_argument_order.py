"""Evaluations of a model and a guide that are given as separate arguments."""

from __future__ import annotations

import pytest
from linear_gaussian import LinearGaussian

from pyro_vae import evaluation
from pyro_vae.evaluation import Annealing

SHORT = Annealing(num_chains=2, num_temperatures=3, num_steps=2)
PRIOR = Annealing(2, 3, 2, initial="prior", schedule="adaptive")
#: Each public function with options that make it fast.
FUNCTIONS = {
    "active_units": {"num_samples": 4},
    "ais": {"annealing": SHORT},
    "bdmc": {"annealing": SHORT, "num_samples": 10},
    "calibration": {
        "num_simulated": 20,
        "num_samples": 10,
        "num_replicates": 5,
        "false_alarm_rate": 0.5,
    },
    "divergences": {"num_samples": 4},
    "evaluate": {"num_samples": 10},
    "gaps": {"annealing": None, "richer": None, "num_steps": 2, "num_samples": 30},
    "latents": {"num_samples": 4, "num_draws": 20},
    "rate_distortion": {"annealing": PRIOR, "betas": (1.0,)},
    "reciprocal": {"num_samples": 4, "num_chains": 4, "options": {"warm_up": 4}},
    "surgery": {"num_draws": 20},
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_model_and_guide_may_be_separate_arguments(name):
    program, options = LinearGaussian(2), FUNCTIONS[name]
    x, function = program.sample(20), getattr(evaluation, name)
    expected = str(function(program, x, **options))
    assert str(function((program.model, program.guide), x, **options)) == expected
    assert str(function(program.model, program.guide, x, **options)) == expected


def test_training_data_of_separate_model_and_guide():
    program, options = LinearGaussian(2), FUNCTIONS["gaps"]
    x = program.sample(6)
    found = evaluation.gaps(program.model, program.guide, x[:3], train=x[3:], **options)
    assert str(found) == str(evaluation.gaps(program, x[:3], train=x[3:], **options))
    assert found.train is not None
