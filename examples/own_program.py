"""Three Pyro programs of your own: tutorial style, an autoguide, a time series with lengths.

    python examples/own_program.py

``fit`` and ``evaluate`` select further arguments, such as lengths, with the examples.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

import pyro_vae as pv

encoder, decoder = nn.Linear(64, 8), nn.Linear(4, 64)
series = nn.ModuleDict({"drift": nn.Linear(1, 1), "output": nn.Linear(1, 1)})
reader = nn.ModuleDict({"rnn": nn.GRU(2, 8, batch_first=True), "head": nn.Linear(8, 2)})


def model(x: Tensor) -> None:
    pyro.module("decoder", decoder)
    with pyro.plate("digits", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(4), 1.0).to_event(1))
        pyro.sample("pixels", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x.reshape(-1, 64))


def guide(x: Tensor) -> None:
    pyro.module("encoder", encoder)
    loc, log_scale = encoder(x.reshape(-1, 64)).chunk(2, -1)
    with pyro.plate("digits", len(x)):
        pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def series_model(x: Tensor, lengths: Tensor, seen: Tensor) -> None:
    pyro.module("series", series)
    z = x.new_zeros(len(x), 1)
    with pyro.plate("series", len(x)):
        for t in pyro.markov(range(int(lengths.max()))):
            runs = (t < lengths).unsqueeze(-1)
            z = pyro.sample(f"z{t}", dist.Normal(series["drift"](z), 0.5).mask(runs).to_event(1))
            fn = dist.Normal(series["output"](z), 0.3).mask(runs & seen[:, t : t + 1])
            pyro.sample(f"x{t}", fn.to_event(1), obs=x[:, t : t + 1])


def series_guide(x: Tensor, lengths: Tensor, seen: Tensor) -> None:
    pyro.module("reader", reader)
    hidden = reader["rnn"](torch.stack([x, seen.to(x)], -1).flip(1))[0].flip(1)
    with pyro.plate("series", len(x)):
        for t in range(int(lengths.max())):
            loc, log_scale = reader["head"](hidden[:, t]).chunk(2, -1)
            fn = dist.Normal(loc, log_scale.exp()).mask((t < lengths).unsqueeze(-1))
            pyro.sample(f"z{t}", fn.to_event(1))


def main(epochs: int = 20, num_data: int = 50, num_samples: int = 500) -> dict[str, pv.Bounds]:
    pyro.clear_param_store()
    torch.manual_seed(0)
    adam, options = pyro.optim.Adam({"lr": 0.01}), {"num_samples": num_samples, "reliable": True}
    data = pv.data.load("digits", binarize="static")
    pv.fit((model, guide), data.train, optimizer=adam, epochs=epochs)
    test = data.test.materialize(0)[:num_data]
    results = {"encoder": pv.evaluate((model, guide), test, **options)}
    decoder.requires_grad_(False).eval()
    auto = AutoNormal(model)  # a normal for each example, instead of an encoder
    pv.fit((model, auto), test, optimizer=adam, epochs=15 * epochs)
    results["AutoNormal"] = pv.evaluate((model, auto), test, **options)
    lengths, seen = torch.randint(3, 9, (500,)), torch.rand(500, 8) < 0.8
    x = seen * ((0.5 * torch.randn(500, 8)).cumsum(1) + 0.3 * torch.randn(500, 8))
    split = pv.data.Split(x, arguments={"lengths": lengths, "seen": seen})
    pv.fit((series_model, series_guide), split, optimizer=adam, epochs=2 * epochs)
    results["series"] = pv.evaluate((series_model, series_guide), split.head(num_data), **options)

    for name, bounds in results.items():
        print(f"\n{name}\n{bounds}")
    return results


if __name__ == "__main__":
    main()
