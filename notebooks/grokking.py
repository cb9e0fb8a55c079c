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
# # Grokking: why networks memorise first and generalise later
#
# A two-layer network learns the multiplication table of a group from a part of its entries. It knows these soon, and
# the others much later. Tian's Li$_2$ ([arXiv 2509.21519](https://arxiv.org/abs/2509.21519)) explains this in three
# stages:
#
# 1. **lazy learning**: the output layer fits the labels on random features; with weight decay what it leaves sends a
#    gradient $G_F$ back;
# 2. **independent features**: each hidden node climbs an energy $E$, whose maxima are representations of the group;
# 3. **interaction**: alike nodes repel each other, and what is learned leaves the energy, so that the rest is learned.
#
# Here we watch it happen, and then look at each stage alone.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from traindyn.dynamics import grokking as gk
from traindyn.dynamics import groups, solve
from traindyn.dynamics.representations import irreps
from traindyn.nets import grokking as nets
from traindyn.nets.pair_runs import train_pairs

jax.config.update("jax_enable_x64", True)  # for the theory; training below is in float32
plt.rcParams.update({"figure.dpi": 75, "legend.fontsize": 8.5})


# %% [markdown]
# ## 1. Delayed generalisation
#
# Addition modulo 23, 45 % of the pairs, Adam with coupled weight decay, and the same without decay. `stages` records
# $|G_F|$, its cosine with $\tilde Y \tilde Y^\top F$, and of every node its energy and its content by representation.

# %%
z23 = groups.cyclic(23)
others = irreps(z23)[1:]  # without the trivial one
run = train_pairs(
    z23.table,
    fractions=[0.45],
    seeds=[0],
    learning_rates=[2e-3],
    weight_decays=[1e-3, 0.0],
    nodes=256,
    fan_in=2 * z23.order,
    steps=500,
    every=5,
    observe=nets.stages(np.stack([r.projector for r in others])),
)
pick = lambda x, decay=0: np.asarray(x)[0, 0, decay, 0]
stage = run.observed

fig, axes = plt.subplots(1, 3, figsize=(13, 3), layout="constrained")
axes[0].plot(run.steps, pick(run.train_accuracy), label="trained on")
axes[0].plot(run.steps, pick(run.test_accuracy), label="held out")
axes[0].plot(run.steps, pick(run.test_accuracy, 1), ":", label="held out, no decay")
axes[0].set(xlabel="step", ylabel="accuracy", xscale="symlog")
axes[1].plot(run.steps, pick(stage.gradient_norm) / pick(stage.gradient_norm).max(), label="$|G_F|$ over its peak")
axes[1].plot(run.steps, pick(stage.alignment), label="cosine with $ỸỸ^T F$")
axes[1].set(xlabel="step", xscale="symlog")
content = pick(stage.content)[-1]
order = np.lexsort((-content.max(1), content.argmax(1)))
axes[2].imshow(content[order].T, aspect="auto", vmin=0, vmax=1)
axes[2].set(title="fraction of each frequency at the end", xlabel="node", ylabel="frequency − 1")
for axis in axes[:2]:
    axis.legend()

# %% [markdown]
# The gradient first turns to $\tilde Y \tilde Y^\top F$ and grows (stages I and II), then fades as features take over
# (III). In the end a node's weight gathers at one frequency.
#
# ## 2. Stage I: what a fitted output layer sends back
#
# On fixed features $F$ the output layer follows $\dot V = \tilde F^\top(\tilde Y - \tilde F V) - \eta V$, a flow with a
# closed form. The paper's Lemma 1 says that what it sends back in the end is proportional to
# $\tilde Y \tilde Y^\top F$. That takes many more nodes than pairs:

# %%
pairs = gk.pairs(groups.cyclic(7).table)
labels = jnp.eye(7)[pairs.label]
measure = jax.jit(lambda layer: (layer.limit_gradient(), layer.wide_gradient()))
for nodes in (48, 768, 12_288):
    w = jax.random.normal(jax.random.key(nodes), (2, 7, nodes))
    found, wide = measure(gk.OutputLayer((w[0][pairs.first] + w[1][pairs.second]) ** 2, labels, 1.0))
    cosine = jnp.vdot(found, wide) / jnp.linalg.norm(found) / jnp.linalg.norm(wide)
    print(f"{nodes:6d} nodes: |G_F| {jnp.linalg.norm(found):.2e}, over η/(4K+η)² |ỸỸᵀF| "
          f"{jnp.linalg.norm(found) / jnp.linalg.norm(wide):.3f}, cosine {cosine:.3f}")  # fmt: skip

# %% [markdown]
# In the network above the cosine of 0.9 comes from the *start* of this flow instead, where
# $G_F = G_F(0) + t\,\tilde Y \tilde Y^\top F$ (Proposition 1).
#
# ## 3. Stage II: an energy whose maxima are representations
#
# A node $w = [u; w_2]$ climbs $E(w) = \frac12 \|\tilde Y^\top \sigma(Xw)\|^2$. For $\sigma = x^2$ and all pairs this is
# $\frac2M \sum_R m_R \|\hat u \hat w_2\|_F^2$ over the real representations $R$ of the group. On the unit sphere each
# maximum lies in one of them and is worth $M/2D$, with $D$ its real dimension. The alternating group $A_4$ has two:
# rotations of the tetrahedron (real, $D = 3$) and a pair of complex characters ($D = 2$).

