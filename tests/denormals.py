"""Counts the denormal numbers that torch's operators return."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class DenormalCounter(TorchDispatchMode):
    """Counts denormal numbers by operator.

    Attributes:
        found: the number of denormal numbers in the results of each operator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # uninitialised memory may contain any number
        if not str(func).startswith(("aten.empty", "aten.new_empty")):
            for value in tree_leaves(result):
                if isinstance(value, Tensor) and value.is_floating_point():
                    tiny = torch.finfo(value.dtype).tiny
                    count = int(((value != 0) & (value.abs() < tiny)).sum())
                    self.found.update({str(func): count} if count else {})
        return result
