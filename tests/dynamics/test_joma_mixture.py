"""Facts of Theorem 3 of JoMA: θ₁ and θ₂ against their definitions, and the vector field against samples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from traindyn.dynamics import joma

SIGMA, SLOPE = 0.7, 0.2
R = np.array([-3.0, -0.4, 0.0, 0.3, 1.5])
ACTIVATIONS = {
    "identity": lambda h: h,
    "relu": lambda h: jnp.maximum(h, 0),
    "leaky_relu": lambda h: jnp.where(h > 0, h, SLOPE * h),
    "square": lambda h: h**2,
    "erf": lambda h: jax.scipy.special.erf(h),
    "tanh": jnp.tanh,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
}


def _mixture(name, **changes):
    fields = {"centres": jnp.ones((1, 2)), "strength": jnp.ones(1), "sigma": SIGMA} | changes
    activation = name if name in ("identity", "relu", "leaky_relu", "square", "erf") else ACTIVATIONS[name]
    return joma.Mixture(**fields, activation=activation, slope=SLOPE if name == "leaky_relu" else None)


def _by_quadrature(name, norm, power):
    """`‖v‖ E[s^power φ'(r+s)]` for s ~ N(0, σ²‖v‖²), by adaptive quadrature on both sides of the kink at s = −r."""
    slope = jax.jit(jax.grad(ACTIVATIONS[name]))
    spread = SIGMA * norm

    def integrand(s, r):
        return s**power * float(slope(r + s)) * np.exp(-(s**2) / (2 * spread**2)) / (spread * np.sqrt(2 * np.pi))

    ends = lambda r: sorted({-9 * spread, min(max(-r, -9 * spread), 9 * spread), 9 * spread})
    pieces = lambda r: zip(ends(r)[:-1], ends(r)[1:], strict=True)
    return np.array(
        [norm * sum(integrate.quad(integrand, a, b, args=(r,), epsabs=1e-11)[0] for a, b in pieces(r)) for r in R]
    )


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_thetas_are_the_integrals_that_define_them(name):
    # 9 standard deviations leave out 1e-17; the tolerance is that of the quadrature.
    mixture = _mixture(name)
    np.testing.assert_allclose(mixture.theta1(jnp.asarray(R), 1.3), _by_quadrature(name, 1.3, 0), atol=1e-9)
    np.testing.assert_allclose(mixture.theta2(jnp.asarray(R), 1.3), _by_quadrature(name, 1.3, 1), atol=1e-9)


@pytest.mark.parametrize(("spread", "bound"), ((4, 1e-9), (10, 2e-3)))
def test_quadrature_keeps_its_digits_where_the_input_spreads_widely(spread, bound):
    # Gauss and Hermite's 201 nodes were 7e-4 and 0.21 off here.
    x = np.linspace(-12, 12, 200_001)
    for r in (0.0, 0.7, 3.0):
        slope = 1 / np.cosh(np.clip(r + spread * x, -300, 300)) ** 2
        expected = np.trapezoid(slope * np.exp(-(x**2) / 2), x) / np.sqrt(2 * np.pi)
        got = joma.Mixture(jnp.ones((1, 1)), jnp.ones(1), activation=jnp.tanh).theta1(jnp.array([r]), spread)[0]
        assert float(got) / spread == pytest.approx(expected, rel=bound)


@pytest.mark.parametrize("name", ("relu", "leaky_relu", "square", "erf"))
def test_named_activations_are_recognised_as_functions(name):
    # Otherwise a rectifier would go through a quadrature that needs smoothness (15 % wrong in the tail).
    functions = {
        "relu": jax.nn.relu,
        "leaky_relu": jax.nn.leaky_relu,
        "square": jnp.square,
        "erf": jax.scipy.special.erf,
    }
    make = lambda activation: joma.Mixture(jnp.ones((1, 2)), jnp.ones(1), SIGMA, activation=activation)
    r = jnp.asarray(R)
    np.testing.assert_array_equal(make(functions[name]).theta2(r, 1.3), make(name).theta2(r, 1.3))


@pytest.mark.parametrize("name", ("relu", "silu"))
def test_vector_field_is_the_mean_over_samples(name, key):
    # v̇ = E[a φ'(h) x] and β̇ = E[a φ'(h)] on samples of the mixture, within five standard errors of each component.
    centres, strength = jnp.array([[1.0, 0.0, -0.5], [-0.3, 0.8, 0.2]]), jnp.array([0.6, -0.9])
    mixture = _mixture(name, centres=centres, strength=strength)
    y = joma.MixtureState(jnp.array([0.5, -1.0, 0.7]), jnp.array(0.2))
    samples = 100_000
    x = centres[:, None] + SIGMA * jax.random.normal(key, (2, samples, 3))
    slope = jax.vmap(jax.vmap(jax.grad(ACTIVATIONS[name])))(x @ y.v + y.beta)
    terms = strength[:, None] * slope
    dv, db = jnp.sum(terms[:, :, None] * x, axis=0), jnp.sum(terms, axis=0)
    got = mixture(0.0, y, None)
    for value, draws in ((got.v, dv), (got.beta, db)):
        error = jnp.std(draws, axis=0) / np.sqrt(samples)
        assert jnp.all(jnp.abs(value - jnp.mean(draws, axis=0)) < 5 * error)
        assert jnp.all(error < 0.01)


def test_printed_form_of_the_theorem_has_the_same_vector_field():
    centres, strength = jnp.array([[1.0, 0.0], [-0.3, 0.8]]), jnp.array([0.6, -0.9])
    mixture = _mixture("leaky_relu", centres=centres, strength=strength)
    v, beta = jnp.array([0.5, -1.0]), jnp.array(0.2)
    norm = jnp.linalg.norm(v)
    r = centres @ v + beta
    one, two = mixture.theta1(r, norm), mixture.theta2(r, norm)
    got = mixture(0.0, joma.MixtureState(v, beta), None)
    printed = (strength * one) @ centres / norm + jnp.sum(strength * two) * v / norm**3
    np.testing.assert_allclose(got.v, printed, rtol=1e-14)
    np.testing.assert_allclose(got.beta, jnp.sum(strength * one) / norm, rtol=1e-14)


def test_homogeneous_activation_obeys_eulers_identity():
    # v·v̇ + β β̇ = Σ a E[φ(r+s)] for a homogeneous φ, from which the norm grows for ever. For ReLU, E[φ] = r Φ + σn ϕ.
    centres, strength = jnp.array([[1.0, 0.0], [-0.3, 0.8]]), jnp.array([0.6, -0.9])
    mixture = _mixture("relu", centres=centres, strength=strength)
    y = joma.MixtureState(jnp.array([0.5, -1.0]), jnp.array(0.2))
    dy = mixture(0.0, y, None)
    r, spread = centres @ y.v + y.beta, SIGMA * jnp.linalg.norm(y.v)
    norm = jax.scipy.stats.norm
    mean = r * norm.cdf(r / spread) + spread * norm.pdf(r / spread)
    assert float(y.v @ dy.v + y.beta * dy.beta) == pytest.approx(float(jnp.sum(strength * mean)), rel=1e-13)


@pytest.mark.parametrize("name", ("relu", "tanh"))
def test_a_node_of_length_zero_has_a_finite_field_and_gradient(name):
    mixture = _mixture(name)
    start = joma.MixtureState(jnp.zeros(2), jnp.array(0.5))
    got = mixture(0.0, start, None)
    expected = float(jax.grad(ACTIVATIONS[name])(0.5))  # no spread: φ'(β) at the centre (1, 1)
    np.testing.assert_allclose(got.v, expected, rtol=1e-12)
    slopes = jax.grad(lambda y: jnp.sum(mixture(0.0, y, None).v))(start)
    assert all(jnp.all(jnp.isfinite(x)) for x in slopes)


@pytest.mark.parametrize(
    ("make", "message"),
    (
        (lambda: _mixture("relu", centres=jnp.ones(2)), r"centres must have shape \(clusters, tokens\), got \(2,\)"),
        (lambda: _mixture("relu", strength=jnp.ones(2)), r"strength must have shape \(1,\), got \(2,\)"),
        (lambda: _mixture("relu", sigma=-1.0), "sigma must be at least 0, got -1.0"),
        (lambda: _mixture("relu", strength=jnp.array([jnp.nan])), "strength must be finite"),
        (lambda: _mixture("relu").theta1(jnp.zeros(1), -1.0), "norm must be at least 0, got -1.0"),
        (
            lambda: joma.Mixture(jnp.ones((1, 2)), jnp.ones(1), slope=0.2),
            "slope would be ignored: it belongs to activation=\"leaky_relu\", got 'relu'",
        ),
        (
            lambda: joma.Mixture(jnp.ones((1, 2)), jnp.ones(1), activation=jax.nn.leaky_relu, slope=0.2),
            "slope would be ignored",
        ),
        (
            lambda: joma.Mixture(jnp.ones((1, 2)), jnp.ones(1), activation=lambda h: h * jnp.ones(3))(
                0.0, joma.MixtureState(jnp.ones(2), jnp.array(0.0))
            ),
            r"the value of activation must have shape \(\), got \(3,\)",
        ),
        (lambda: _mixture("relu", sigma=jnp.ones(2)), r"sigma must have shape \(\), got \(2,\)"),
        (
            lambda: joma.Mixture(jnp.ones((1, 2)), jnp.ones(1), activation="swish"),
            "activation must be a smooth function or one of .*, got 'swish'",
        ),
        (
            lambda: _mixture("relu")(0.0, joma.MixtureState(jnp.ones(3), jnp.array(0.0)), None),
            r"y.v must have shape \(2,\), got \(3,\)",
        ),
    ),
)
@pytest.mark.usefixtures("as_users")
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