# %%
a4 = groups.alternating(4)
all_ = irreps(a4)
energy = gk.Energy(a4)
ts = jnp.linspace(0, 12, 60)
starts = jax.random.normal(jax.random.key(1), (30, 2, 12))
starts = starts / jnp.linalg.norm(starts, axis=(1, 2), keepdims=True)
climb = lambda w: solve(gk.ScaledAscent(energy), w, ts, rtol=1e-6, atol=1e-8).ys
paths = jax.jit(jax.vmap(climb))(starts)
values = jax.vmap(jax.vmap(energy))(paths)
contents = jax.vmap(lambda w: gk.content(w, all_))(paths[:, -1])

fig, axes = plt.subplots(1, 2, figsize=(10, 3), layout="constrained")
axes[0].plot(ts, values.T, color="tab:blue", alpha=0.5, linewidth=0.8)
for r in all_[1:]:
    axes[0].axhline(gk.peak(r), color="black", label=f"{r.kind}, D = {r.dim}: M/2D = {gk.peak(r):g}")
    axes[0].axhline(gk.peak(r) / 4, color="tab:red", linestyle=":")
axes[0].set(title="ascents on $A_4$; dotted: the printed values", xlabel="t", ylabel="E")
axes[0].legend()
axes[1].imshow(contents.fraction[jnp.argsort(contents.fraction.argmax(1))].T, aspect="auto", vmin=0, vmax=1)
axes[1].set(title="fraction of each representation at the end", xlabel="start", yticks=range(3),
            yticklabels=["trivial", "complex", "real, D = 3"])  # fmt: skip
print("largest second singular value:", float(contents.rank[jnp.arange(30), contents.fraction.argmax(1)].max()))

# %% [markdown]
# Maxima can be built by hand, $u(h) = a^\top R(h)\, x$ and $w_2(h) = x^\top R(h)\, b$ for any $a$, $x$, $b$. These are
# free, so maxima have flat directions, $3(D-1) - (\delta-1)$ of them, with $\delta$ the dimension of the numbers (real,
# complex, quaternionic) that the representation lives on:

# %%
curvatures = jax.jit(gk.curvatures)
for group in (groups.symmetric(3), groups.dicyclic(2)):
    for r in irreps(group)[1:]:
        w = gk.maximum(r, *jax.random.normal(jax.random.key(2), (3, r.dim)))
        e = gk.Energy(group)
        c = curvatures(e, w) / (4 * e(w))
        flat, middle, steep = (int(jnp.sum(jnp.abs(c - x) < 1e-9)) for x in (0, -1, -2))
        print(f"{group.name} {r.kind:13s} D = {r.dim}: E {float(e(w)):.3f}, M/2D {gk.peak(r):.3f}; "
              f"flat {flat}, −4E* {middle}, −8E* {steep}; predicted {tuple(gk.spectrum(r))}")  # fmt: skip

# %% [markdown]
# Nodes at maxima reconstruct all labels, $4(M-1)$ real ones for odd $M$, where memorising takes $M^2$:

# %%
for group in (groups.cyclic(7), groups.symmetric(3), groups.dicyclic(2), a4):
    nodes = gk.real_nodes(irreps(group))
    left = gk.residual(nodes, group)
    print(f"{group.name}: {nodes.shape[2]} nodes leave {left:.0e} of the labels, M² = {group.order**2}")

# %% [markdown]
# ## 4. Stage III: what is missing
#
# Once hidden nodes know some representations, what is left of the labels is the projector on the others, and a new
# node climbs the energy of those alone (Theorem 7; with projectors: the printed characters hold for Abelian groups).

# %%
left = gk.left_over(gk.real_nodes(all_[:2]), a4)  # the complex pair is known
print("left over − Π_missing:", np.abs(left - gk.missing(all_, [1])[gk.pairs(a4.table).label]).max())
unaware, aware = energy, lambda w: gk.remaining_energy(w, all_, [1])
print("a node at the known maximum:", float(unaware(paths[int(contents.fraction[:, 1].argmax()), -1])), "→",
      float(aware(paths[int(contents.fraction[:, 1].argmax()), -1])))  # fmt: skip

# %% [markdown]
# ## 5. How many pairs?
#
# Theory asks for about $M \log M$ pairs. Measured: accuracy on held-out pairs, over the fraction of pairs $p$ in units
# of $\ln M/M$, for an Abelian and a dihedral group (`traindyn verify grokking.scaling` has more).

# %%
fig, axis = plt.subplots(figsize=(5, 3), layout="constrained")
for group in (groups.cyclic(11), groups.dihedral(5)):
    c = np.linspace(1.7, 3.2, 6)
    table = train_pairs(
        group.table,
        fractions=c * np.log(group.order) / group.order,
        seeds=[0, 1],
        learning_rates=[3e-3],
        weight_decays=[1e-3],
        nodes=128,
        fan_in=2 * group.order,
        steps=800,
    )
    axis.plot(c, np.asarray(table.test_accuracy)[:, 0, 0, :, -1].mean(1), "o-", label=group.name)
axis.set(xlabel="c, in p = c ln M/M", ylabel="accuracy, held out")
axis.legend()
