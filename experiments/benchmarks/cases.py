"""The benchmarks: contenders, and the cases of each topic with their sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

#: Module of a contender, and the fields of its job that differ from those of the case.
Contender = tuple[str, dict[str, Any]]
CONTENDERS: dict[str, Contender] = {
    "ours": ("ours", {"compiled": True}),
    "ours_bfloat16": ("ours", {"compiled": True, "precision": "bfloat16"}),
    "pyro": ("peers.pyro_svi", {}),
    "torch": ("peers.plain_torch", {}),
    "torch_compiled": ("peers.plain_torch", {"compiled": True}),
    "numpyro": ("peers.jax_numpyro", {}),
    "jax": ("peers.jax_numpyro", {}),
    "pythae": ("peers.pythae_nll", {}),
    "limit": ("limits", {"compiled": True}),
    "kernels": ("ours", {"compiled": True, "task": "kernels"}),
}
#: Contenders whose values begin with their time, in seconds.
SELF_TIMED = ("limit", "kernels")


def pick(names: str) -> dict[str, Contender]:
    """Return contenders by their names, separated by spaces."""
    return {name: CONTENDERS[name] for name in names.split()}


@dataclass(frozen=True)
class Case:
    """A job, and how its contenders are measured.

    Attributes:
        contenders: contenders by their names in the results.
        job: fields of the job, see :class:`~job.Job`.
        widths: hidden units and latents of each layer of latents, the lowest first.
        count, peer_count: steps or images in a turn, and those of slower peers if fewer. If it is
            one, each turn is a new process, and its time is that from its first import.
    """

    contenders: dict[str, Contender]
    job: dict[str, Any]
    widths: tuple[tuple[int, ...], ...] = ()
    count: int = 1
    peer_count: int | None = None
    rounds: int = 15


#: Hidden units and latents of each layer of latents.
WIDE, DEEP, TWO_LAYERS = ((400, 20),), ((200, 200, 50),), ((200, 200, 100), (100, 100, 50))


def make_small(widths: Any, batch: int, k: int = 0) -> Case:
    """Return a training step on one thread, of the ELBO or of IWAE with k samples."""
    names = f"ours {'' if k else 'torch_compiled'} numpyro limit"
    if widths == DEEP and batch >= 20 and k in (0, 50):
        names += " ours_bfloat16"
    job = {"task": "iwae", "num_samples": k} if k else {"task": "step"}
    # with larger steps, few examples or a second layer lead each contender elsewhere
    rate = 1e-3 if batch >= 20 and len(widths) == 1 else 1e-5
    job |= {"batch": batch, "threads": 1, "learning_rate": rate}
    return Case(pick(names), job, widths, max(20, 300 // (k or 1)), rounds=9 if batch == 20 else 5)


STEP = Case(
    pick("ours ours_bfloat16 pyro torch torch_compiled numpyro limit"),
    {"task": "step", "batch": 128},
    WIDE,
    # caches are cold at the start of a turn, unlike in real training
    count=300,
)
IWAE = Case(
    pick("ours ours_bfloat16 pyro numpyro limit"),
    {"task": "iwae", "batch": 20, "num_samples": 50},
    DEEP,
    count=60,
)
EVALUATION = Case(
    pick("ours ours_bfloat16 pyro jax pythae limit"),
    {"task": "evaluation", "num_samples": 5000},
    DEEP,
    count=560,  # enough to be compiled
    peer_count=20,
    rounds=5,
)
#: With 500 temperatures the gradient is compiled, and the pilot run is a small part of the time.
AIS = Case(pick("ours limit"), {"task": "ais", "num_samples": 500}, DEEP, count=64, rounds=3)
IMPORT = Case(
    {"ours": ("pyro_vae", {}), "torch_and_pyro": ("pyro", {})}, {"task": "import"}, rounds=11
)
FIRST_STEP = Case({"ours": ("ours", {}), **pick("pyro")}, {"task": "step"}, WIDE, rounds=5)
#: Batch sizes of the ELBO, and k of IWAE with batches of 20.
BATCHES, SAMPLES = (1, 8, 20, 100), (1, 5, 50)
TOPICS: dict[str, dict[str, Case]] = {
    "step": {"step": STEP},
    "iwae": {"iwae": IWAE},
    "evaluation": {"evaluation": EVALUATION},
    "small_batches": {
        "batch 20, 784–400–20": make_small(WIDE, 20),
        **{f"batch {n}": make_small(DEEP, n) for n in BATCHES},
        **{f"IWAE k = {k}": make_small(DEEP, 20, k) for k in SAMPLES},
        **{f"two layers, batch {n}": make_small(TWO_LAYERS, n) for n in BATCHES},
        **{f"two layers, IWAE k = {k}": make_small(TWO_LAYERS, 20, k) for k in SAMPLES},
    },
    "startup": {"import": IMPORT, "first step": FIRST_STEP},
}
#: Topics that a GPU changes, with L_5000 of 10,000 digits, the size of the MNIST test set.
GPU_TOPICS = {
    "step": {"step": replace(STEP, contenders={**STEP.contenders, **pick("kernels")})},
    "iwae": {"iwae": IWAE},
    "evaluation": {"evaluation": replace(EVALUATION, count=10_000)},
    "ais": {"ais": AIS},
}
