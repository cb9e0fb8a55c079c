"""Networks as they are trained: the three stages, delayed generalisation against weight decay, repulsion of nodes."""

import numpy as np
from jaxtyping import Float

from ...dynamics.groups import cyclic
from ...dynamics.representations import irreps
from ...nets import grokking as nets
from ..claim import Evidence, Setting, claim
from ..panels import heatmap, panel
from ..rows import identity, statistic
from ._shared import nontrivial

RECIPE = (
    "full batches, Adam with coupled L2, x², mean squared error over centred outputs, initial weights of torch's linear"
    " layers, float32"
)


def first(steps: np.ndarray, curve: Float[np.ndarray, "*batch records"], level: float) -> Float[np.ndarray, "*batch"]:
    """The step of the first record at which a curve has reached a level; NaN if none has."""
    reached = curve >= level
    return np.where(reached.any(axis=-1), steps[np.argmax(reached, axis=-1)], np.nan)


# CONTROL: no weight decay
@claim(
    "I: the output layer fits the pairs trained on before features move. II: G_F turns to Ỹ Ỹᵀ F̃ and grows by"
    " a third or more, nodes climb E, and nothing is general yet. III: G_F fades and the pairs left out are learned.",
    source="Fig. 3 (M = 71, 2048 nodes, 2016 pairs, weight decay 2e-4 against none)",
    assumptions=(
        RECIPE,
        "learning rate 1e-3, which the paper leaves open",
        "one seed; smoke: Z_23, 512 nodes, 238 pairs",
    ),
)
def three_stages(setting: Setting) -> Evidence:
    order, nodes, fraction = setting.pick(smoke=(23, 512, 0.45), laptop=(71, 2048, 0.4), paper=(71, 2048, 0.4))
    decay = setting.pick(smoke=1e-3, laptop=2e-4, paper=2e-4)
    steps, every = setting.pick(smoke=(600, 10), laptop=(210, 5), paper=(400, 2))
    group = cyclic(order)
    projectors = np.stack([r.projector for r in nontrivial(irreps(group))])
    run = nets.train_runs(
        group.table,
        fractions=[fraction],
        seeds=[setting.seed],
        learning_rates=[1e-3],
        weight_decays=[decay, 0.0],
        nodes=nodes,
        steps=steps,
        every=every,
        observe=nets.stages(projectors),
    )
    at = np.asarray(run.steps)
    pick = lambda x, i: np.asarray(x)[0, 0, i, 0]
    (train, without_train), (test, without) = (
        [pick(x, i) for i in (0, 1)] for x in (run.train_accuracy, run.test_accuracy)
    )
    seen = run.observed
    size, cosine, share, energy = (pick(x, 0) for x in (seen.gradient_norm, seen.alignment, seen.content, seen.energy))
    top = share.max(axis=2).mean(axis=1)  # of the nodes' mass, in their largest representation
    peak = int(size.argmax())
    fitted, general = float(first(at, train, 0.99)), float(first(at, test, 0.99))
    at_fit = int(np.argmax(train >= 0.99))
    marks = {"I": 0.0, "II": fitted, "III": float(at[peak])}
    half, aligned = float(first(at, test, 0.5)), np.flatnonzero(cosine > 0.8)
    pairs = fraction * order**2
    fourier, single = fraction**2 * order / 4, order * fraction * (1 - fraction) / 2
    span = f"from step {at[aligned[0]]} to {at[aligned[-1]]}" if aligned.size else "never"
    scaled = lambda x: x / np.max(x)
    return Evidence(
        rows={
            "steps to accuracy 0.99, trained on over left out": identity(fitted / general, 0.25),
            "I: rise of the largest representation's share": identity(top[at_fit] - top[0], 0.02),
            "II: 1 − the largest cos(G_F, Ỹ Ỹᵀ F̃)": identity(1 - cosine.max(), 0.15),
            "II: |G_F| at the start over its peak": identity(size[0] / size[peak], 0.75),
            "II: mean energy of nodes at the start over that at the peak": identity(
                energy[0].mean() / energy[peak].mean(), 0.5
            ),
            "II: accuracy on the pairs left out at that peak": identity(test[peak], 0.1),
            "III: |G_F| at the end over its peak": identity(size[-1] / size[peak], 0.5),
            "III: 1 − accuracy on the pairs left out at the end": identity(1 - test[-1], 0.01),
        },
        control={"1 − accuracy on the pairs left out, no decay": identity(1 - without[-1], 0.01)},
        panels=[
            panel(
                f"delayed generalisation, Z{order}, {pairs:.0f} pairs",
                ("step", at),
                y="accuracy",
                observed={"trained on": train, "left out": test, "left out, no decay": without},
                marks=marks,
            ),
            panel(
                "the gradient that the output layer sends back",
                ("step", at),
                observed={"cos(G_F, Ỹ Ỹᵀ F̃)": cosine, "|G_F| over its peak": scaled(size)},
                predicted={"Lemma 1": np.ones(len(at))},
                marks=marks,
            ),
            panel(
                "energy of nodes on their pairs",
                ("step", at),
                y="E(w/‖w‖)",
                observed={"mean": energy.mean(axis=1), "largest": energy.max(axis=1)},
                predicted={"one frequency, p²M/4": np.full(len(at), fourier)},
                control={"one element, Mp(1−p)/2": np.full(len(at), single)},
                marks=marks,
            ),
            _features(share[-1], order),
            panel(
                "mass in the largest representation",
                ("step", at),
                y="share, mean over nodes",
                observed={
                    f"decay {decay:g}": top,
                    "no decay": pick(seen.content, 1).max(axis=2).mean(axis=1),
                },
                marks=marks,
            ),
        ],
        remarks=[
            f"Accuracy 0.99 at step {fitted:.0f} (trained on) and {general:.0f} (left out; ½ at {half:.0f}), to {every}"
            f" steps. |G_F| {size[0]:.1f}, {size[peak]:.1f} at step {at[peak]}, {size[-1]:.1f} at the end; its cosine"
            f" is above 0.8 {span}. Share of the largest representation"
            f" {top[0]:.2f} to {top[-1]:.2f}. Without decay: {without_train[-1]:.3f} and {without[-1]:.3f} at the end.",
            f"Largest energy of a node {energy[-1].max():.2f}, mean {energy[-1].mean():.2f}. Averages over splits:"
            f" {fourier:.2f} for one frequency, {single:.2f} for a single element.",
        ],
    )


