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
# # Composing global optimisers: what gradient descent finds can be built by hand
#
# A two-layer network with quadratic activation learns to add modulo $d$. Tian
# ([arXiv 2410.01779](https://arxiv.org/abs/2410.01779)) shows that such networks form a semi-ring: they can be added
# and multiplied, and the loss is a function of cubic sums over hidden nodes, the *potentials*, which turn sums and
# products of networks into sums and products of numbers. So optimal networks can be composed of small pieces, and
# training ends
# in the very same ones.
#
# Here we build an optimiser by hand, load it into the real network, walk along a path of zero loss, and then train a
# network and take it apart.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from traindyn.dynamics import composing as cg
from traindyn.nets import pair_runs
from traindyn.nets import pairs as nets
from traindyn.validate.composing import factorise

jax.config.update("jax_enable_x64", True)  # a loss of 1e-30 is zero, one of 1e-8 is not
plt.rcParams.update({"figure.dpi": 75, "legend.fontsize": 8.5})


# %% [markdown]
# ## 1. A network in Fourier space
#
# The network is $o_g(g_1, g_2) = \frac{1}{2d} \sum_j c_{gj} (a_{g_1 j} + b_{g_2 j})^2$. With
# $a_{mj} = \sum_k z_{akj} e^{2\pi i mk/d}$, $b$ alike and $c$ with the opposite sign (the slides leave out the $2\pi$,
# the $1/d$ of the inverse and this sign), the mean squared error is a sum over frequencies $k \neq 0$ of squares of
# potentials, among them $r_{k_1 k_2 k} = \sum_j z_{ak_1j} z_{bk_2j} z_{ckj}$. Those with $k_1 = k_2 = k$ have to be 1,
# all others 0.
#
# The decomposition is exact, for any weights:

# %%
group = cg.cyclic(7)
rng = np.random.default_rng(0)
weights = [jnp.asarray(rng.normal(size=(7, 5))) for _ in range(3)]
z = cg.from_weights(*weights, group)
print("by the decomposition:", z.loss(), " by the definition:", cg.direct_loss(cg.Weights(*weights), group))

# %% [markdown]
# ## 2. Sums and products of networks
#
# `y + z` puts the nodes of two networks side by side; `y * z` multiplies each node of one with each node of the other,
# frequency by frequency. Potentials are homomorphisms:

# %%
y = cg.from_weights(*(jnp.asarray(rng.normal(size=(7, 2))) for _ in range(3)), group)
r = lambda s: s.potentials().r[1, 2, 4]
print("sum:    ", r(y + z), r(y) + r(z))
print("product:", r(y * z), r(y) * r(z))

# %% [markdown]
# ## 3. An optimiser, built by hand
#
# A product is zero where one factor is. So take two small networks at one frequency, each of which kills some of the
# potentials that must vanish: $z_{syn}$, three nodes of entries $1, \omega, \omega^2$, and $z_\nu$, two nodes. Neither
# is optimal. Their product, six nodes, is: it inherits the zeros of both. One such product for each frequency,
# scaled by
# $6^{-1/3}$, is the global optimiser $z_{F6}$.

# %%
syn = cg.from_blocks(group, lambda k: cg.syn())
nu = cg.from_blocks(group, lambda k: cg.nu(1j))
product = cg.from_blocks(group, lambda k: cg.times(cg.syn(), cg.nu(1j)))
for name, s in {
    "z_syn": syn,
    "z_ν": nu,
    "z_syn * z_ν": product,
    "z_F4/6": cg.f4_6(group),
    "z_M": cg.memorisation(group),
}.items():
    print(f"{name:12s} {s.nodes:3d} nodes, loss {float(s.loss()):.2g}, ‖z‖² {float(s.norm()):.1f}")

# %% [markdown]
# Inside the real network it answers every pair:

# %%
model = nets.TwoLayer(*product.to_weights(), scale=1 / 14)
pairs = nets.pairs(group.table)
print("loss", nets.loss(model, pairs), "accuracy", nets.accuracy(model, pairs))
answers = jnp.argmax(model.outputs(), axis=2)

fig, axes = plt.subplots(1, 4, figsize=(13, 2.8), layout="constrained")
axes[0].imshow(answers)
axes[0].set(title="answers", xlabel="g2", ylabel="g1")
for axis, rows, name in zip(axes[1:], np.abs(product.z), "abc", strict=True):
    axis.imshow(rows, aspect="auto")
    axis.set(title=f"|z_{name}|", xlabel="node", ylabel="k")

