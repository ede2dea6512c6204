"""The benchmarks: contenders, and the cases of each topic with their sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness import Case, Contender

__all__ = ["DEEP", "GPU_TOPICS", "TOPICS", "TWO_LAYERS", "WIDE"]

CONTENDERS = {
    "ours": Contender("ours", {"compiled": True}),
    "ours_eager": Contender("ours"),
    "ours_evaluate": Contender("ours", {"task": "evaluate"}),
    "ours_bfloat16": Contender("ours", {"task": "evaluate", "precision": "bfloat16"}),
    "pyro": Contender("peers.pyro_svi"),
    "torch": Contender("peers.plain_torch"),
    "torch_compiled": Contender("peers.plain_torch", {"compiled": True}),
    "numpyro": Contender("peers.jax_numpyro", needs_peers=True),
    "jax": Contender("peers.jax_numpyro", needs_peers=True),
    "pythae": Contender("peers.pythae_nll", needs_peers=True),
    "limit": Contender("limits", {"compiled": True}),
}
WIDE: dict[str, Any] = {"hidden": (400,), "latent_dim": 20}
DEEP: dict[str, Any] = {"hidden": (200, 200), "latent_dim": 50}
TWO_LAYERS: dict[str, Any] = {
    "hidden": (200, 200),
    "latent_dim": 100,
    "upper": ((100, 100), 50),
}


def make_case(names: str, model: dict[str, Any], job: dict[str, Any], **options: Any) -> Case:
    contenders = {name: CONTENDERS[name] for name in names.split()}
    return Case(contenders, job, **model, **options)


def make_small(model: dict[str, Any], batch: int, k: int | None = None) -> Case:
    """Return a training step on one thread, of the ELBO or of IWAE with k samples."""
    names = "ours torch_compiled numpyro limit" if k is None else "ours numpyro limit"
    job = {"task": "step"} if k is None else {"task": "iwae", "num_samples": k}
    # with larger steps, few examples or a second layer lead each contender elsewhere
    job |= {"batch": batch, "learning_rate": 1e-5 if batch < 20 or "upper" in model else 1e-3}
    count = max(20, 300 // (k or 1))
    return make_case(names, model, job, count=count, rounds=9 if batch == 20 else 5, threads=1)


TOPICS: dict[str, dict[str, Case]] = {
    "step": {
        "step": make_case(
            "ours ours_eager pyro torch torch_compiled numpyro limit",
            WIDE,
            {"task": "step", "batch": 128},
            # caches are cold at the start of a turn, unlike in real training
            count=300,
        )
    },
    "iwae": {
        "iwae": make_case(
            "ours ours_eager pyro numpyro limit",
            DEEP,
            {"task": "iwae", "batch": 20, "num_samples": 50},
            count=60,
        )
    },
    "evaluation": {
        "evaluation": make_case(
            "ours ours_evaluate ours_bfloat16 pyro jax pythae limit",
            DEEP,
            {"task": "evaluation", "num_samples": 5000},
            # enough to be compiled, in a quick run as well
            count=600,
            least=600,
            peer_count=40,
            rounds=5,
        )
    },
    "ais": {
        "ais": make_case("ours limit", DEEP, {"task": "ais", "num_samples": 20}, count=64, rounds=5)
    },
    "small_batches": {
        "batch 20, 784–400–20": make_small(WIDE, 20),
        **{f"batch {n}": make_small(DEEP, n) for n in (1, 8, 20, 100)},
        **{f"IWAE k = {k}": make_small(DEEP, 20, k) for k in (1, 5, 50)},
        **{f"two layers, batch {n}": make_small(TWO_LAYERS, n) for n in (1, 8, 20, 100)},
        **{f"two layers, IWAE k = {k}": make_small(TWO_LAYERS, 20, k) for k in (1, 5, 50)},
    },
}
#: What a GPU changes, with L_5000 of as many digits as the MNIST test set has.
GPU_TOPICS = {name: TOPICS[name] for name in ("step", "iwae", "evaluation", "ais")} | {
    "evaluation": {"evaluation": replace(TOPICS["evaluation"]["evaluation"], count=10_000)}
}
