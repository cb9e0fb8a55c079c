"""The factorisation on networks of which the factors are known."""

import numpy as np
import pytest

from traindyn.dynamics import composing
from traindyn.dynamics.composing import Solution, cyclic, from_blocks, nu, phase, product, syn, times, xi
from traindyn.validate.composing import factorise as fa

GROUP = cyclic(23)
SCALE = 46 ** (-1 / 3)  # from the paper's scale to the code's
RNG = np.random.default_rng(0)


def _turns(n):
    return list(np.exp(2j * np.pi * RNG.random(n)))


def _phases(n):
    return [(float(x), float(y)) for x, y in RNG.uniform(0, 6, (n, 2))]


def _shuffled(z: Solution) -> np.ndarray:
    """Nodes in another order, half of them with the sign of a and b changed, in the code's scale."""
    array = np.array(z.z)[:, :, RNG.permutation(z.nodes)] * SCALE
    array[:2, :, ::2] *= -1
    return array


def _near_orbit(found, given):
    """ν is known up to ω and sign, and up to complex conjugation of the whole frequency."""
    orbit = np.array([s * w * given for s in (1, -1) for w in (1, fa.OMEGA, fa.OMEGA**2)])
    return min(np.abs(orbit - found).min(), np.abs(orbit.conj() - found).min()) < 1e-6


def test_order_6_is_syn_times_nu():
    nus = list(np.exp(1j * np.linspace(1.2, 1.4, 11)))  # near π/4 + mπ/3 the procedure takes ν for ξ
    found = fa.table(_shuffled(composing.f6(GROUP, nus=nus, phases=_phases(11))), GROUP)
    assert found.families == (0.0, 0.0, 100.0, 0.0) and found.count == {6: 11} and found.by_potentials == {6: 11}
    assert found.unfactored[1] == 0 and found.error[1] < 1e-8 and found.other_order == found.dead == 0
    assert all(_near_orbit(v, given) for v, given in zip(found.parameters["ν"], nus, strict=True))


def test_the_variant_is_nu_i_times_syn_alpha_beta():
    z = composing.f6_variant(GROUP, alphas=_turns(11), betas=_turns(11), phases=_phases(11))
    found = fa.table(_shuffled(z), GROUP)
    assert found.families[1] == 100.0 and found.by_potentials == {6: 11}
    assert len(found.parameters["α"]) == len(found.parameters["β"]) == 11
    np.testing.assert_allclose(np.abs(found.parameters["α"]), 1, rtol=1e-6)


def test_order_4_is_nu_i_times_xi_and_one_frequency_has_order_6():
    found = fa.table(_shuffled(composing.f4_6(GROUP, 3, xis=_turns(11), phases=_phases(11))), GROUP)
    assert found.count == {4: 10, 6: 1} and found.by_potentials == {4: 10, 6: 1}
    np.testing.assert_allclose(found.families[0], 1000 / 11)
    assert len(found.parameters["ξ"]) == 10


def test_orders_of_a_product_group():
    group = product(3, 5)
    z = np.array(composing.f4_6(group, group.frequencies[2]).z) * (2 * group.order) ** (-1 / 3)
    count = dict(zip(group.frequencies, fa.orders(z, group), strict=True))
    assert count.pop(group.frequencies[2]) == 6 and set(count.values()) == {4}


def test_dead_frequencies_are_apart_from_other_orders():
    one = from_blocks(GROUP, lambda _: times(syn(), nu(1j)), [1, 2])
    two = from_blocks(GROUP, lambda _: syn(), [3])  # three nodes
    found = fa.table(_shuffled(one + two), GROUP)
    assert found.count == {0: 8, 6: 2, 3: 1}
    np.testing.assert_allclose([found.dead, found.other_order], [800 / 11, 100 / 11])
    assert found.by_potentials == {None: 9, 6: 2}


def test_random_nodes_do_not_factor():
    columns = np.exp(2j * np.pi * RNG.random((3, 6)))
    result = fa.factorise(columns)
    assert not result.factorable and result.family == "others" and result.error > 0.1 * np.sqrt(18)
    assert fa.potential_order(columns) is None


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_error_grows_with_noise_and_the_label_stays(noise):
    columns = times(nu(1j), xi(np.exp(0.3j)), phase(0.4, 1.1))
    columns = columns + noise * RNG.normal(size=columns.shape)
    result = fa.factorise(columns)
    assert result.factorable and result.family == "ν=i·ξ" and (result.error < 1e-8) == (noise == 0)


def test_other_numbers_of_nodes_are_refused():
    with pytest.raises(ValueError, match="4 or 6"):
        fa.factorise(np.ones((3, 5), complex))
