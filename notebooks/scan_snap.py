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
# # Scan and Snap: how a one-layer transformer learns where to look
#
# Scan and Snap (Tian et al., NeurIPS 2023, [arXiv 2305.16380](https://arxiv.org/abs/2305.16380)) studies one attention
# layer under a linear decoder. It says that attention first *scans*, shifting to the distinct tokens that occur
# together with the next token, and then *snaps*: it all but stops, before attention has become fully sparse.
#
# Each section states an equation, solves it, trains the real network beside it, and compares the two. One convention
# throughout: **t = learning rate × step**; with learning rate 1, t counts steps, and $\eta_Y$, $\eta_Z$ are the rates
# of the two matrices.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from traindyn.dynamics import GradientFlow, scan_snap, solve
from traindyn.nets import scan_snap as nets
from traindyn.nets import train
from traindyn.nets.eviction import keep
from traindyn.validate.metrics import entropy

jax.config.update("jax_enable_x64", True)  # the comparisons below are tighter than float32 resolves
plt.rcParams.update({"figure.dpi": 75, "axes.grid": True, "grid.alpha": 0.25, "legend.fontsize": 8.5})
TIME = "t = learning rate × step"

# %% [markdown]
# ## 1. The network, and its flow
#
# A query attends over context tokens with logits $z$, and the decoder $Y$ reads the normalised result:
#
# $$c_l \propto x_l\, e^{z_l}, \qquad f = c/\|c\|, \qquad \text{logits} = Y^\top f .$$
#
# The data: five classes (next tokens) under one query; each class has four *distinct* tokens of its own and shares one
# *common* token. With infinitely long sequences the expected loss is that of one context per class, and its gradient
# flow is the paper's Lemma 1. `ScanSnap` writes it out; `GradientFlow` takes it from the network by autodiff.

# %%
DISTINCT, COMMON = [0.4, 0.6, 0.8, 1.0], [0.6]
data = nets.distinct_and_common(5, distinct=DISTINCT, common=COMMON)
model = data.network()
print("tokens in contexts:", data.keys.shape[0], "  outputs:", model.y.shape[1])

ts = jnp.geomspace(1, 1e4, 61)
flow = scan_snap.ScanSnap(data.table, outputs=model.y.shape[1], eta_z=0.1)
law = solve(flow, flow.zero(), ts).ys

loss = jax.tree_util.Partial(nets.cross_entropy, batch=data.expected())
real = solve(GradientFlow(loss, model.rates(eta_z=0.1)), model, ts).ys
print(f"largest difference of z: {jnp.max(jnp.abs(law.z - real.z)):.0e}")

run = jax.jit(
    lambda rate: (
        train(
            model,
            nets.cross_entropy,
            data.expected(),
            nets.sgd(rate, eta_z=0.1),
            10_000,
            observe=lambda m: m.z[0, :5],
            every=50,
        ).observed
    )
)
descent = run(1.0)

plt.figure(figsize=(6, 4))
shown = np.unique(np.geomspace(1, descent.shape[0] - 1, 20).astype(int))  # records, one each 50 steps
for i, label in enumerate(["common", *(f"distinct, weight {w}" for w in DISTINCT)]):
    colour = plt.get_cmap("viridis")(i / 5)
    plt.semilogx(ts, law.z[:, 0, i], color=colour, label=label)
    plt.semilogx(50 * shown, descent[shown, i], "o", ms=3, color=colour)
plt.xlabel(TIME)
plt.ylabel("attention logit z")
plt.title("flow (lines) and descent at learning rate 1 (points)")
plt.legend()

# %% [markdown]
# ## 2. The decoder has a closed form
#
# While attention stands still and classes do not overlap, every class pushes up one logit against $M-1$ others:
#
# $$\dot h = \frac{\eta_Y/K}{M-1+e^{Mh}}, \qquad e^{Mh} + (M-1)Mh = M\eta_Y t/K + 1 .$$
#
# What reaches attention is $\gamma = (M-1)^2 h/(M-1+e^{Mh})$: it rises like $t$, peaks, and falls like $\ln t/t$. That
# is why attention snaps: not because it is finished, but because its gradient has gone.

# %%
widths = jnp.array([10.0, 100.0, 1000.0])
decoder = scan_snap.Decoder(widths)
times = jnp.geomspace(1e-2, 1e5, 200)
exact, gamma = decoder.exact(0.0, times), jax.vmap(decoder.gamma)(times)
error = jnp.max(jnp.abs(solve(decoder, jnp.zeros(3), times).ys / exact - 1))
print(f"solve against the closed form: {error:.0e}")

figure, axes = plt.subplots(1, 2, figsize=(10, 3.5))
axes[0].loglog(times, widths * exact, label=[f"M = {m:g}" for m in widths])
axes[0].set(xlabel=TIME + " (K = 1)", ylabel="M h")
axes[0].legend()
axes[1].loglog(times, gamma)
peak, height = decoder.peak()
axes[1].plot(peak, height, "k^", label="peak, closed form")
axes[1].set(xlabel=TIME + " (K = 1)", ylabel="γ")
axes[1].legend()

