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
# # The reversal curse: why A → B does not teach B ← A
#
# A language model that has learned "A is the parent of B" often cannot say whose child B is. Zhu et al. (NeurIPS 2024,
# [arXiv 2405.04669](https://arxiv.org/abs/2405.04669)) trace this to training dynamics: gradient descent on next-token
# cross-entropy raises the weights from A to B and leaves those from B to A alone. They show it in a bilinear model and
# in a one-layer transformer; chain of thought is needed for the same reason.
#
# Each section states an equation, solves it, trains the network beside it, and compares. One convention throughout:
# **t = learning rate × step**.

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from traindyn.dynamics import GradientFlow, reversal, solve
from traindyn.nets import reversal as nets
from traindyn.nets import train
from traindyn.nets.joma import minibatch
from traindyn.nets.scan_snap import YZTransformer, cross_entropy
from traindyn.nets.transformer import Transformer, next_token_loss
from traindyn.validate import Setting, report
from traindyn.validate.reversal.closed_forms import chain_of_thought
from traindyn.validate.reversal.gpt import diagonal_score

jax.config.update("jax_enable_x64", True)  # the comparisons below are tighter than float32 resolves
plt.rcParams.update({"figure.dpi": 75, "axes.grid": True, "grid.alpha": 0.25, "legend.fontsize": 8.5})


# %% [markdown]
# ## 1. One layer, in closed form
#
# A sentence has three tokens: first entity, relation, last entity. In the one-layer transformer of Scan and Snap the
# relation is the query and the first entity the whole context, so that attention has nothing to choose: the gradient of
# its logits $Z$ is zero, the logits of the last entity are the first entity's row of the decoder $Y$, and *the relation
# is ignored*. Each row sees only the sentences that begin with its entity. Of N training sentences, let k begin with A,
# each with its own last entity, and let D be the logit of these less that of the other M − k tokens. Then
#
# $$\dot D = \frac{\eta M/N}{k e^D + M - k} \quad\Longrightarrow\quad
#   k\,(e^D - 1) + (M - k)\,D = M \eta t/N, \qquad p = \frac{e^D}{k e^D + M - k}.$$
#
# Nine pairs, six of them trained in both directions, three in one; the other direction of these three is the test. No
# sentence begins with B then, its row stays zero, and $p(A|B{\leftarrow}) = 1/M$ at all times.

# %%
vocabulary, eta = 120, 0.5
data = nets.reversal(9, 6, vocabulary=vocabulary)
number = len(data.train)
batch = nets.contexts(data.train, vocabulary)
start = YZTransformer(vocabulary, 2, vocabulary)
ts = np.geomspace(0.1, 1e4, 31) * number / eta


def probabilities(models, sentences):
    """p of the last entity of each sentence, for each of `models`."""
    asked = nets.contexts(sentences, vocabulary)
    logits = jax.vmap(lambda model: jax.vmap(model)(asked.x, asked.query))(models)
    return jax.nn.softmax(logits)[:, jnp.arange(len(sentences)), sentences[:, 2]]


flow = GradientFlow(jax.tree_util.Partial(cross_entropy, batch=batch), start.rates(eta_y=eta))
models = solve(flow, start, ts).ys  # the real network, through autodiff
trained, reverse = (jax.jit(probabilities)(models, sentences) for sentences in (data.train, data.test))

row = reversal.OneLayer(vocabulary, number, eta)
gap = row.exact(0.0, ts)
print(f"trained p, network − closed form: {jnp.max(jnp.abs(trained - row.seen(gap)[:, None])):.0e}")
print(f"M p of the reversals: {vocabulary * reverse.min()} to {vocabulary * reverse.max()}")
print(f"largest |Z|: {jnp.max(jnp.abs(models.z))}")

# %% [markdown]
# Stochastic gradient descent with one sentence a step has a closed form too: a row that was visited s times has
# $D = M h^*(s)$, with $h^*(s) = h^*(s-1) + \eta/(M - 1 + e^{M h^*(s-1)})$.

