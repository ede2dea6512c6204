"""torchvision's data sets, also where its compiled operators do not load."""

from __future__ import annotations

import sys
from types import ModuleType

import torch

#: Operator declarations live as long as the library object that made them.
_declared: list[torch.library.Library] = []


def datasets() -> ModuleType:
    """``torchvision.datasets``.

    The wheel that PyPI serves is built for CUDA. Beside a CPU build of torch its operators
    do not load, and the import fails because it registers a shape rule for ``nms``. The data
    sets use no operator: declaring the two names is all that the import needs. A matching
    installation never comes here.

    Raises:
        ModuleNotFoundError: if torchvision is not installed, saying how to get it.
    """
    try:
        import torchvision.datasets
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)
        import torchvision.datasets
    return torchvision.datasets