# %% [markdown]
# ## 3. Three tiers, three laws
#
# The paper's Theorem 1 assumes that the decoder's update does not mix classes. That is a *preconditioned* update (tier
# A), not gradient descent. Plain gradient descent with a softmax over the $K$ next tokens (tier B) has a closed form of
# its own, and with it the law
#
# $$-z_\text{common} = \tfrac12 \ln\Bigl(1 + \tfrac{\eta_Z}{\eta_Y} K^2 (K-1)\, h^2 \tfrac{\rho}{1-\rho}\Bigr),
#   \qquad \rho = f_n \cdot f_{n'} .$$
#
# The real network (tier C) keeps the signs, and is slower than both.

# %%
M, ratio = 100, 0.1
long = jnp.geomspace(0.05, 5e4, 61)
tiers = {"A, preconditioned": (M, True), "B, softmax over K": (5, False), "C, real network": (M, False)}
plt.figure(figsize=(6, 4))
for i, (name, (outputs, preconditioned)) in enumerate(tiers.items()):
    tier = scan_snap.ScanSnap(data.table, outputs=outputs, preconditioned=preconditioned, eta_z=ratio)
    z = solve(tier, tier.zero(), long).ys.z[:, 0, 0]
    plt.loglog(long, -z, color=f"C{i}", lw=4, alpha=0.4, label=f"tier {name}")
    if name.startswith("B"):
        symmetric = scan_snap.SymmetricAttention(jnp.array(COMMON), jnp.array(DISTINCT), 5, eta_z=ratio)
        formula = jax.vmap(symmetric.law)(long)
        print(f"tier B: law against flow over six decades, worst {jnp.max(jnp.abs(formula / -z - 1)):.1%}")
        plt.loglog(long, formula, "k:", label="law for tier B")
plt.xlabel(TIME)
plt.ylabel("−z of the common token")
plt.legend()

# %% [markdown]
# ## 4. What the slides misprint
#
# Theorem 4, under its own premise $\dot z = -C_0^{-1}\eta_Z\gamma\, e^{4z}$, gives
# $B = \frac14\ln(1 + 4\Gamma/C_0)$. The paper drops the offset $-\frac14\ln C_0$, the slides drop the $\frac14$ too.

# %%
theorem = scan_snap.PhaseTransition(scan_snap.Decoder(1000.0, 10.0, 0.5), 0.5, 50.0)
late = jnp.geomspace(0.1, 1e7, 61)
b = -solve(theorem, jnp.zeros(()), late).ys
print(f"at t = 1e5: closed form {-theorem.exact(0.0, 1e5):.3f}")
plt.figure(figsize=(6, 4))
plt.semilogx(late, b, lw=4, alpha=0.4, label="solve")
plt.semilogx(late, -theorem.exact(0.0, late), "k", lw=1, label="¼ ln(1 + 4Γ/C₀)")
plt.semilogx(late, b + jnp.log(50.0) / 4, "C3:", label="paper: ¼ ln(C₀ + 4Γ)")
plt.semilogx(late, 4 * b + jnp.log(50.0), "C3--", label="slides: ln(C₀ + 4Γ)")
plt.xlabel(TIME)
plt.ylabel("B")
plt.legend()

# %% [markdown]
# ## 5. Sampled sequences: the paper's Fig. 4
#
# Two queries, ten common and ten distinct tokens a class, batches of 128 sampled sequences of 128 tokens, heavy ball:
# here ten seeds and both values of $\eta_Y$ in one `vmap`. A larger $\eta_Y$ at the same $\eta_Z$ leaves attention
# *denser*.

# %%
small = nets.distinct_and_common(2, 2, dtype=jnp.float32)
sampler, expected, start = small.contexts(128, 128), small.expected(), small.network()


def fig_4(key, eta_y):
    attention = lambda m: m.attend(expected.x[0], expected.query[0])[:20]
    optimiser = nets.sgd(1.0, eta_y=eta_y, momentum=0.9)
    return train(start, nets.cross_entropy, sampler, optimiser, 50, key=key, observe=attention, every=2).observed


keys = jax.random.split(jax.random.key(0), 10)
attention = jax.jit(jax.vmap(jax.vmap(fig_4, (0, None)), (None, 0)))(keys, jnp.array([1.0, 10.0], jnp.float32))

figure, axes = plt.subplots(1, 2, figsize=(10, 3.5), sharey=True)
for axis, eta, c in zip(axes, (1, 10), attention.mean(axis=1), strict=True):
    distinct = c[:, 10:] / c[:, 10:].sum(axis=1, keepdims=True)
    image = axis.imshow(c, origin="lower", aspect="auto", vmin=0, vmax=0.19, extent=(-0.5, 19.5, -1, 51))
    axis.set(
        title=f"η_Y = {eta}: entropy over distinct tokens {entropy(distinct)[-1]:.3f}", xlabel="token", ylabel="step"
    )
    axis.grid(False)
