"""Theorem 4 and the solutions built by hand: zero loss, inside the real network too, and what they weigh."""

import numpy as np

from ...dynamics import composing
from ...dynamics.composing import Solution, cyclic, from_blocks, nu, syn, times, xi
from ...dynamics.groups import Abelian
from ..checks import absolute, agrees, at_least, at_most, evidence, relative, rounding, vanishes
from ..claim import Evidence, Setting, claim
from ..pair_networks import BALANCED, SQUARE
from ..panels import heatmap
from ._shared import ALL_PAIRS, FINITE, measure, no_loss, some_groups, turns


def _optima(rng: np.random.Generator, group: Abelian) -> dict[str, Solution]:
    """Each construction, with free parameters drawn at random."""
    n = len(group.frequencies)
    phases = [(float(a), float(b)) for a, b in rng.uniform(0, 2 * np.pi, (n, 2))]
    pairs = [k for k in group.frequencies if group.inverse[k] != k]
    draw = lambda: list(turns(rng, n))
    found = {
        "z_F6": composing.f6(group),
        "z_F6, any ν, y": composing.f6(group, nus=draw(), phases=phases),
        "variant, any α, β, y": composing.f6_variant(group, alphas=draw(), betas=draw(), phases=phases),
        "z_3c * z_syn": composing.f9(group),
        "z_M": composing.memorisation(group),
        "order 4 and a bias": composing.f4_biased(group),
    }
    if pairs:
        found["z_F4/6"] = composing.f4_6(group, int(rng.choice(pairs)), xis=draw(), phases=phases)
    return found


def _not_optima(rng: np.random.Generator, group: Abelian) -> dict[str, Solution]:
    return {
        "order 4 alone": from_blocks(group, lambda _: times(nu(1j), xi(turns(rng, 1)[0]))),
        "z_syn alone": from_blocks(group, lambda _: syn()),
        "any ν with any α, β": from_blocks(group, lambda _: times(syn(*turns(rng, 2)), nu(turns(rng, 1)[0]))),
    }


@claim(
    "These are global optima: z_F6 for any ν and y, its variant for any α, β, z_F4/6 for any ξ, z_3c * z_syn, z_M, and "
    "order 4 with a bias. Their loss is zero and their accuracy one, by the decomposition and inside the real network.",
    source="Corollaries of Theorems 2 to 4; the hat of z_F4/6, the bias and frequencies with 2k = 0 are derived here",
    assumptions=(ALL_PAIRS, FINITE, "z_F4/6 needs a frequency with 2k ≠ 0"),
    tex=r"\ell(z_{F6}) = \ell(z_{F4/6}) = \ell(z_M) = 0",
)
def solutions(setting: Setting) -> Evidence:
    rng, groups = setting.rng, some_groups(setting.scale)
    names, found = list(_optima(rng, cyclic(5))), []  # by name, of each group
    odd = [group for group in groups if len(group.factors) == 1 and group.order % 2]
    for group in groups:
        built = _optima(rng, group) | (_not_optima(rng, group) if group in odd else {})
        found.append(dict(zip(built, measure([*built.values()]), strict=True)))
    of = lambda name: np.array([one[name] for one in found if name in one])
    by_decomposition, loss, accuracy = np.concatenate([of(name) for name in names]).T
    wrong = {name: of(name) for one in found for name in one if name not in names}
    least = lambda column: {name: x[:, column].min() for name, x in wrong.items()}
    axes, d = (("group", [g.name for g in groups]), ("solution", names)), np.array([group.order for group in odd])
    synthetic, law, half = wrong["z_syn alone"][:, 1], (d - 1) / (2 * d), {"½": 0.5}
    cells = np.array([[one[name][1] if name in one else np.nan for one in found] for name in names])
    ends = lambda x: f"{x.min():.3f} to {x.max():.3f}"
    ranges = "; ".join(f"{name}: loss {ends(x[:, 1])}, accuracy {ends(x[:, 2])}" for name, x in wrong.items())
    return evidence(
        vanishes("loss inside the real network", loss, least(1), within=no_loss()),
        vanishes("loss by the decomposition", by_decomposition, least(0), within=no_loss()),
        at_least("accuracy", accuracy, 1 - 1e-6, {"order 4 alone": wrong["order 4 alone"][:, 2]}),
        agrees("loss of z_syn alone: (d − 1)/2d", None, synthetic, law, half, within=rounding(800), measure=absolute),
        panels=[
            heatmap("loss of the real network", *axes, np.where(cells == 0, 1e-33, cells), z_label="loss", log="z")
        ],
        remarks=[f"Over Z_d with d odd, {ranges}."],
    )


