"""Description of the machine and output of result files."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def describe_machine() -> dict[str, Any]:
    """Return the processor, the number of threads and the versions."""
    cpu = platform.processor() or platform.machine()
    info, family = Path("/proc/cpuinfo"), ""
    if info.is_file():
        lines = info.read_text().splitlines()
        models = [line for line in lines if line.startswith("model name")]
        # distinguishes generations with the same name: AMD's family 25 is Zen 3 and 4, 26 is Zen 5
        family = next((x.partition(":")[2].strip() for x in lines if "cpu family" in x), "")
        cpu = models[0].partition(":")[2].strip() if models else cpu
    return {
        "cpu": cpu,
        "cpu_family": family,
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyro-ppl": metadata.version("pyro-ppl"),
    }


def write_result(name: str, command: str, result: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write ``NAME.json`` to a folder (default: ``results/``) and print it."""
    content = {"command": command, "machine": describe_machine(), **result}
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(text, encoding="utf-8")
    print(text)
