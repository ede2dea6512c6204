"""``python -m pyro_vae`` is ``pyro-vae``."""

from .cli.app import main

if __name__ == "__main__":
    raise SystemExit(main())
