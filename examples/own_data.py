"""Model data of your own: a folder of colour pictures, and a table with columns of several types.

    python examples/own_data.py

The script makes both files, so that it runs everywhere. Pictures: folders are classes. Table: the
type of every column is recognised, and every row keeps its number.
"""

import csv
import random
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

import pyro_vae as pv


def make_pictures(folder: Path, count: int) -> None:
    """Save noisy pictures of 8 × 8 pixels in folders of classes, red and blue ones."""
    rng = np.random.default_rng(0)
    for name, colour in (("red", (200, 60, 40)), ("blue", (40, 60, 200))):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            brightness = rng.uniform(0.3, 1.0)
            pixels = brightness * np.array(colour) + rng.normal(0, 6, (8, 8, 3))
            picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            picture.save(folder / name / f"{i:03}.png")


def make_table(file: Path, count: int) -> None:
    """Write a CSV of patients, whose columns all depend on their age."""
    rng = random.Random(0)
    with file.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["pressure", "weight", "group"])
        for _ in range(count):
            age = rng.gauss(0, 1)
            rows.writerow([120 + 15 * age + rng.gauss(0, 3), 70 + 8 * age + rng.gauss(0, 3),
                           "old" if age > 0 else "young"])  # fmt: skip


def main(epochs: int = 200, count: int = 300, num_samples: int = 100) -> dict[str, float]:
    network = partial(pv.networks.MLP, hidden=(32,))
    parts = {"latent_dim": 2, "encoder": partial(network, standardize=True), "decoder": network}
    levels = pv.likelihoods.DiscretizedLogistic
    normal = partial(pv.likelihoods.Gaussian, scale="per_pixel")
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_pictures(folder / "pictures", count)
        make_table(folder / "patients.csv", count)
        options = {"binarize": "none", "values": "integer"}
        pictures = pv.data.load("images", path=str(folder / "pictures"), **options)
        options = {"binarize": "none", "labels_key": "group", "scale": "standard"}
        table = pv.data.load("table", path=str(folder / "patients.csv"), **options)
    print(f"{pictures}\nclasses: {', '.join(pictures.classes)}")
    print(f"{table}\ncolumns: {', '.join(map(str, table.columns))}")
    for title, data, likelihood in (("pictures", pictures, levels), ("table", table, normal)):
        vae = pv.VAE(data.event_shape, likelihood=likelihood, **parts)
        pv.fit(vae, data.train, epochs=epochs, batch_size=50)
        bounds = pv.evaluate(vae, data.test, num_samples=num_samples)
        results[title] = bounds.log_evidence
        worst = int(bounds.per_datum["log_evidence"].argmin())
        print(f"{title}: log p̂ {bounds.log_evidence:.2f} nats per example; the least probable one "
              f"is row {bounds.rows[worst]}")  # fmt: skip
    return results


if __name__ == "__main__":
    main()