# %%
steps, every = 1000, 40
draw = minibatch(batch, 1)
run = train(start, cross_entropy, draw, optax.sgd(eta), steps, key=jax.random.key(0), observe=lambda m: m, every=every)
drawn = jax.vmap(lambda n: draw(jax.random.fold_in(jax.random.key(0), n)).x[0])(jnp.arange(steps)) @ batch.x.T
visits = np.concatenate([np.zeros((1, number)), np.cumsum(drawn, axis=0)])[run.steps].astype(int)
by_visits = np.asarray(reversal.OneLayer(vocabulary, 1, eta).seen(reversal.OneLayer(vocabulary, 1, eta).visits(steps)))
descent = jax.jit(probabilities)(run.observed, data.train)
print(f"SGD, network − h*: {np.max(np.abs(descent - by_visits[visits])):.0e}")

fig, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
axes[0].loglog(eta * ts / number, row.seen(gap), "k-", label="trained, closed form")
axes[0].loglog(eta * ts / number, trained[:, 0], "o", ms=4, label="trained, gradient flow of the network")
axes[0].loglog(eta * ts / number, reverse[:, 0], "o", ms=4, label="its reversal: 1/M")
axes[0].set(xlabel="η t/N, updates a sentence", ylabel="p of the last entity", title="gradient flow")
for i, colour in enumerate(plt.get_cmap("viridis")([0.0, 0.45, 0.9])):
    axes[1].plot(run.steps, descent[:, i], "o", ms=4, color=colour, label=None if i else "network")
    axes[1].plot(run.steps, by_visits[visits[:, i]], "-", lw=1.2, color=colour, label=None if i else "h* of its visits")
axes[1].set(xlabel="step", ylabel="p of the last entity", title="SGD, one sentence a step: three sentences")
for axis in axes:
    axis.legend()
plt.show()

# %% [markdown]
# ## 2. Why chain of thought is needed
#
# Train A → B and B → C for all triples and A ⇝ C for some. The same row of $Y$ answers both A → and A ⇝. For an A whose
# conclusion is *not* trained, B is the only target (k = 1): in two steps the network gets from A to C with $p^2 \to 1$,
# and directly its $p(C|A{⇝})$ even falls, from 1/M to zero. For an A whose conclusion *is* trained the row has two
# targets (k = 2): B and C end at ½ each. The paper's theorem is about the first case; the limit ½ is the price of a
# layer that cannot see the relation.

# %%
chain = nets.chain_of_thought(6, 3, vocabulary=vocabulary)
chain_flow = GradientFlow(
    jax.tree_util.Partial(cross_entropy, batch=nets.contexts(chain.train, vocabulary)), start.rates(eta_y=eta)
)
p = np.asarray(jax.jit(probabilities)(solve(chain_flow, start, ts).ys, jnp.concatenate([chain.train, chain.test])))
first, second, taught, untaught = p[:, :6], p[:, 6:12], p[:, 12:15], p[:, 15:]
two = reversal.OneLayer(vocabulary, len(chain.train), eta, targets=2)
shared = two.seen(two.exact(0.0, ts))

fig, axis = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
x = eta * ts / len(chain.train)
axis.loglog(x, (first * second)[:, -1], "o", ms=4, label="untaught, in two steps A → B → C")
axis.loglog(x, taught[:, 0], "o", ms=4, label="taught, directly A ⇝ C")
axis.loglog(x, untaught[:, -1], "o", ms=4, label="untaught, directly A ⇝ C")
for curve in (row.seen(gap) ** 2, shared, row.unseen(gap)):
    axis.loglog(x, curve, "k-", lw=1)
axis.set(xlabel="η t/N, updates a sentence", ylabel="p of C", title="points: network, lines: closed forms")
axis.legend()
plt.show()
print(f"p(C|A⇝) at the end: {taught[-1, 0]:.5f} where taught, {untaught[-1, -1]:.0e} where not")

# %% [markdown]
# ## 3. The bilinear model: how much leaks through the embeddings
#
# $p_\Theta(y|x) \propto \exp(v_x^\top \Theta v_y)$ with random token vectors in $d$ dimensions. These are correlated,
# so that what is learned for one pair of tokens leaks to others. Gradient flow stays in
#
# $$\Theta = \Theta_0 + V^\top C V, \qquad \dot C = \tfrac1N \sum_{(x,y)} e_x (e_y - p(\cdot|x))^\top, \qquad
#   \text{logits} = V \Theta_0 V^\top + G C G, \quad G = V V^\top,$$
#
# a small matrix for any width. Theorem 1 bounds the leak: $L^{rev}_t/L^{rev}_0 \ge (L_t/L_0)^\varepsilon$ with any ε
# for d large enough. `separation_exponent` measures the least ε of a run. First, though, the reduction against
# gradient descent on Θ itself: ten pairs, the reversal of the last one untrained.

