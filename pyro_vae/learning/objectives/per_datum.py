"""What objectives of weights per datum ask of a program while it runs."""

from __future__ import annotations

from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample

from ..._programs import PLATE

__all__ = ["PerDatum"]


class PerDatum(Messenger):
    """Refuses sites outside of the plate, of which there may be some in training mode alone.

    Raises:
        ValueError: at such a site.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if msg["infer"].get("_deterministic") or site_is_subsample(msg):
            return
        if not any(frame.name == PLATE for frame in msg["cond_indep_stack"]):
            raise ValueError(
                f'expected every site in the plate "{PLATE}", so that there are weights per datum; '
                f"got {msg['name']!r} outside of it: use ELBO with gradient 'standard', or sample "
                f'it inside `with pyro.plate("{PLATE}", len(x)):`'
            )