@claim(
    "S holds the values that the potentials take at a generator u with abc = 1, and 1 ∉ S. Then ρ(u) = Π_{s∈S} (u + ŝ) "
    "is a global optimum, once scaled. Its order is at most |S| + 1 per frequency.",
    source="Theorem 4, with the explicit ŝ = (1, 1, −s) at +k",
    assumptions=(ALL_PAIRS, "Z_7 and Z_11", "the same u at each frequency"),
    tex=r"\rho(u) = \prod_{s \in S} (u + \hat s),\quad \hat s = (1, 1, -s)",
)
def polynomial(setting: Setting) -> Evidence:
    seventh = np.exp(2j * np.pi / 7)
    generic = [(a, b, 1 / (a * b)) for a, b in turns(setting.rng, 20).reshape(10, 2)]
    generators = [(np.exp(0.7j), np.exp(1.9j), np.exp(-2.6j)), (seventh, seventh**3, seventh**-4), *generic]
    blocks = [composing.polynomial(np.array(u)) for u in generators]
    flipped = [np.stack([a, b, c * (-1.0) ** np.arange(len(c))]) for a, b, c in blocks]
    built = lambda group: [from_blocks(group, lambda _, block=block: block) for block in (*blocks, *flipped)]
    losses = [measure(built(cyclic(d)))[:, :2].reshape(2, len(blocks), 2) for d in (7, 11)]
    right, wrong = np.concatenate(losses, axis=2)  # (generators, by decomposition and of the network, in both groups)
    orders, sums = np.array([block.shape[1] for block in blocks]), [np.prod(block, axis=0) for block in blocks]
    # What rounding is multiplied with, squared.
    cancelled = np.array([np.sum(np.abs(x)) / abs(np.sum(x)) for x in sums])[:, None] ** 2
    other, axis = "ŝ of the other sign", ("generator", np.arange(len(blocks)))
    name = "loss over the square of what cancels in r_kkk, all 12"
    return evidence(
        vanishes("loss of the two named generators", right[:2], {other: wrong[:2].min()}, within=no_loss()),
        vanishes(name, right / cancelled, {other: wrong / cancelled}, within=no_loss(), x=axis, y="loss", log="y"),
        agrees("order of the generic u and of the roots of unity", None, orders[:2], [9, 7], {"9": 9}, within=0),
        at_most("order, all 12", orders, 9),
    )


def _split(group: Abelian, number6: int, balanced: bool = True) -> Solution:
    """Order 6 at the first `number6` frequencies, order 4 at the others; where `balanced`, constants at all of order 6
    cancel what order 4 leaves."""
    six = from_blocks(group, lambda _: times(syn(), nu(1j)), group.frequencies[:number6])
    rest = group.frequencies[number6:]
    if not rest:
        return six
    four = from_blocks(group, lambda _: times(nu(1j), xi(1.0)), rest)
    if not balanced:
        return six + four
    live = np.isin(np.arange(group.order), [*rest, *group.inverse[list(rest)]])
    z = np.array(six.z)
    z[2] -= (np.where(live, np.asarray(four.leftover()), 0) / np.sum(np.abs(z[:2]) ** 2))[:, None]
    return Solution(z, group) + four


@claim(
    "The optima weigh ‖z‖² = 3(d−1)6^⅓ (z_F6) and 3(d−1)d^⅔ (z_M). With n4 frequencies of order 4, and n6 of order 6 "
    "that share the biases, ‖z‖² = N = 6·6^⅓ n6 + 6·4^⅓ n4 + 6^⅓ n4/n6. N is least at n6 ≈ 1.148 √n: the fraction of "
    "order 4 rises with d.",
    source="derived here",
    assumptions=("Z_d with d odd", FINITE, SQUARE, BALANCED),
    tex=r"N = 6 \cdot 6^{1/3} n_6 + 6 \cdot 4^{1/3} n_4 + 6^{1/3} \frac{n_4}{n_6}",
)
def norms(setting: Setting) -> Evidence:
    group, n = cyclic(23), 11
    six = np.arange(1, n + 1)
    splits, law = zip(*((_split(group, n6), composing.least_norm(n - n6, n6)) for n6 in range(1, n + 1)), strict=True)
    size = lambda *solutions: np.array([np.sum(np.abs(np.asarray(z.z)) ** 2) for z in solutions])
    memory = Solution(composing.memorisation(group).z.at[:, 0].set(0), group)  # no potential needs its frequency zero
    built = size(composing.f6(group), memory, composing.f4_biased(group), composing.f4_6(group))
    without = {"without the last term": law - np.cbrt(6) * (n - six) / six}
    closed = [3 * 22 * np.cbrt(6), 3 * 22 * 23 ** (2 / 3), 6 * np.cbrt(4) * n + 3 * np.cbrt(n), law[0]]
    half = np.array([d // 2 for d in (23, 71, 127)])
    best = [min(range(1, m + 1), key=lambda n6, m=m: composing.least_norm(m - n6, n6)) for m in map(int, half)]
    loss = measure([*splits, *(_split(group, n6, balanced=False) for n6 in range(1, n))])[:, 1]
    root, axis = np.sqrt(half), ("frequencies of order 6", six)
    fractions = ", ".join(f"{1 - b / m:.1%} (d = {2 * m + 1})" for m, b in zip(half, best, strict=True))
    return evidence(
        agrees("‖z‖² of the built optima", axis, size(*splits), law, without, within=rounding(800), measure=relative),
        vanishes("loss of each of them", loss[:n], {"without the biases": loss[n:].min()}, within=no_loss()),
        agrees("‖z‖² of z_F6, z_M, bias form, z_F4/6", None, built, closed, within=rounding(800), measure=relative),
        agrees("best n6 at d = 23, 71, 127", None, best, 1.148 * root, {"√n": root}, within=0.5, measure=absolute),
        remarks=[
            f"Fraction of order 4 at the least N: {fractions}. One bias node is cheaper still ({built[2]:.2f}, not "
            f"{min(law):.2f}, at d = 23): never found."
        ],
    )