# %%
tokens = 40
sentences = nets.reversal(10, 9, vocabulary=tokens)
pairs, test = sentences.train[:, ::2], sentences.test[:, ::2]
updates = np.concatenate([[0.0], np.geomspace(0.01, 3000, 40)])  # t/N
widths, rng = np.array([25, 100, 400, 1600]), np.random.default_rng(0)
draws = [jnp.asarray(rng.normal(size=(16, tokens, width)) / np.sqrt(width)) for width in widths]


@jax.jit
@jax.vmap
def separate(vectors, symmetric):
    """L, L_rev along the flow, the ε of the run, and the logits at the end."""
    flow = reversal.Bilinear(vectors @ vectors.T, pairs, symmetric=symmetric)
    c = solve(flow, jnp.zeros_like(flow.gram), updates * len(pairs), rtol=1e-8, atol=1e-10).ys
    loss, reverse = jax.vmap(flow.loss)(c), jax.vmap(lambda c: flow.loss(c, test))(c)
    return loss, reverse, reversal.separation_exponent(loss, reverse), flow.logits(c[-1])


free = [separate(vectors, jnp.zeros(16, bool)) for vectors in draws]
symmetric = separate(draws[-1], jnp.ones(16, bool))

start_theta, steps = nets.Bilinear(draws[0][0]), 5700  # the first draw in 25 dimensions, learning rate 1
network_losses = lambda m: (nets.pair_loss(m, pairs), nets.pair_loss(m, test))
run = train(start_theta, nets.pair_loss, pairs, optax.sgd(1.0), steps, observe=network_losses, every=57)

fig, axes = plt.subplots(1, 3, figsize=(15, 3.8), layout="constrained")
for name, flow_curve, network, colour in zip(("L", "L_rev"), free[0], run.observed, ("C0", "C1"), strict=False):
    axes[0].loglog(updates[10:], flow_curve[0, 10:], "-", color=colour, label=f"{name}, flow of C")
    axes[0].loglog(run.steps[1::4] / len(pairs), network[1::4], "o", ms=4, color=colour, label=f"{name}, descent on Θ")
axes[0].set(xlabel="t/N, updates a pair", ylabel="cross-entropy", title="d = 25, one draw")
axes[1].loglog(widths, [run[2].max() for run in free], "o", label="largest of 16 draws")
axes[1].loglog(widths, [run[2].mean() for run in free], "o", label="mean")
axes[1].loglog(widths, 2.0 / np.sqrt(widths), "k-", lw=1, label="slope −½")
axes[1].set(xlabel="width d", ylabel="ε", title="the least ε")
axes[2].loglog(updates[1:], free[-1][0].mean(0)[1:], label="L")
axes[2].loglog(updates[1:], free[-1][1].mean(0)[1:], label="L_rev")
axes[2].loglog(updates[1:], symmetric[1].mean(0)[1:], "r:", label="L_rev, Θ kept symmetric")
axes[2].set(xlabel="t/N, updates a pair", ylabel="cross-entropy", title="d = 1600, mean of 16 draws")
for axis in axes:
    axis.legend()
plt.show()
ends = free[0][1][:, -1]
worse = int((ends > np.log(tokens)).sum())
print(f"d = 25: L_rev ends above ln {tokens} in {worse} of 16 draws, at {ends.mean():.1f} on average")

# %% [markdown]
# In 25 dimensions the leak makes the reversal *worse* in most draws. In 1600 there is almost none. The dotted line
# names the cause: restrict Θ to symmetric matrices, change nothing else, and the reversal is learned with the rest. The
# logits of all tokens at the end (rows: token, columns: next token):

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
names = [f"{letter}{i}" for letter in "AB" for i in range(1, 11)]
for axis, logits, title in zip(axes, (free[-1][3][0], symmetric[3][0]), ("free Θ", "symmetric Θ"), strict=True):
    image = axis.imshow(logits[2:22, 2:22], vmin=0, vmax=float(free[-1][3][0].max()))
    axis.set_xticks(range(20), names, rotation=90, fontsize=7)
    axis.set_yticks(range(20), names, fontsize=7)
    axis.set(title=f"{title}: (B10, A10) was never trained")
    axis.grid(False)
