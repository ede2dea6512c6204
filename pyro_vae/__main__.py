"""Entry point of ``python -m pyro_vae``, the same as ``pyro-vae``."""

from .cli.app import main

if __name__ == "__main__":
    raise SystemExit(main())
