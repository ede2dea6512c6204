"""Fixtures of the tests of ``experiments``: data sets are read once."""

from __future__ import annotations

from functools import cache

import pytest

from pyro_vae.data.sources import SOURCES


@pytest.fixture(autouse=True, scope="package")
def cached_sources():
    """Keep the raw data sets in memory, because every run loads them several times."""
    original = dict(SOURCES)
    own_files = {"array", "h5ad", "images", "table"}
    SOURCES.update({n: cache(source) for n, source in original.items() if n not in own_files})
    yield
    SOURCES.update(original)
