"""Description of the machine, and the result files of its kind of processor."""

from __future__ import annotations

import json
import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from pyro_vae.core.files import atomic_write_text

RESULTS = Path(__file__).parent / "results"
#: Packages whose versions are recorded.
PACKAGES = ("torch", "pyro-ppl", "jax", "numpyro", "pythae")


def name_kind(cpuinfo: str) -> str:
    """Return the kind of a processor, which names the folder of its results.

    It is the first two words of ``model name`` in ``/proc/cpuinfo``, and for AMD the generation by
    ``cpu family`` (23: zen2; 25: zen4 if ``flags`` has avx512f, otherwise zen3; 26: zen5), for
    others the widest of amx, avx512 and avx2 in ``flags``. Elsewhere it is the architecture.
    """
    # the first processor's fields
    fields = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", cpuinfo.split("\n\n")[0], re.MULTILINE))
    brand = re.sub(r"\(\w+\)", "", fields.get("model name", platform.machine())).lower()
    flags = fields.get("flags", "")
    wide = next((w for w in ("amx", "avx512", "avx2") if f" {w}" in f" {flags}"), "")
    if brand.startswith("amd"):
        zen = {"23": "zen2", "25": "zen4" if wide == "avx512" else "zen3", "26": "zen5"}
        wide = zen.get(fields.get("cpu family", ""), wide)
    return "-".join([*brand.split()[:2], *([wide] if wide else [])])


def describe_machine() -> dict[str, Any]:
    """Return the processor and its kind, the GPU, the number of cores and the versions."""
    file = Path("/proc/cpuinfo")
    cpuinfo = file.read_text() if file.is_file() else ""
    model = re.search(r"^model name\s*: (.*)$", cpuinfo, re.MULTILINE)
    return {
        "kind": name_kind(cpuinfo),
        "cpu": model[1] if model else platform.processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{d.name: d.version for d in metadata.distributions() if d.name in PACKAGES},
    }


def write_result(
    name: str, command: str, content: dict[str, Any], folder: Path = RESULTS, device: str = "cpu"
) -> Path:
    """Write a result with its command and machine as ``KIND/NAME.json``; return the path."""
    machine = describe_machine()
    kind = machine["kind"] if device == "cpu" else machine["gpu"].lower().replace(" ", "-")
    path = folder / kind / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"command": command, "machine": machine, **content}
    atomic_write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return path
