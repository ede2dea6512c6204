"""Programs from models that other libraries trained.

Each function returns a program (a Pyro model and its guide) that calls the networks of the given
model, and copies nothing: :func:`~pyro_vae.evaluate`, :func:`~pyro_vae.gaps`, the queries and
:func:`~pyro_vae.fit` then take it like a :class:`~pyro_vae.VAE`. The other libraries are not
imported, and need not be installed unless they are used.
"""

from .diffusers_models import from_diffusers
from .modules import from_modules
from .pythae_models import from_pythae
from .scvi_models import from_scvi

__all__ = ["from_diffusers", "from_modules", "from_pythae", "from_scvi"]
