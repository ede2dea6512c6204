"""Chunk sizes of streamed computations."""

from __future__ import annotations

import itertools

import pytest
import torch

from pyro_vae.programs import chunking


def test_chunks_fit_and_divide_the_totals_if_possible():
    for size, num_samples, pairs in itertools.product(
        (1, 7, 100, 1000), (1, 3, 64, 131, 5000), (1, 2, 63, 64, 1000, 4000)
    ):
        draws, data = chunking.chunk_shape(size, num_samples, pairs)
        assert 1 <= draws <= num_samples and 1 <= data <= size and draws * data <= pairs
    # at most 64 and 53: 50 divides 5000 and 1000
    assert chunking.chunk_shape(1000, 5000, 2675) == (50, 50)
    assert chunking.chunk_shape(10, 1000, 4000) == (250, 10)  # at most 400
    assert chunking.chunk_shape(997, 131, 2675) == (64, 41)  # primes have no divisors


def test_fewer_pairs_of_larger_examples():
    flat = torch.zeros(3, 784)
    expected = (1 << 23) // (4 * 784)
    for data in (flat, flat.reshape(3, 28, 28)):
        assert chunking.max_streamed_pairs(data) == expected
    assert chunking.max_streamed_pairs(torch.zeros(1).expand(3, 10**8)) == 1
    assert chunking.max_streamed_pairs(torch.zeros(3)) == 1 << 15
    assert chunking.max_streamed_pairs(flat, 12) == 12
    assert chunking.limit_pairs(5000, 784 * 256, flat) == (1 << 24) // (784 * 256)
    assert chunking.limit_pairs(5, 784, flat) == 5
    with pytest.raises(ValueError, match="expected chunk_size ≥ 1; got 0"):
        chunking.max_streamed_pairs(flat, 0)
