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
# # GaLore: gradients of low rank, and an optimiser that lives on them
#
# Zhao et al. (ICML 2024, [arXiv 2403.03507](https://arxiv.org/abs/2403.03507)) argue that the gradient of a weight
# matrix becomes low rank in training, project it to its leading directions, and keep the optimiser's state for the
# projection only. This notebook looks at the theorem, at the gradients of a small language model, and at the transform
# `traindyn.nets.galore`. One convention throughout: **t = learning rate × step**.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from traindyn.dynamics import galore as theory
from traindyn.nets import read_corpus, train
from traindyn.nets.galore import exact_svd, galore, galore_labels, galore_refresh, galore_state_bytes
from traindyn.nets.llama import CONFIGS, Llama, LlamaConfig
from traindyn.nets.quantise import quantize_state
from traindyn.nets.transformer import Windows, next_token_loss
from traindyn.validate import Setting, report
from traindyn.validate.galore.theory import lemma_3_3

jax.config.update("jax_enable_x64", True)  # the comparisons below are tighter than float32 resolves
plt.rcParams.update({"figure.dpi": 75, "axes.grid": True, "grid.alpha": 0.25, "legend.fontsize": 8.5})


# %% [markdown]
# ## 1. Why the rank falls: Lemma 3.3, and its misprint
#
# In a *reversible* network (deep linear, ReLU) the gradient of one layer, the others held fixed, is
# $G(W) = \frac1N\sum_i (A_i - B_i W C_i)$ with $B_i, C_i$ positive semidefinite. Under $W \leftarrow W + \eta G$ it
# obeys $\mathrm{vec}\,G_t = (1 - \eta S)^t\, \mathrm{vec}\,G_0$ with $S = \frac1N\sum_i C_i\otimes B_i$: the part
# $G_\parallel$ in the eigenspace of the smallest eigenvalue outlives the others, and the stable rank
# $\|G\|_F^2/\|G\|_2^2$ tends to that of $G_\parallel$. The printed bound divides by $\|G_\parallel\|_2^2$, which
# takes $\|G_t\|_2$ for at least $(1-\eta\lambda_1)^t\|G_\parallel\|_2$. It need not be, as two by two numbers show;
# the bound of `stable_rank_bound` holds always.

# %%
one = np.zeros((2, 2))
one[0, 0] = 1.0
flow = theory.ReversibleGradient(np.array([[[-0.3, 1.0], [1.0, 1.0]]]), one[None], one[None])
start, eta, steps = jnp.zeros((2, 2)), 0.2, np.arange(30)
split = flow.split(flow(0.0, start))


def stable_rank(g):
    singular = np.linalg.svd(g, compute_uv=False)
    return (singular**2).sum(-1) / singular[..., 0] ** 2


w, gradients = start, []
for _ in steps:
    gradients.append(flow(0.0, w))
    w = w + eta * gradients[-1]
size = lambda x: float(jnp.sum(x**2))
q = float(split.ratio(eta))
printed = stable_rank(split.parallel) + q ** (2 * steps) * size(split.rest) / np.linalg.norm(split.parallel, 2) ** 2

plt.figure(figsize=(6, 3.2))
plt.plot(steps, stable_rank(np.stack(gradients)), "k.", label="measured")
plt.plot(steps, printed, "C3", label="bound as printed")
plt.plot(steps, theory.stable_rank_bound(split, eta, steps), "C0", label="bound as corrected")
plt.ylim(1, 2)
plt.xlabel("step")
plt.ylabel("stable rank of G")
plt.legend()
plt.show()
print(f"at the start: measured {stable_rank(gradients[0]):.3f}, printed bound {printed[0]:.3f}")

# %% [markdown]
# ## 2. The gradients of a language model
#
# No transformer is reversible, so this is a question for measurement. A small LLaMA learns to predict the bytes of a
# text; its gradients are kept along the way. What a basis is worth is the share of the energy $\|G\|_F^2$ that it
# captures of **later** gradients, for it has to serve until the next refresh. GaLore projects the short side of each
# matrix; `optax.contrib.galore` the long one.

# %%
text, _ = read_corpus()
ids = np.frombuffer(text.encode(), np.uint8)[:200_000].astype(np.int32)
config = LlamaConfig(vocabulary=256, width=64, hidden=176, layers=2, heads=4, length=64)
model = Llama(config, dtype=jnp.float32, key=jax.random.key(0))
windows = Windows(ids, length=64, batch=8)
fixed = windows(jax.random.key(1))  # gradients are compared on one batch


def ffn_gradient(model):
    return eqx.filter_grad(next_token_loss)(model, fixed).blocks[0].gate.weight


run = train(
    model, next_token_loss, windows, optax.adam(3e-3), 300, key=jax.random.key(2), observe=ffn_gradient, every=10
)
g = np.asarray(run.observed, float)  # (records, 176, 64): the short side is the second axis
singular = np.linalg.svd(g, compute_uv=False)
u, _, vt = np.linalg.svd(g, full_matrices=False)
rank, energy = 16, (g**2).sum((1, 2))
random = np.random.default_rng(0).normal(size=g.shape[1:])
random = np.linalg.svd(random, compute_uv=False)

