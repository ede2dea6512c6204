"""The benchmarks: contenders, and the cases of each topic with their sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness import Case, Contender

CONTENDERS = {
    "ours": Contender("ours", {"compiled": True}),
    "ours_eager": Contender("ours"),
    "ours_evaluate": Contender("ours", {"task": "evaluate"}),
    "ours_bfloat16": Contender("ours", {"compiled": True, "precision": "bfloat16"}),
    "pyro": Contender("peers.pyro_svi"),
    "torch": Contender("peers.plain_torch"),
    "torch_compiled": Contender("peers.plain_torch", {"compiled": True}),
    "numpyro": Contender("peers.jax_numpyro", needs_peers=True),
    "jax": Contender("peers.jax_numpyro", needs_peers=True),
    "pythae": Contender("peers.pythae_nll", needs_peers=True),
    "limit": Contender("limits", {"compiled": True}),
}
#: From the start of Python to the end of the first step, and of an import.
FIRST_STEP = {
    "ours": CONTENDERS["ours_eager"],
    "pyro": CONTENDERS["pyro"],
    "ours_compiled": CONTENDERS["ours"],
}
EMPTY_CACHE = {
    "ours_compiled": CONTENDERS["ours"],
    "ours_compiled_cold": Contender("ours", {"compiled": True, "empty_cache": True}),
}
IMPORT = {"ours": Contender("pyro_vae"), "torch_and_pyro": Contender("pyro")}
#: Hidden units and latents of each layer of latents.
WIDE, DEEP, TWO_LAYERS = ((400, 20),), ((200, 200, 50),), ((200, 200, 100), (100, 100, 50))


def make_case(names: str, widths: Any, job: dict[str, Any], **options: Any) -> Case:
    return Case({name: CONTENDERS[name] for name in names.split()}, job, widths, **options)


def make_small(widths: Any, batch: int, k: int = 0) -> Case:
    """Return a training step on one thread, of the ELBO or of IWAE with k samples."""
    names = f"ours {'' if k else 'torch_compiled'} numpyro limit"
    if widths == DEEP and batch >= 20 and k in (0, 50):
        names += " ours_bfloat16"
    job = {"task": "iwae", "num_samples": k} if k else {"task": "step"}
    # with larger steps, few examples or a second layer lead each contender elsewhere
    job |= {"batch": batch, "learning_rate": 1e-3 if batch >= 20 and len(widths) == 1 else 1e-5}
    count, rounds = max(20, 300 // (k or 1)), 9 if batch == 20 else 5
    return make_case(names, widths, job, count=count, rounds=rounds, threads=1)


#: Batch sizes of the ELBO, and k of IWAE with batches of 20.
BATCHES, SAMPLES = (1, 8, 20, 100), (1, 5, 50)
TOPICS: dict[str, dict[str, Case]] = {
    "step": {
        "step": make_case(
            "ours ours_eager ours_bfloat16 pyro torch torch_compiled numpyro limit",
            WIDE,
            {"task": "step", "batch": 128},
            # caches are cold at the start of a turn, unlike in real training
            count=300,
        )
    },
    "iwae": {
        "iwae": make_case(
            "ours ours_eager ours_bfloat16 pyro numpyro limit",
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
            count=600,  # enough to be compiled
            peer_count=40,
            rounds=5,
        )
    },
    "ais": {
        "ais": make_case("ours limit", DEEP, {"task": "ais", "num_samples": 20}, count=64, rounds=5)
    },
    "small_batches": {
        "batch 20, 784–400–20": make_small(WIDE, 20),
        **{f"batch {n}": make_small(DEEP, n) for n in BATCHES},
        **{f"IWAE k = {k}": make_small(DEEP, 20, k) for k in SAMPLES},
        **{f"two layers, batch {n}": make_small(TWO_LAYERS, n) for n in BATCHES},
        **{f"two layers, IWAE k = {k}": make_small(TWO_LAYERS, 20, k) for k in SAMPLES},
    },
    "startup": {
        "import": Case(IMPORT, {"task": "import"}, rounds=11, fresh=True),
        "first step": Case(FIRST_STEP, {"task": "step"}, WIDE, rounds=5, epochs=0, fresh=True),
        "first step, empty cache": Case(
            EMPTY_CACHE, {"task": "step"}, WIDE, rounds=5, epochs=0, fresh=True
        ),
    },
}
#: Topics that a GPU changes, with L_5000 of 10,000 digits, the size of the MNIST test set.
GPU_TOPICS = {name: TOPICS[name] for name in ("step", "iwae", "evaluation", "ais")} | {
    "evaluation": {"evaluation": replace(TOPICS["evaluation"]["evaluation"], count=10_000)}
}
