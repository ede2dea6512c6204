"""Freed memory stays with the process and is not faulted in again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

CODE = """
import resource
import torch
from pyro_vae.compiler.allocator import keep_freed_memory
{}
def work():
    tensors = [torch.ones(1 << 20) for _ in range(8)]  # 4 MiB each
for _ in range(3):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _count_page_faults(call: str) -> int:
    # makes glibc return blocks of this size to the system immediately
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 17)}
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(call)],
        capture_output=True,
        text=True,
        check=True,
        env=env,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="requires glibc")
def test_freed_memory_is_not_faulted_in_again():
    pages = 10 * 8 * 1024  # 4 KiB each
    assert _count_page_faults("") > pages / 2
    assert _count_page_faults("assert keep_freed_memory()") < pages / 100