fig, axes = plt.subplots(1, 2, figsize=(10, 3.2))
axes[0].plot(run.steps, stable_rank(g), label="gradient")
axes[0].axhline((random**2).sum() / random[0] ** 2, color="C7", label="random matrix of this shape")
axes[0].set(xlabel="step", ylabel="stable rank")
axes[0].legend()
for first, colour in ((0, "C0"), (10, "C1")):
    later = g[first:]
    short = ((later @ vt[first, :rank].T) ** 2).sum((1, 2)) / energy[first:]
    long = ((u[first, :, :rank].T @ later) ** 2).sum((1, 2)) / energy[first:]
    lag = 10 * np.arange(len(later))
    axes[1].plot(lag, short, colour, label=f"short side, basis of step {10 * first}")
    axes[1].plot(lag, long, colour + "--", label=f"long side, basis of step {10 * first}")
axes[1].set(xlabel="steps since the basis was made", ylabel="share of the energy", ylim=(0, 1.3))
axes[1].legend(ncols=2, fontsize=7)
plt.show()

# %% [markdown]
# The gradient is of low rank from the start, a few directions where a random matrix has 26, but it does not *become*
# lower here: its stable rank rises as the loss falls. Its leading directions move, too. The basis of the short side
# keeps much more of later gradients than that of the long side, at every lag; a later basis lasts longer than the
# first.
#
# ## 3. The transform
#
# `galore(learning_rate, rank, update_proj_gap, scale)` has the arguments of `optax.contrib.galore`. It takes Equinox
# models as they are, and stacks of layers. As in the paper, attention and hidden layers are projected, and the rest
# gets plain Adam. Training can be swept: here over the learning rate, all lanes in one call. Bases are computed only at
# refreshes, although under `vmap` a conditional usually computes both of its branches always.

# %%


def optimiser(rate):
    labels = lambda tree: galore_labels(tree, lambda name, leaf: "blocks" in name)
    low = galore(rate, rank, 50, 0.25, base_optimizer=optax.scale_by_adam())
    return optax.partition({"galore": low, "full": optax.adam(rate)}, labels)


loss = lambda model: next_token_loss(model, fixed)
sweep = jax.vmap(
    lambda rate: train(
        model, next_token_loss, windows, optimiser(rate), 150, key=jax.random.key(2), observe=loss, every=10
    )
)
rates = jnp.array([1e-3, 3e-3, 1e-2, 3e-2], jnp.float32)
curves = sweep(rates).observed
plt.figure(figsize=(6, 3.2))
for rate, curve in zip(rates, curves, strict=True):
    plt.plot(10 * np.arange(16), curve, label=f"GaLore, rank 16, learning rate {rate:.3g}")
plt.xlabel("step")
plt.ylabel("loss (nats a byte)")
plt.legend()
plt.show()

# %% [markdown]
# What it saves can be counted without allocating anything, at any size. In bytes, for bfloat16 weights and states:

# %%
for name in ("60M", "1B", "7B"):
    shapes = eqx.filter_eval_shape(
        lambda key, c=CONFIGS[name]: Llama(c, dtype=jnp.bfloat16, key=key), jax.random.key(0)
    )
    whole = lambda path, shape: CONFIGS[name].width // 4 if "blocks" in path and len(shape) > 1 else None  # noqa: B023
    state = galore_state_bytes(shapes, whole, accumulator_dtype=jnp.bfloat16)
    adam = 2 * sum(2 * x.size for x in jax.tree.leaves(eqx.filter(shapes, lambda x: hasattr(x, "size"))))
    print(f"{name:>4}: Adam {adam / 1e9:6.2f} GB, GaLore at a quarter of the width {state.total / 1e9:6.2f} GB")

# %% [markdown]
# ## 4. When the basis changes
#
# Moments live in the old basis. The paper keeps them as they are, signs and all; here the first moment is turned by
# $P_\text{new}^T P_\text{old}$. At full rank and with momentum alone the projection must change nothing, and that tells
# the two apart. For large runs the refresh can leave the training step altogether.

# %%
rng = np.random.default_rng(0)
grads = jnp.asarray(rng.normal(size=(30, 16, 24)))


def descend(tx):
    def step(carry, g):
        updates, state = tx.update(g, carry[1])
        return (optax.apply_updates(carry[0], updates), state), carry[0]

    start = jnp.zeros((16, 24))
    return jax.lax.scan(step, (start, tx.init(start)), grads)[1]


plain = descend(optax.sgd(0.1, momentum=0.9))
for transport in ("keep", "momentum"):
    tx = galore(0.1, 16, 10, base_optimizer=optax.trace(0.9), transport=transport, projector=exact_svd())
    error = jnp.linalg.norm(descend(tx) - plain, axis=(1, 2)) / jnp.linalg.norm(plain[-1])
    print(f"{transport:>8}: off plain momentum by {error[10]:.1e} at the first change, {error[-1]:.1e} at the end")

tx = galore(0.01, 4, "external", base_optimizer=quantize_state(optax.scale_by_adam()))
state = tx.init(grads[0])
state = jax.jit(galore_refresh)(state, grads[0])  # its own program; the step has no decomposition in it
updates, state = jax.jit(tx.update)(grads[0], state)
print(f"captured at the refresh: {state[0].captured:.3f}; rank of the update: {np.linalg.matrix_rank(updates)}")

# %% [markdown]
# ## 5. Claims
#
# The same comparisons as checks that can fail, each with a **control** that must be refuted: the same check on a
# prediction that is wrong in one place. `traindyn verify galore` runs them all.

# %%
evidence = lemma_3_3.check(Setting("smoke"))
print(lemma_3_3.statement)
for title, rows in (("what must hold", evidence.rows), ("control: what must be refuted", evidence.control)):
    print(title)
    for name, row in rows.items():
        print(f"  {name}: {row.measured_text}, needs {row.bound_text}: {row.verdict}")
report.figure(evidence.panels, lemma_3_3.name)
