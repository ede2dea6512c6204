"""pythae's ``BaseTrainer.train_step``, including its data loader, and ``get_nll``.

References:
    Pythae: Unifying Generative Autoencoders in Python (Chadebec et al., 2022).
    https://arxiv.org/abs/2206.08309
"""

# these packages are installed in the peers' environment only
# pyright: reportMissingImports=false

from __future__ import annotations

import tempfile
from functools import partial

import torch
from job import Job, Plan, Run, find_fastest
from peers import torch_networks
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig

__all__ = ["PACKAGES", "TASKS"]

PACKAGES = ("torch", "pythae")


class Encoder(BaseEncoder):
    def __init__(self, job: Job) -> None:
        super().__init__()
        self.network = torch_networks.Encoder(job.data)

    def forward(self, x):
        loc, log_scale = self.network(x)
        return ModelOutput(embedding=loc, log_covariance=2 * log_scale)


class Decoder(BaseDecoder):
    def __init__(self, job: Job) -> None:
        super().__init__()
        self.network = torch_networks.Decoder(job.data)

    def forward(self, z):
        return ModelOutput(reconstruction=torch.sigmoid(self.network(z)))


def plan_step(job: Job) -> Plan:
    """Plan ``BaseTrainer.train_step``, an epoch over the given number of minibatches."""
    config = BaseTrainerConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=job.batch,
        learning_rate=job.learning_rate,
        optimizer_cls="Adam",
        no_cuda=job.device == "cpu",
    )
    x, next_rows = torch.from_numpy(job.data.train), job.make_minibatch_sampler()

    def make_dataset(rows: torch.Tensor) -> BaseDataset:
        return BaseDataset(x[rows], torch.ones(len(rows)))

    trainer = BaseTrainer(
        make_vae(job), make_dataset(torch.arange(job.batch)), training_config=config
    )
    trainer.prepare_training()

    def plan(count: int) -> Run:
        rows = torch.from_numpy(next_rows(count)).flatten()
        trainer.train_loader = trainer.get_train_dataloader(make_dataset(rows))
        return lambda: [float(trainer.train_step(1))]

    return plan


def plan_evaluation(job: Job) -> Plan:
    """Plan ``get_nll`` with the fastest of three batch sizes.

    It runs image by image, because ``get_nll`` returns a mean over images, and under ``no_grad``,
    because ``get_nll`` would otherwise record an unused autograd graph.
    """
    vae = make_vae(job).to(job.device).eval()
    x, K = torch.from_numpy(job.data.test).to(job.device), job.num_samples

    @torch.no_grad()
    def log_evidence(image: torch.Tensor, batch_size: int) -> float:
        return float(vae.get_nll(image, n_samples=K, batch_size=batch_size))

    sizes = {str(K // parts): K // parts for parts in (1, 5, 50) if K % parts == 0}
    size = sizes[find_fastest({n: partial(log_evidence, x[:1], s) for n, s in sizes.items()})]

    def plan(count: int) -> Run:
        images = [x[i % len(x)][None] for i in range(count)]
        return lambda: [log_evidence(image, size) for image in images]

    return plan


def make_vae(job: Job) -> VAE:
    """Return the VAE with the problem's weights."""
    config = VAEConfig(
        input_dim=tuple(job.data.train.shape[1:]),
        latent_dim=job.data.latent_dim,
        reconstruction_loss="bce",
    )
    return VAE(config, encoder=Encoder(job), decoder=Decoder(job))


TASKS = {"step": plan_step, "evaluation": plan_evaluation}