# %% [markdown]
# ## 4. Occam's razor: a path of zero loss to the smaller network
#
# If $z'$ is optimal and $y$ has $r_{kkk}(y) = 1$, then $y * z'$ is optimal too, with more nodes, and a path of zero
# loss joins it to $z'$ (Theorem 5). Weight decay pulls along it, though the norm may rise on the way.

# %%
entries = rng.normal(size=(3, 7, 3)) + 1j * rng.normal(size=(3, 7, 3))
entries[2] /= np.sum(np.prod(entries, axis=0), axis=1, keepdims=True)
entries[:, group.inverse[1:4]] = entries[:, 1:4].conj()
entries[:, 0] = 3 ** (-1 / 3)
y = cg.Solution(entries, group)
ts = jnp.linspace(0, 4, 61)


@jax.jit
def along(t):
    point = cg.occam_path(y, t) * product
    return point.loss(), point.norm()


loss, norm = jax.lax.map(along, ts)
fig, axes = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
axes[0].semilogy(ts, jnp.maximum(loss, 1e-33))
axes[0].set(xlabel="t", ylabel="loss", ylim=(1e-33, 1))
axes[1].plot(ts, norm)
axes[1].axhline(float(product.norm()), color="black", linestyle=":", label="z' alone")
axes[1].set(xlabel="t", ylabel="‖z‖²")
axes[1].legend()
# %% [markdown]
# ## 5. Meeting the trained one
#
# The paper's recipe: Adam with coupled weight decay on 90 % of the pairs. Nodes gather at single frequencies, four or
# six at each, and their potentials go to one.

# %%
group = cg.cyclic(11)
rates = {"learning_rates": [0.01], "weight_decays": [5e-4]}
options = {"nodes": 128, "steps": 4000, "every": 100, "compact": True}
runs = pair_runs.train_pairs(group.table, fractions=[0.9], seeds=[1], **rates, **options)
run = jax.tree.map(lambda x: x[0, 0, 0, 0], runs._replace(steps=None))  # of one fraction, rate, decay and seed
trained = run.model
print("accuracy, trained on and held out:", run.train_accuracy[-1], run.test_accuracy[-1])
code = np.asarray(cg.from_weights(trained.a, trained.b, trained.c, group).z)

fig, axes = plt.subplots(1, 3, figsize=(13, 2.8), layout="constrained")
axes[0].plot(runs.steps, run.train_accuracy, label="trained on")
axes[0].plot(runs.steps, run.test_accuracy, label="held out")
axes[0].set(xlabel="step", ylabel="accuracy")
axes[0].legend()
alive = np.max(np.abs(code[0]), axis=0) > 0.05
order = np.argsort(np.argmax(np.abs(code[0, :6, alive]), axis=1), kind="stable")
for axis, rows, name in zip(axes[1:], np.abs(code[:2, :, alive]), "ab", strict=True):
    axis.imshow(rows[:, order], aspect="auto")
    axis.set(title=f"|z_{name}| after training", xlabel="node, by frequency", ylabel="k")

# %% [markdown]
# Each frequency factors into the pieces of section 3: the nodes are a product of two small networks, up to a few per
# cent, and the labels say which. `potential_order` reads the order from the potentials alone. Order 4 is not optimal by
# itself: what it leaves is cancelled by small constants that the nodes of an order-6 frequency carry.

# %%
for k, columns in factorise.nodes_by_frequency(code, group).items():
    nodes = columns.shape[1]
    if nodes in (4, 6):
        found = factorise.factorise(columns)
        order = factorise.potential_order(columns)
        print(f"k = {k}: {nodes} nodes, {found.family}, misfit {found.error:.3f}, by potentials {order}")
    else:
        print(f"k = {k}: {nodes} nodes")

# %% [markdown]
# Theory also says what such a network weighs,
# $N(n_4, n_6) = 6 \cdot 6^{1/3} n_6 + 6 \cdot 4^{1/3} n_4 + 6^{1/3} n_4/n_6$:

# %%
found = factorise.table(code, group)
print(
    "‖z‖² trained:",
    22 ** (2 / 3) * np.sum(np.abs(code) ** 2),
    " predicted:",
    cg.least_norm(found.count[4], found.count[6]),
)
