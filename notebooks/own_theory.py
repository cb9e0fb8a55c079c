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
# # A theory of your own: from paper to verdict
#
# Saxe, McClelland and Ganguli (ICLR 2014, [arXiv 1312.6120](https://arxiv.org/abs/1312.6120)) solve the training of
# deep *linear* networks. With D layers and whitened inputs, each singular mode of the task is learned alone. Its
# strength u, the product of D equal weights, obeys
#
# $$\dot u = D\, u^{2 - 2/D} (s - u),$$
#
# where s is the mode's strength in the task. Nothing of this is built into the library. The theory is one line, the
# network is one line, and `compare` decides. **t = learning rate × step** throughout.

# %%
import jax
import jax.numpy as jnp
import optax

import traindyn

jax.config.update("jax_enable_x64", True)  # errors below are smaller than float32 resolves

S = jnp.array([3.0, 2.0, 1.0])  # the task: y = U diag(S) Vᵀ x
U, V = (jnp.linalg.qr(jax.random.normal(jax.random.key(i), (5, 3)))[0] for i in (0, 1))
TASK = U @ jnp.diag(S) @ V.T

# %% [markdown]
# ## 1. Model and equation
#
# Three layers of width 3 that start aligned with the task and balanced: each layer carries the cube root of the mode
# strength 0.1. The loss is the population's, for whitened inputs.

# %%
u0 = jnp.full(3, 0.1)
layers = [jnp.diag(jnp.cbrt(u0)) @ V.T, jnp.diag(jnp.cbrt(u0)), U @ jnp.diag(jnp.cbrt(u0))]


def loss(w, task):
    return jnp.sum((w[2] @ w[1] @ w[0] - task) ** 2) / 2


def strengths(w):
    return jnp.diag(U.T @ w[2] @ w[1] @ w[0] @ V)


def saxe(depth):
    return lambda t, u, args: depth * u ** (2 - 2 / depth) * (S - u)


# %% [markdown]
# ## 2. The verdict
#
# Four learning rates, one call. `observe` maps the network to what the theory speaks of. The equation of *two* layers
# is the control: it must be refuted.

# %%
found = traindyn.compare(
    saxe(3), u0, layers, loss, TASK,
    learning_rates=[0.02, 0.01, 0.005, 0.0025], time=1.6, observe=strengths, wrong={"two layers": saxe(2)},
)  # fmt: skip
print(found)

# %%
found.figure()

# %% [markdown]
# The theory holds. At the smallest learning rate training still differs from it by a few tenths of a per cent. This
# difference falls at first order in the rate, and nothing of it is left at rate zero.
#
# ## 3. How small an error is seen?
#
# A law that is 5 % too fast differs by little more at each single rate, and is refuted. `within` is the error that you
# allow, over the distance that the theory moves.

# %%
faster = lambda t, u, args: 1.05 * saxe(3)(t, u, args)
traindyn.compare(faster, u0, layers, loss, TASK, learning_rates=[0.02, 0.01, 0.005], time=1.6, observe=strengths)

# %% [markdown]
# ## 4. Under minibatch noise
#
# With samples in place of the population a single run proves nothing. `seeds` runs from one key give an interval, and
# where it is too wide, the advice says how many seeds or how small a rate would decide.


# %%
def sample(key):
    x = jax.random.normal(key, (32, 5))
    return x, x @ TASK.T


def sampled_loss(w, batch):
    x, y = batch
    return jnp.mean(jnp.sum((x @ (w[2] @ w[1] @ w[0]).T - y) ** 2, axis=1)) / 2


noisy = {"learning_rates": [0.02, 0.01, 0.005, 0.0025], "time": 1.6, "observe": strengths, "key": jax.random.key(2)}
few = traindyn.compare(saxe(3), u0, layers, sampled_loss, sample, seeds=4, **noisy)
print(few)

# %%
many = traindyn.compare(saxe(3), u0, layers, sampled_loss, sample, seeds=64, **noisy, wrong={"two layers": saxe(2)})
print(many)

# %%
many.figure()

# %% [markdown]
# ## 5. Where the theory stops
#
# Saxe's modes are alone only where the network starts aligned with the task. A random start of the same size is a
# question that the equation does not answer, and `compare` says by how much it is off. Heavy ball, at (1 − β) times the
# rate, keeps the flow.

# %%
turned = [w + 0.15 * jax.random.normal(jax.random.key(5 + i), w.shape) for i, w in enumerate(layers)]
options = {"learning_rates": [0.02, 0.01, 0.005], "time": 1.6, "observe": strengths}
traindyn.compare(saxe(3), strengths(turned), turned, loss, TASK, **options)

# %%
heavy_ball = lambda rate: optax.sgd(0.5 * rate, momentum=0.5)
traindyn.compare(saxe(3), u0, layers, loss, TASK, optimiser=heavy_ball, **options)

# %% [markdown]
# ## 6. As a claim
#
# The same comparison is a claim that `traindyn verify` runs, with its control and its pictures. A file with these lines
# is enough: `traindyn verify --claims deep_linear.py`.

# %%
from traindyn.validate import Setting, claim  # noqa: E402


@claim(
    "A deep linear network of three layers learns each mode alone.",
    source="Saxe et al., arXiv 1312.6120",
    assumptions=("aligned and balanced start", "whitened inputs"),
    tex=r"\dot u = 3 u^{4/3} (s - u)",
)
def deep_linear(setting: Setting):
    return found.evidence("mode strengths", order=1)


result = deep_linear.check(Setting("smoke"))
{name: str(row.verdict) for name, row in {**result.rows, **result.control}.items()}
