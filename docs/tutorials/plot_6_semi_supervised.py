"""
A few labels
============

The model M2 of Kingma et al. (2014) has the class y and the style z as latent variables: p(y) p(z)
p(x | y, z). Where a label is known it is observed; elsewhere it is summed out. This tutorial trains
it with ten labels per class, and compares its classifier with one that sees the labelled digits
only.
"""

from functools import partial

import matplotlib.pyplot as plt
import torch
from sklearn.linear_model import LogisticRegression

import pyro_vae as pv

data = pv.data.load("digits", binarize="dynamic", labelled=100)
known = data.train.labels >= 0
print(f"{int(known.sum())} of {len(data.train)} training digits have a label")

# %%
# Baseline
# --------

x, x_test = data.train.materialize(0).reshape(-1, 64), data.test.materialize(0)
baseline = LogisticRegression(max_iter=1000).fit(x[known], data.train.labels[known])
accuracy = baseline.score(x_test.reshape(-1, 64), data.test.labels)
print(f"logistic regression on the labelled digits: {accuracy:.1%} of {len(x_test)} test digits")

# %%
# Semi-supervised
# ---------------
#
# ``EnumeratedELBO`` sums the class out for digits without a label. It also trains the classifier
# q(y|x) on those with one. ``labelled_every`` mixes a labelled minibatch in after every few others.

torch.manual_seed(0)
network = partial(pv.networks.MLP, hidden=(128,))
program = pv.SemiSupervisedVAE(
    data.event_shape,
    num_classes=10,
    latent_dim=8,
    classifier=network,
    encoder=network,
    decoder=network,
)
objective = pv.objectives.EnumeratedELBO()
pv.fit(
    program,
    data.train,
    objective=objective,
    epochs=40,
    batch_size=50,
    labelled_every=2,
    progress=False,
)
predicted = program.classify(x_test).argmax(-1)
semi = (predicted == data.test.labels).float().mean().item()
print(f"M2 on labelled and unlabelled digits: {semi:.1%}")

# %%
# Class and style
# ---------------
#
# Each row has one style z, each column one class y.

with torch.no_grad():
    z = program.prior().sample((4,))
    classes = torch.eye(10)
    codes = torch.cat([z[:, None].expand(4, 10, 8), classes.expand(4, 10, 10)], -1)
    pictures = program.likelihood(codes.reshape(40, 18)).mean.reshape(4, 10, 8, 8)
figure, rows = plt.subplots(4, 10, figsize=(7, 3), layout="constrained")
for row, line in zip(rows, pictures, strict=True):
    for axes, picture in zip(row, line, strict=True):
        axes.imshow(picture, cmap="gray_r", vmin=0, vmax=1)
        axes.set_axis_off()
plt.show()

# %%
# The bound of the model
# ----------------------
#
# ``evaluate`` needs no labels: it estimates log p(x) = log Σ_y p(x, y).

print(pv.evaluate(program, x_test[:50], num_samples=500))