figure.colorbar(image, ax=axes, label="attention: ten common tokens, then ten distinct ones by frequency")

# %% [markdown]
# ## 6. When does it snap?
#
# A diagram over both learning rates, in one compiled call. Snapping is the moment at which the gradient that reaches
# attention, $\|g\| = \|Y(e_n - \alpha_n)\|$, is largest. It goes as $1/\eta_Y$ and hardly depends on $\eta_Z$.

# %%
rates = jnp.geomspace(0.1, 10, 7)
clock = jnp.geomspace(0.1, 1000, 100)


@jax.jit
@jax.vmap
@jax.vmap
def snap(eta_y, eta_z):
    flow = scan_snap.ScanSnap(data.table, outputs=32, eta_y=eta_y, eta_z=eta_z)
    ys = solve(flow, flow.zero(), clock, rtol=1e-6, atol=1e-8, throw=False).ys
    size = jax.vmap(lambda y: jnp.linalg.norm(flow.residual(y) @ y.y.T))(ys)
    return clock[jnp.argmax(size)], entropy(flow.attention(ys.z[-1])[0])


when, final = snap(*jnp.meshgrid(rates, rates, indexing="ij"))
figure, axes = plt.subplots(1, 2, figsize=(10, 3.5))
words = [f"{r:.2g}" for r in rates]
maps = {"log₁₀ of the snap time": jnp.log10(when), "final entropy (nats)": final}
for axis, (title, values) in zip(axes, maps.items(), strict=True):
    figure.colorbar(axis.imshow(values, origin="lower"), ax=axis)
    axis.set(title=title, xlabel="η_Z", ylabel="η_Y")
    axis.set_xticks(range(7), words)
    axis.set_yticks(range(7), words)
    axis.grid(False)
print(f"η_Y × snap time: {jnp.min(when * rates[:, None]):.3g} … {jnp.max(when * rates[:, None]):.3g}")

# %% [markdown]
# ## 7. An application: which keys can a cache drop?
#
# Keep B of 127 keys of a trained model, by attention score, by recency, or by the lowest score. Ranking by score is
# right early; the attention that the kept keys hold is not what makes it safe.

# %%
weights = np.linspace(0.1, 1, 6)
busy = nets.distinct_and_common(16, 8, distinct=weights, common=np.full(16, 0.7 / 0.3 * weights.sum() / 16))
training = jax.jit(
    lambda: (
        train(
            busy.network(outputs=16), nets.cross_entropy, busy.expected(), nets.sgd(0.05, eta_y=10.0, eta_z=1.0), 20_000
        ).model
    )
)
trained = training()
sequence, following = busy.sequences(500, 128)(jax.random.key(0))
label = following - busy.next_token[0]
query, tokens = busy.query_number[label], sequence[:, :-1]  # here contextual tokens come first in the vocabulary
scores = trained.z[query[:, None], tokens]


@jax.jit
def loss_of(kept):
    x = jnp.zeros((tokens.shape[0], trained.z.shape[1])).at[jnp.arange(tokens.shape[0])[:, None], tokens].add(kept)
    return nets.cross_entropy(trained, nets.Contexts(x, label, query))


print("  B   by score  recent  lowest   attention kept by score")
for budget in (8, 16, 32, 64, 127):
    kept = keep(scores, budget)
    mass = jnp.mean(jnp.sum(jax.nn.softmax(scores, axis=1) * kept, axis=1))
    losses = [loss_of(k * 1.0) for k in (kept, keep(scores, budget, recent=budget), keep(-scores, budget))]
    print(f"{budget:4d}   " + "  ".join(f"{loss:7.4f}" for loss in losses) + f"   {mass:.2f}")

# %% [markdown]
# ## 8. Your own table
#
# Any `P(l|n)`, any map ψ from next tokens to queries, any optimiser. Bad input is refused at the door.

# %%
rng = np.random.default_rng(0)
table = np.zeros((4, 12))
table[:, 4:10] = rng.dirichlet(np.ones(6), size=4)
mine = nets.SequenceClasses(table, query=np.array([10, 10, 11, 11]))  # next tokens are the first four
adam = train(
    mine.network(), nets.cross_entropy, mine.contexts(64, 33), optax.adam(0.05), 300, key=jax.random.key(1)
).model
print("attention of the two queries over the six contextual tokens:")
print(np.round([adam.attend(x, q) for x, q in zip(mine.table[::2], (0, 1), strict=True)], 2))

try:
    nets.SequenceClasses(table, query=np.array([10, 10, 4, 4]))
except ValueError as error:
    print("refused:", error)
