"""Networks as they are trained: the three stages, delayed generalisation against weight decay, repulsion of nodes."""

from functools import partial

import numpy as np

from ...dynamics.groups import cyclic
from ...dynamics.representations import irreps
from ...nets import grokking as nets
from ...nets.pair_runs import PairRuns, train_pairs
from ..checks import at_least, at_most, evidence, mean
from ..claim import Evidence, Setting, claim
from ..panels import heatmap, panel
from ._shared import RECIPE, first, nontrivial


@claim(
    "I: the output layer fits the pairs trained on before features move. II: G_F turns to Ỹ Ỹᵀ F̃ and grows by a third"
    " or more, and nodes climb E, before held-out pairs are learned. III: G_F fades and they are learned.",
    source="Fig. 3 (M = 71, 2048 nodes, 2016 pairs, weight decay 2e-4 against none)",
    assumptions=(
        RECIPE,
        "learning rate 1e-3, which the paper leaves open",
        "one seed; smoke: Z_23, 512 nodes, 238 pairs",
    ),
    tex=r"V \to V_r,\ \mathrm{then}\ G_F \propto \tilde Y \tilde Y^\top \tilde F,\ \mathrm{then}\ G_F \to 0",
)
def three_stages(setting: Setting) -> Evidence:
    order, nodes, fraction = setting.pick(smoke=(23, 512, 0.45), laptop=(71, 2048, 0.4), paper=(71, 2048, 0.4))
    decay = setting.pick(smoke=1e-3, laptop=2e-4, paper=2e-4)
    steps, every = setting.pick(smoke=(600, 10), laptop=(210, 5), paper=(400, 2))
    options = {"learning_rates": [1e-3], "weight_decays": [decay, 0.0], "nodes": nodes, "steps": steps, "every": every}
    options["observe"] = nets.stages(np.stack([r.projector for r in nontrivial(irreps(cyclic(order)))]))
    run = train_pairs(cyclic(order).table, fractions=[fraction], seeds=[setting.seed], fan_in=2 * order, **options)
    (train, train_without), (test, without) = np.stack([run.train_accuracy, run.test_accuracy])[:, 0, 0, :, 0]
    at, pick = np.asarray(run.steps), lambda name: np.asarray(getattr(run.observed, name))[0, 0, 0, 0]
    size, cosine, content, energy = map(pick, ("gradient_norm", "alignment", "content", "energy"))
    top = content.max(axis=2).mean(axis=1)  # of the nodes' mass, in their largest representation
    aligned, peak, at_fit = at[cosine > 0.8], int(size.argmax()), int(np.argmax(train >= 0.99))
    fitted, half, general = (float(first(at, x, level)) for x, level in ((train, 0.99), (test, 0.5), (test, 0.99)))
    draw = partial(panel, x=("step", at), marks={"I": 0.0, "II": fitted, "III": float(at[peak])})
    delayed = f"delayed generalisation, Z{order}, {fraction * order**2:.0f} pairs"
    known, never = {"trained on": train, "held out": test}, {"held out, no decay": without}
    sent, lemma = {"cos(G_F, Ỹ Ỹᵀ F̃)": cosine, "|G_F| over its peak": size / size[peak]}, {"Lemma 1": np.ones(len(at))}
    largest = np.lexsort((-content[-1].max(axis=1), content[-1].argmax(axis=1)))
    shown = content[-1][largest[:: max(len(largest) // 256, 1)]]  # of the nodes, by their largest representation
    axes = ("node, by frequency", np.arange(len(shown))), ("frequency", np.arange(1, shown.shape[1] + 1))
    rise, mean_energy, limits = top[at_fit] - top[0], energy.mean(axis=1), (0.0, 1.0)
    title = f"features, Z{order}: a node has one frequency (theory)"
    return evidence(
        at_most("steps to accuracy 0.99, trained on over held out", fitted / general, 0.25),
        at_most("I: rise of the fraction in the largest representation", rise, 0.02),
        at_least("II: the largest cos(G_F, Ỹ Ỹᵀ F̃)", cosine.max(), 0.85),
        at_most("II: |G_F| at the start over its peak", size[0] / size[peak], 0.75),
        at_most("II: mean energy of nodes at the start over that at the peak", mean_energy[0] / mean_energy[peak], 0.5),
        at_most("II: held-out accuracy at that peak", test[peak], 0.1),
        at_most("III: |G_F| at the end over its peak", size[-1] / size[peak], 0.5),
        at_least("III: held-out accuracy at the end", test[-1], 0.99, {"no decay": without[-1]}),
        panels=[
            draw(delayed, y="accuracy", observed=known, control=never),
            draw("the gradient that the output layer sends back", observed=sent, predicted=lemma),
            heatmap(title, *axes, shown.T, z_label="fraction of ‖w‖²", limits=limits),
        ],
        remarks=[
            f"Accuracy 0.99 at step {fitted:.0f} (trained on) and {general:.0f} (held out; ½ at {half:.0f}), to {every}"
            f" steps. |G_F| {size[0]:.1f}, {size[peak]:.1f} at step {at[peak]}, {size[-1]:.1f} at the end; its cosine"
            f" is above 0.8 from step {aligned.min(initial=steps)} to {aligned.max(initial=0)}. Fraction of the largest"
            f" representation {top[0]:.2f} to {top[-1]:.2f}. At the end without decay"
            f" {train_without[-1]:.3f} and {without[-1]:.3f}.",
            f"Largest energy of a node {energy[-1].max():.2f}, mean {mean_energy[-1]:.2f}. Averages over splits:"
            f" one frequency {fraction**2 * order / 4:.2f}, one element {order * fraction * (1 - fraction) / 2:.2f}.",
        ],
    )


def _small(setting: Setting, decays: list[float], seeds: list[int], steps: int, every: int, **options) -> PairRuns:
    """Z_23 with 238 pairs and 512 nodes; at smoke Z_11 with 85 pairs and 128 nodes."""
    whole = 23, 0.45, 512, 1e-3
    order, fraction, nodes, rate = setting.pick(smoke=(11, 0.7, 128, 2e-3), laptop=whole, paper=whole)
    options |= {"fractions": [fraction], "learning_rates": [rate], "weight_decays": decays, "seeds": seeds}
    return train_pairs(cyclic(order).table, nodes=nodes, fan_in=2 * order, steps=steps, every=every, **options)


@claim(
    "Pairs trained on are learned within 30 steps at decays of 5e-5 to 1e-3. Held-out pairs are learned at 1000 to 1700"
    " (decay 2e-4), earlier the larger the decay, and without decay never: the decay sends the gradient back.",
    source="Fig. 3 and section 3, at M = 23, 238 pairs, 512 nodes",
    assumptions=(
        RECIPE,
        "learning rate 1e-3, 4 seeds, decays 5e-5 to 1e-3; without decay, to step 3500",
        "smoke: Z_11, 85 pairs, 128 nodes, rate 2e-3, decays 1e-3 and 3e-3, 60 steps in place of 30",
    ),
    tex=r"\eta = 0\ \Rightarrow\ G_F \to 0\ \mathrm{and\ held\ out\ pairs\ are\ never\ learned}",
)
def weight_decay(setting: Setting) -> Evidence:
    # The first is the one whose steps are bounded; no decay, and one under which nothing is learned.
    whole = [2e-4, 5e-5, 1e-3, 0.0, 1e-2], (1000, 1700, 30)
    small = [1e-3, 3e-3, 0.0, 0.1], (400, 1200, 60)
    decays, (low, high, soon) = setting.pick(smoke=small, laptop=whole, paper=whole)
    steps, every = setting.pick(smoke=(1200, 10), laptop=(3500, 5), paper=(4000, 2))
    seeds = [15 * setting.seed + s for s in range(setting.pick(smoke=3, laptop=4, paper=15))]
    run = _small(setting, decays, seeds, steps, every)
    at, train, test = np.asarray(run.steps), *(np.asarray(x)[0, 0] for x in (run.train_accuracy, run.test_accuracy))
    fitted, half, general = first(at, train, 0.99), first(at, test, 0.5), first(at, test, 0.99)
    none, most = decays.index(0.0), int(np.argmax(decays))
    used = sorted(set(range(len(decays))) - {none, most}, key=lambda i: decays[i])
    by_decay, of_half = np.array(decays)[used], half[used]
    exponent = -np.polyfit(np.log(by_decay), np.log(np.nanmean(of_half, axis=1)), 1)[0]
    named, too_much = f"step of accuracy 0.99, held out, decay {decays[0]:g}", f"decay {decays[most]:g}"
    slower = "step of accuracy ½, held out: each decay over the next larger"
    never, unfit = {"no decay": test[none, :, -1]}, {too_much: train[most, :, -1]}
    curves = lambda which: {f"decay {decays[i]:g}": test[i].mean(axis=0) for i in which}
    learned = {"observed": curves(used), "control": curves((none, most))}
    inverse = {"1/η": of_half[0].mean() * by_decay[0] / by_decay}
    times = np.nan_to_num(np.stack([fitted, half, general], axis=1), nan=np.inf)
    ends = (", ".join(f"{own.min():.0f}–{own.max():.0f}" for own in three) for three in times)
    told = "; ".join(f"decay {d:g}: {three}" for d, three in zip(decays, ends, strict=True)).replace("inf–inf", "never")
    axis, y = ("weight decay", by_decay), "step of accuracy ½"
    return evidence(
        mean(f"{named}, from below", general[0], at_least=low),
        mean(f"{named}, from above", general[0], at_most=high),
        mean("step of accuracy 0.99, trained on", fitted[used], at_most=soon),
        mean(slower, of_half[:-1] / of_half[1:], at_least=1),
        mean("accuracy at the end, held out", test[used, :, -1], never, at_least=0.95),
        mean("accuracy at the end, trained on", train[used, :, -1], unfit, at_least=0.95),
        panels=[
            panel("held-out pairs", ("step", at), y="accuracy, seed-averaged", **learned, log="x"),
            panel("when they are learned", axis, y=y, observed={"seeds": of_half}, control=inverse, log="xy"),
        ],
        remarks=[
            f"Steps of accuracy 0.99 (trained on), ½ and 0.99 (held out), least to largest of seeds (inf: not all):"
            f" {told}. Accuracy ½ comes at decay^−{exponent:.2f}, not as 1/η.",
            f"At the end, no decay: {test[none, :, -1].max():.3f} of the held-out pairs at most; {too_much}:"
            f" {train[most, :, -1].max():.2f} of those trained on.",
        ],
    )


@claim(
    "In trained networks 95 % or more of the 200 most similar pairs of nodes push each other away: b_jk has the sign"
    " opposite to f_jᵀf_k. These nodes become more alike.",
    source="Theorem 6 with the raw similarity, which the paper uses",
    assumptions=(RECIPE, "M = 23, 238 pairs, 512 nodes, rate 1e-3, decay 2e-4, η = n·decay/2", "3 seeds, 6 times"),
    tex=r"\mathrm{sign}\, b_{jk} = -\mathrm{sign}\, f_j^\top f_k",
)
def trained_repulsion(setting: Setting) -> Evidence:
    decay, steps = setting.pick(smoke=(1e-3, 600), laptop=(2e-4, 1500), paper=(2e-4, 2000))
    seeds = [3 * setting.seed + s for s in range(3)]
    run = _small(setting, [decay], seeds, steps, steps // 6, observe=nets.features)

    def opposed(features):
        """How many of the 200 most and least similar pairs of nodes have b of opposite sign; the median |cosine|."""
        centred = features - features.mean(axis=0)
        gram = centred.T @ centred
        inverse = np.linalg.inv(gram + len(features) * decay / 2 * np.eye(len(gram)))
        upper, size = np.triu_indices(len(gram), 1), np.sqrt(np.diag(gram))
        cosine = (gram / np.maximum(np.outer(size, size), 1e-300))[upper]
        differ, order = np.sign(inverse[upper]) == -np.sign(cosine), np.argsort(np.abs(cosine))
        most, least = order[-200:], order[:200]
        return differ[most].mean(), differ[least].mean(), np.median(np.abs(cosine[most]))

    features = np.asarray(run.observed, float)[0, 0, 0, :, 1:]  # (seeds, times, pairs, nodes)
    most, least, alike = np.moveaxis(np.array([[opposed(one) for one in own] for own in features]), 2, 0)
    by_seed, others = most.mean(axis=1), {"200 least similar": least.mean(axis=1)}
    axis, y = ("step", np.asarray(run.steps)[1:]), "fraction of 200 pairs"
    seen, control = {"most similar": most.T}, {"least similar": least.T}
    return evidence(
        mean("fraction of the most similar pairs with opposite sign", by_seed, others, at_least=0.95),
        mean("their |cosine| at the end less that at the first time", alike[:, -1] - alike[:, 0], at_least=0),
        panels=[
            panel("signs opposite to similarity", axis, y=y, observed=seen, control=control),
            panel("similarity", axis, y="median |cosine|", observed={"most similar": alike.T}),
        ],
    )
