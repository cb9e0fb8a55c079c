# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Sweeps: theory and descent at many learning rates at once
#
# `traindyn.sweep` computes a function at every point of a grid and labels what comes out. It compiles once, runs lanes
# in chunks, so that memory does not grow with their number, marks the lanes that fail, and resumes. Here: a theorem and
# the network it speaks of over learning rates, in one picture; where theorems stop holding; and what the order of the
# lanes is worth.

# %%
import tempfile

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from traindyn import sweep
from traindyn.dynamics import joma, solve
from traindyn.nets import joma as nets
from traindyn.nets import train
from traindyn.sweeps.named import figure, sweep_subject
from traindyn.validate.joma.validity import VALIDITY

jax.config.update("jax_enable_x64", True)
plt.rcParams.update({"figure.dpi": 75, "axes.grid": True, "grid.alpha": 0.25, "legend.fontsize": 8.5})

# %% [markdown]
# ## 1. Theory and SGD in the same picture
#
# JoMA's Theorem 2: one node under exponential attention and a stationary gradient moves as
# $\dot v = \Delta \circ e^{v^2/2}$, whose solution is $\operatorname{erf}(v_l/\sqrt2) = \sqrt{2/\pi}\,\Delta_l t$.
# The real block is trained by 400 updates, on minibatches of 8 of 64 samples or on all of them, at 20 learning rates
# $\eta$, and ends at $t = 400\,\eta$: each lane at a time of its own, up to which its theory is solved.

# %%
steps = 400
draw = np.random.default_rng(0)
x, g = jnp.asarray(draw.uniform(0, 1, (64, 6)) / 3), jnp.asarray(draw.normal(0.4, 0.5, (64, 1)))
theory = joma.LinearActivation((x.T @ g / 64)[:, 0])
blow_up = float(jnp.min(theory.blow_up_time(jnp.zeros(6))))
start = nets.JomaBlock(6, 1, attention="exp", init_scale=0.0, embeddings=jnp.eye(7), key=jax.random.key(0))


def trained(point, data):
    key = point["seed"] if callable(data) else None
    run = train(start, nets.stationary_loss, data, optax.sgd(point["learning_rate"]), steps, key=key)
    return run.model.v[:, 0]


def both(point):
    law = solve(theory, jnp.zeros(6), point["learning_rate"] * steps * jnp.ones(1), throw=False)
    return {"sgd": trained(point, nets.minibatch((x, g), 8)), "descent": trained(point, (x, g)), "law": law}


axes = {
    "learning_rate": np.linspace(0.05, 1.1, 20) * blow_up / steps,
    "seed": jax.random.split(jax.random.key(1), 4),
}
dims = {"sgd": ["token"], "descent": ["token"], "law": ["law.time", "token"]}
found = sweep(both, axes, dims=dims).isel({"law.time": 0})
print(found)

# %% [markdown]
# The last two rates run past the blow-up: theory has no value there, and `status` says so, at no cost to the other
# lanes.

# %%
found["status"].max("seed").to_series().tail(4)

# %%
picture, (left, right) = plt.subplots(1, 2, figsize=(12, 4))
well = found.where(found["status"] == 0, drop=True)
for token, colour in enumerate(plt.get_cmap("viridis")(np.linspace(0, 0.9, 6))):
    lanes = well.isel(token=token)
    left.plot(lanes["learning_rate"], lanes["sgd"], ".", color=colour, markersize=4)
    left.plot(lanes["learning_rate"], lanes["law"].isel(seed=0), color=colour)
left.axvline(blow_up / steps, color="black", linestyle=":")
left.set(xlabel="learning rate", ylabel="v of each token after 400 steps", title="SGD (points), Theorem 2 (lines)")

size = np.sqrt((well["law"] ** 2).sum("token"))
for name, label in (("sgd", "minibatches of 8, four seeds"), ("descent", "all samples")):
    gap = ((well[name] - well["law"]) ** 2).sum("token") ** 0.5 / size
    lines = right.plot(gap["learning_rate"], gap, "o-", markersize=3, color="tab:blue" if name == "sgd" else "black")
    lines[0].set_label(label)
right.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="error over |v|")
right.legend()
picture.tight_layout()

# %% [markdown]
# Without noise the error falls with the learning rate; with minibatches what is left at a small one is noise, which the
# sum of 400 steps averages no further.

# %% [markdown]
# ## 2. A validity map
#
# Each theorem assumes something. The subject `joma.validity` breaks that by degrees, from `strength` 0 (it holds) to 1,
# trains the real block at each learning rate up to a common time, and takes the error of the theorem. The white line is
# an error of 10 %. From the command line: `traindyn sweep joma.validity`, `traindyn sweep scan_snap.validity`.

# %%
axes = {"learning_rate": np.geomspace(5e-3, 1.0, 8), "strength": np.array([0.0, 0.01, 0.03, 0.1, 0.3, 1.0])}
with tempfile.TemporaryDirectory() as folder:
    validity = sweep_subject(VALIDITY, axes, out=folder)
figure(validity, ["learning_rate", "strength"])

# %% [markdown]
# Where the error passes 10 %: along the learning rate with the assumption in force, and along the strength at the
# smallest rate.


# %%
def passes(error, along):
    """The first value at which an error exceeds 10 %, on the grid; NaN if none does."""
    return error[along].where(error > 0.1).min(along)


rows = [name for name in validity.data_vars if name != "status"]
for name in rows:
    rate = float(passes(validity[name].isel(strength=0), "learning_rate"))
    strength = float(passes(validity[name].isel(learning_rate=0), "strength"))
    print(f"{name:18} learning rate {rate:8.3g}   strength {strength:6.3g}   {validity[name].attrs['label']}")

# %% [markdown]
# ## 3. The order of the lanes
#
# A vmapped adaptive solve goes on until its slowest lane has arrived. With a `cost` lanes of like cost share a chunk.
# `lane_efficiency` is the share of steps that some lane needed.


# %%
def stiff(point):
    flow = joma.NonlinearActivation(point["mu"] * jnp.ones(2))
    return solve(joma.LogGap(flow.mu), jnp.zeros(2), jnp.array([1.0]), rtol=1e-6, atol=1e-8, throw=False)


mu = {"mu": np.random.default_rng(0).permutation(np.linspace(0.1, 4, 256))}
for cost in (None, lambda point: point["mu"]):
    lanes = sweep(stiff, mu, batch_size=16, cost=cost)
    print("as they come:" if cost is None else "sorted:      ", f"{lanes.attrs['lane_efficiency']:.2f}")

# %% [markdown]
# A dataset is saved by `found.to_netcdf(...)`; `sweep(..., out=folder)` keeps finished chunks and goes on from there.