fig.colorbar(image, ax=axes, label="logit")
plt.show()

# %% [markdown]
# ## 4. A small GPT
#
# Does it hold in a transformer with residual stream, positions, LayerNorm, trained embeddings and AdamW? Here is a
# GPT of one layer (the claims train two) on 20 pairs both ways and 10 one way. We feed it the first entity alone and
# read the logits of the last entities: a bright diagonal means that the pair is stored. GPT-2 *ties* the decoder to
# the embeddings; we train both kinds.

# %%
gpt_data = nets.reversal(30, 20, vocabulary=62)
everything = jnp.concatenate([gpt_data.train, gpt_data.test])
last_token_loss = functools.partial(next_token_loss, last_only=True)


@functools.partial(jax.jit, static_argnames="tied")
def train_gpts(keys, tied):
    def one(key):
        options = dict(layers=1, width=64, heads=4, norm="pre", positions="learned", length=2, activation=jax.nn.gelu)
        model = Transformer(62, **options, tied=tied, dtype=jnp.float32, key=key)
        optimiser, observe = optax.flatten(optax.adamw(3e-3)), lambda m: nets.recall(m, everything)
        return train(model, last_token_loss, gpt_data.train, optimiser, 300, observe=observe, every=15).observed

    return jax.vmap(one)(keys)


recalled = {tied: train_gpts(jax.random.split(jax.random.key(1), 4), tied) for tied in (True, False)}

fig, axes = plt.subplots(1, 3, figsize=(15, 4), layout="constrained")
for tied, style in ((True, "-"), (False, "--")):
    loss, name = np.asarray(recalled[tied].loss).mean(0), "tied" if tied else "not tied"
    axes[0].plot(15 * np.arange(21), loss[:, :50].mean(1), "C0" + style, label=f"train, {name}")
    axes[0].plot(15 * np.arange(21), loss[:, 50:].mean(1), "C1" + style, label=f"test, {name}")
axes[0].axhline(np.log(62), color="k", lw=1, label="ln V")
axes[0].set(xlabel="step", ylabel="loss of the last entity (nats)", title="mean of 4 seeds")
axes[0].legend()
for axis, rows, title in zip(axes[1:], (slice(40, 50), slice(50, 60)), ("direction seen", "unseen"), strict=True):
    weights = recalled[True].weights[0, -1][rows][:, everything[rows, 2]]
    image = axis.imshow(weights, vmin=-4, vmax=8)
    axis.set(xlabel="last entity", ylabel="first entity", title=f"{title}, tied, one seed")
    axis.grid(False)
fig.colorbar(image, ax=axes[1:], label="logit after the first entity alone")
plt.show()

for tied, recall in recalled.items():
    weights = np.asarray(recall.weights[:, -1])
    among = lambda rows, weights=weights: weights[:, rows][:, :, everything[rows, 2]]
    seen, unseen = (diagonal_score(among(rows)).round(1) for rows in (slice(40, 50), slice(50, 60)))
    print(f"{'tied' if tied else 'not tied'}: score of the diagonal, by seed: seen {seen}, unseen {unseen}")

# %% [markdown]
# The test loss ends above that of a uniform guess: the network is sure of wrong answers. With tied embeddings a trace
# of the reversal is left, about one standard deviation, and without them none. One matrix then serves a token both as
# first and as last entity, which may be a step towards the symmetric weights of section 3; it does not lift the curse.

# %% [markdown]
# ## 5. Claims
#
# The same comparisons as checks that can fail, each with a **control** that must be refuted: the same check on a
# prediction that is wrong in one place. `traindyn verify reversal` runs them all.

# %%
evidence = chain_of_thought.check(Setting("smoke"))
print(chain_of_thought.statement)
for name, row in evidence.rows.items():
    print(f"  {name}: {row.measured_text}, needs {row.bound_text}: {row.verdict}")
print("control, which must be refuted:")
for name, row in evidence.control.items():
    print(f"  {name}: {row.measured_text}, needs {row.bound_text}: {row.verdict}")
report.figure(evidence.panels, chain_of_thought.name)