def _features(share: Float[np.ndarray, "nodes classes"], order: int):
    """Trained nodes, by their largest representation, beside the predicted: all mass in one."""
    largest = np.lexsort((-share.max(axis=1), share.argmax(axis=1)))
    shown = largest[:: max(len(largest) // 256, 1)]
    return heatmap(
        f"features, Z{order}: a node has one frequency (theory)",
        ("node, by frequency", np.arange(len(shown))),
        ("frequency", np.arange(1, share.shape[1] + 1)),
        share[shown].T,
        z_label="share of ‖w‖²",
        limits=(0.0, 1.0),
    )


# CONTROL: no decay; a decay of 1e-2, under which nothing is learned
@claim(
    "Pairs trained on are learned within 30 steps at any decay that is not too large; those left out at 1000"
    " to 1700 (decay 2e-4), earlier the larger the decay, and without decay never: the decay sends the gradient back.",
    source="Fig. 3 and section 3, at M = 23, 238 pairs, 512 nodes",
    assumptions=(RECIPE, "learning rate 1e-3, 5 seeds", "smoke: Z_11, 85 pairs, 128 nodes, rate 2e-3, decay 1e-3"),
)
def weight_decay(setting: Setting) -> Evidence:
    smoke = setting.scale == "smoke"
    order, fraction, nodes = (11, 0.7, 128) if smoke else (23, 0.45, 512)
    decays = [1e-3, 3e-3, 0.0, 0.1] if smoke else [2e-4, 5e-5, 1e-3, 0.0, 1e-2]
    steps, every = setting.pick(smoke=(1200, 10), laptop=(4000, 5), paper=(4000, 2))
    seeds = [15 * setting.seed + s for s in range(setting.pick(smoke=3, laptop=5, paper=15))]
    run = nets.train_runs(
        cyclic(order).table,
        fractions=[fraction],
        seeds=seeds,
        learning_rates=[2e-3 if smoke else 1e-3],
        weight_decays=decays,
        nodes=nodes,
        steps=steps,
        every=every,
    )
    at, train, test = np.asarray(run.steps), *(np.asarray(x)[0, 0] for x in (run.train_accuracy, run.test_accuracy))
    fitted, half, general = first(at, train, 0.99), first(at, test, 0.5), first(at, test, 0.99)
    settled = [i for i, d in enumerate(decays) if 0 < d < (0.1 if smoke else 1e-2)]
    by_decay = sorted(settled, key=lambda i: decays[i])
    ratios = half[by_decay[:-1]] / half[by_decay[1:]]  # of each decay over the next larger
    used = np.array([decays[i] for i in by_decay])
    none, most = decays.index(0.0), int(np.argmax(decays))
    low, high = (400, 1200) if smoke else (1000, 1700)
    exponent = -np.polyfit(np.log(used), np.log(np.nanmean(half[by_decay], axis=1)), 1)[0]
    return Evidence(
        rows={
            f"step of accuracy 0.99, left out, decay {decays[0]:g}, at least": statistic(general[0], at_least=low),
            "at most": statistic(general[0], at_most=high),
            "step of accuracy 0.99, trained on": statistic(fitted[settled], at_most=60 if smoke else 30),
            "step of accuracy ½, left out: each decay over the next larger": statistic(ratios, at_least=1),
        },
        control={
            "accuracy, left out, no decay": statistic(test[none, :, -1], at_least=0.5),
            f"accuracy, trained on, decay {decays[most]:g}": statistic(train[most, :, -1], at_least=0.5),
        },
        panels=[
            panel(
                f"pairs left out, Z{order}",
                ("step", at),
                y="accuracy, mean of seeds",
                observed={f"decay {decays[i]:g}": test[i].mean(axis=0) for i in [*by_decay, none, most]},
                log="x",
            ),
            panel(
                "when they are learned",
                ("weight decay", used),
                y="step of accuracy ½",
                observed={"seeds": half[by_decay]},
                control={"1/η": half[by_decay[0]].mean() * used[0] / used},
                log="xy",
            ),
        ],
        remarks=[
            "Steps of accuracy 0.99 (trained on), ½ and 0.99 (left out), least to largest of seeds: "
            + "; ".join(
                f"decay {d:g}: {_range(fitted[i])}, {_range(half[i])}, {_range(general[i])}"
                for i, d in enumerate(decays)
            )
            + f". Accuracy ½ comes at decay^−{exponent:.2f}, not as 1/η.",
            f"At the end, no decay: {test[none, :, -1].max():.3f} of the pairs left out at most; decay"
            f" {decays[most]:g}: {train[most, :, -1].max():.2f} of those trained on.",
        ],
    )  # fmt: skip


def _range(values: np.ndarray) -> str:
    known = values[np.isfinite(values)]
    if not len(known):
        return "never"
    return f"{known.min():.0f}–{known.max():.0f}" + (" (not all)" if len(known) < len(values) else "")


# CONTROL: the 200 least similar pairs
@claim(
    "In trained networks 95 % or more of the 200 most similar pairs of nodes push each other away, b_jk"
    " having the sign opposite to f_jᵀf_k; and nodes become more alike.",
    source="Theorem 6 with the raw similarity, which the paper uses",
    assumptions=(RECIPE, "M = 23, 238 pairs, 512 nodes, rate 1e-3, decay 2e-4, η = n·decay/2", "3 seeds, 6 times"),
)
def trained_repulsion(setting: Setting) -> Evidence:
    smoke = setting.scale == "smoke"
    order, fraction, nodes, decay = (11, 0.7, 128, 1e-3) if smoke else (23, 0.45, 512, 2e-4)
    steps = setting.pick(smoke=600, laptop=1500, paper=2000)
    seeds = [3 * setting.seed + s for s in range(3)]
    run = nets.train_runs(
        cyclic(order).table,
        fractions=[fraction],
        seeds=seeds,
        learning_rates=[2e-3 if smoke else 1e-3],
        weight_decays=[decay],
        nodes=nodes,
        steps=steps,
        every=steps // 6,
        observe=lambda model, sample: nets.features(model, sample),
    )
    features = np.asarray(run.observed, float)[0, 0, 0, :, 1:]  # (seeds, times, pairs, nodes)
    agree = np.empty((2, len(seeds), features.shape[1]))
    alike = np.empty(features.shape[:2])
    for place in np.ndindex(*features.shape[:2]):
        agree[:, place[0], place[1]], alike[place] = _opposed(features[place], decay)
    at = np.asarray(run.steps)[1:]
    return Evidence(
        rows={
            "most similar pairs with opposite sign, mean over times": statistic(agree[0].mean(axis=1), at_least=0.95),
            "their |cosine| at the end less that at the first time": statistic(alike[:, -1] - alike[:, 0], at_least=0),
        },
        control={"least similar pairs with opposite sign": statistic(agree[1].mean(axis=1), at_least=0.95)},
        panels=[
            panel(
                "signs opposite to similarity",
                ("step", at),
                y="share of 200 pairs",
                observed={"most similar": agree[0].T},
                control={"least similar": agree[1].T},
            ),
            panel("similarity", ("step", at), y="median |cosine| of the most similar", observed={"seeds": alike.T}),
        ],
    )


def _opposed(features: Float[np.ndarray, "pairs nodes"], decay: float) -> tuple[Float[np.ndarray, " 2"], float]:
    """Of the 200 most and least similar pairs of nodes the share whose b has the opposite sign; the median cosine."""
    centred = features - features.mean(axis=0)
    eta = len(features) * decay / 2
    gram = centred.T @ centred
    inverse = np.linalg.inv(gram + eta * np.eye(len(gram)))
    upper = np.triu_indices(len(gram), 1)
    size = np.sqrt(np.diag(gram))
    cosine = (gram / np.maximum(np.outer(size, size), 1e-300))[upper]
    order = np.argsort(np.abs(cosine))
    opposed = np.sign(inverse[upper]) == -np.sign(cosine)
    return np.array([opposed[order[-200:]].mean(), opposed[order[:200]].mean()]), float(
        np.median(np.abs(cosine[order[-200:]]))
    )
