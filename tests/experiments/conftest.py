"""Fixtures of the tests of ``experiments``: data sets are read once."""

from __future__ import annotations

from functools import cache

import pytest

from pyro_vae.data.sources import SOURCES


@pytest.fixture(autouse=True, scope="session")
def cached_sources():
    """Keep the raw data sets in memory, because every run loads them several times."""
    original = dict(SOURCES)
    SOURCES.update({name: cache(source) for name, source in original.items() if name != "array"})
    yield
    SOURCES.update(original)
