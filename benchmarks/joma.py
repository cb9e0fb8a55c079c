"""What the JoMA equations and the training loop cost beside their peers. `python benchmarks/joma.py [--x32]`.

Each table's candidates run interleaved in this one process; medians of the rounds, with their range. Compilation is
kept out of the medians and shown once. Whatever is computed from is an argument, so that nothing is folded while
compiling. See README.md for what each row means.
"""

import argparse
import time
from collections.abc import Callable

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
from scipy.integrate import solve_ivp
from timing import Timing, interleaved, print_header, table

from traindyn.dynamics import GradientFlow, solve
from traindyn.dynamics.joma import LinearActivation, LogGap, NonlinearActivation
from traindyn.nets import joma as nets
from traindyn.nets import train


def solver(field: Callable, t1: float, rtol: float, event: dfx.Event | None = None, max_steps: int = 2**14) -> Callable:
    """A bare `diffeqsolve` by Tsit5 from zero to `t1`, as a function `(parameters, y0) -> Solution`."""

    def run(parameters, y0):
        controller = dfx.PIDController(rtol=rtol, atol=rtol / 100, norm=optx.max_norm)
        term = dfx.ODETerm(lambda t, y, args: field(args, y))
        return dfx.diffeqsolve(
            term,
            dfx.Tsit5(),
            0.0,
            t1,
            None,
            y0,
            args=parameters,
            stepsize_controller=controller,
            event=event,
            max_steps=max_steps,
            throw=False,
        )

    return run


def nonlinear(lanes: int) -> None:
    """(a) The closed form of `v̇ = (μ − v) exp(v²/2)` against solvers."""
    end, tokens = 1.0, 10
    mu_of_lanes = np.random.default_rng(0).uniform(0.5, 3.0, (lanes, tokens))
    reference = _nonlinear_reference(mu_of_lanes, end)
    mu = jnp.asarray(mu_of_lanes)

    @jax.jit
    @jax.vmap
    def exact(m):
        return NonlinearActivation(m).exact(end, jnp.zeros_like(m)), True

    def solved(field, rtol, back):
        run = solver(field, end, rtol, max_steps=512)

        @jax.jit
        @jax.vmap
        def lane(m):
            solution = run(m, jnp.zeros_like(m))
            return back(m, solution.ys[0]), solution.result == dfx.RESULTS.successful

        return lambda: lane(mu)

    v_form = lambda m, v: (m - v) * jnp.exp(v**2 / 2)
    clipped = lambda m, v: (m - v) * jnp.exp(jnp.minimum(v, m) ** 2 / 2)
    log_form = lambda m, y: jnp.exp(LogGap(m).to_v(y) ** 2 / 2)
    to_v = lambda m, y: LogGap(m).to_v(y)
    candidates = {
        "traindyn: NonlinearActivation.exact": lambda: exact(mu),
        "diffrax Tsit5, v-form, rtol 1e-6": solved(v_form, 1e-6, lambda m, v: v),
        "diffrax Tsit5, v-form clipped at μ, rtol 1e-6": solved(clipped, 1e-6, lambda m, v: v),
        "diffrax Tsit5, log form, rtol 1e-6": solved(log_form, 1e-6, to_v),
    }
    if mu.dtype == jnp.float64:
        candidates["diffrax Tsit5, log form, rtol 1e-9"] = solved(log_form, 1e-9, to_v)
    if lanes == 1:
        m = mu_of_lanes[0]
        field = lambda t, v: (m - v) * np.exp(v**2 / 2)
        lsoda = lambda: solve_ivp(field, (0, end), np.zeros(tokens), "LSODA", rtol=1e-6, atol=1e-8).y[:, -1]
        candidates["scipy LSODA, v-form, rtol 1e-6"] = lambda: (lsoda(), np.ones(1, bool))
    timings, outputs = interleaved(candidates)
    notes = {}
    for name, (v, finished) in outputs.items():
        finished = np.broadcast_to(np.asarray(finished), lanes)
        error = np.max(np.abs(np.asarray(v) - reference)[finished])
        failed = f", {np.sum(~finished)} lanes stuck at 512 steps" if not finished.all() else ""
        notes[name] = f"error of v {error:.0e}{failed}"
    title = f"(a) v̇ = (μ − v) exp(v²/2) to t = {end:g}: {tokens} tokens × {lanes} lanes"
    table(title, timings, "traindyn: NonlinearActivation.exact", notes)


def _nonlinear_reference(mu: np.ndarray, end: float) -> np.ndarray:
    """By scipy's DOP853 in the log form, float64, at 1e-12: it shares nothing with the closed form."""
    flat = mu.ravel()
    field = lambda t, y: np.exp((flat * np.expm1(-y)) ** 2 / 2)
    y = solve_ivp(field, (0, end), np.zeros(flat.size), "DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
    return (-flat * np.expm1(-y)).reshape(mu.shape)


def blow_up() -> None:
    """(b) When `v̇ = Δ exp(v²/2)` diverges, for many lanes, by formula and by running into it."""
    lanes, far = 10_000, 6.0
    delta = jnp.asarray(np.random.default_rng(1).uniform(0.5, 2.0, lanes))
    zero = jnp.zeros(lanes)
    reached = lambda t, y, args, **_: y - far
    above = lambda t, y, args, **_: y > far
    field = lambda d, v: d * jnp.exp(v**2 / 2)

    def by_event(event):
        run = solver(field, 4.0, 1e-8, event, max_steps=4096)
        hit = jax.jit(jax.vmap(lambda d: run(d, jnp.zeros_like(d)).ts[0]))
        return lambda: hit(delta)

    formula = jax.jit(lambda delta, zero: LinearActivation(delta).blow_up_time(zero))
    base = "traindyn: LinearActivation.blow_up_time"
    candidates = {base: lambda: formula(delta, zero)}
    if delta.dtype == jnp.float64:  # float32 cannot tell v = 6 from the blow-up
        candidates[f"diffrax, Boolean event v > {far:g}"] = by_event(dfx.Event(above))
        root = dfx.Event(reached, optx.Newton(1e-9, 1e-9))
        candidates[f"diffrax, root-finding event v = {far:g}"] = by_event(root)
    timings, outputs = interleaved(candidates)
    law = np.sqrt(np.pi / 2) / np.asarray(delta, float)
    notes = {n: f"off √(π/2)/Δ by {np.max(np.abs(np.asarray(t) / law - 1)):.0e}" for n, t in outputs.items()}
    table(f"(b) blow-up times of {lanes} lanes; per lane", timings, base, notes, lanes)


def training_step() -> None:
    """(c) A step of training one block inside `train`, over its bare matrix products and over a Python loop."""
    samples, tokens, nodes, steps = 512, 256, 64, 100
    keys = jax.random.split(jax.random.key(2), 4)
    x = jax.random.uniform(keys[0], (samples, tokens), jnp.float32) / tokens
    g = jax.random.normal(keys[1], (samples, nodes), jnp.float32)
    back = jax.random.normal(keys[2], (tokens, nodes), jnp.float32)
    block = nets.JomaBlock(tokens, nodes, attention="exp", dtype=jnp.float32, key=keys[3])
    rate = jnp.float32(1e-3)

    @jax.jit
    def products(x, v, g):
        return x @ v, x.T @ g, g @ v.T

    @jax.jit
    def inside_train(rate):
        return train(block, nets.stationary_loss, (x, g), optax.sgd(rate), steps).model

    params, static = eqx.partition(block, eqx.is_inexact_array)

    @jax.jit
    def one_step(params, rate):
        grads = jax.grad(lambda p: nets.stationary_loss(eqx.combine(p, static), (x, g)))(params)
        return jax.tree.map(lambda p, g: p - rate * g, params, grads)

    def python_loop():
        p = params
        for _ in range(steps):
            p = one_step(p, rate)
        return p

    def bare():
        for _ in range(steps):
            out = products(x, back, g)
        return out

    candidates = {"three bare matrix products": bare, "traindyn: train": lambda: inside_train(rate)}
    candidates["Python loop of jitted steps"] = python_loop
    title = f"(c) a training step: {samples} samples, {tokens} tokens, {nodes} nodes, float32; per step"
    table(title, interleaved(candidates)[0], "three bare matrix products", per=steps)


def learning_rate_sweep() -> None:
    """(d) One `vmap` of `train` over learning rates; the minibatch is shared by all lanes."""
    samples, tokens, nodes, batch, steps = 1024, 64, 16, 32, 200
    keys = jax.random.split(jax.random.key(3), 4)
    data = jax.random.uniform(keys[0], (samples, tokens)) / tokens, jax.random.normal(keys[1], (samples, nodes))
    block = nets.JomaBlock(tokens, nodes, attention="exp", key=keys[2])
    sampler = nets.minibatch(data, batch)

    def lane(rate):
        return train(block, nets.stationary_loss, sampler, optax.sgd(rate), steps, key=keys[3]).model.z

    def lane_of_trained(rate):
        rebuild = lambda p: eqx.tree_at(lambda m: (m.w, m.z), block, p)
        loss = lambda p, batch: nets.stationary_loss(rebuild(p), batch)
        return train((block.w, block.z), loss, sampler, optax.sgd(rate), steps, key=keys[3]).model[1]

    sweep, sweep_trained = jax.jit(jax.vmap(lane)), jax.jit(jax.vmap(lane_of_trained))
    chunks = jax.jit(lambda rates: jax.lax.map(lane_of_trained, rates, batch_size=16))
    numbers = (1, 16, 64, 256)
    rates = {lanes: jnp.linspace(1e-3, 1e-2, lanes) for lanes in numbers}
    candidates = {f"{n} rates: vmap of train": lambda r=rates[n]: sweep(r) for n in numbers}
    candidates |= {f"{n} rates: the same, W and z alone as model": lambda r=rates[n]: sweep_trained(r) for n in numbers}
    candidates["256 rates: that, by lax.map in chunks of 16"] = lambda: chunks(rates[256])
    timings, _ = interleaved(candidates, 5)
    lanes_of = {name: int(name.split()[0]) for name in timings}
    scaled = {n: Timing(t.first, *(x / lanes_of[n] / steps for x in t[1:])) for n, t in timings.items()}
    scaled = {n: t._replace(first=t.median + timings[n].first - timings[n].median) for n, t in scaled.items()}
    title = f"(d) SGD at many learning rates: {tokens} tokens, {nodes} nodes, batch {batch}; per lane and step"
    table(title, scaled, "1 rates: vmap of train")


def compilations() -> None:
    """(e) How often changing a number compiles something."""
    count = 0

    def listen(name, seconds, **_):
        nonlocal count
        count += name == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(listen)
    x, g = jnp.ones((8, 4)), jnp.ones((8, 2))
    block = nets.JomaBlock(4, 2, attention="exp", key=jax.random.key(4))
    run = jax.jit(lambda rate: train(block, nets.stationary_loss, (x, g), optax.sgd(rate), 10).model.z)
    zero, ts, still = jnp.zeros(3), jnp.linspace(0, 0.5, 3), lambda y: jnp.sum(y**2) / 2
    numbers = [jnp.asarray(n) for n in (0.1, 0.2, 0.3, 0.4)]
    subjects = {
        "learning rate of train, under jit": run,
        "Δ of LinearActivation, in solve": lambda n: solve(LinearActivation(n * jnp.ones(3)), zero, ts, throw=False).ys,
        "μ of NonlinearActivation, in solve": lambda n: (
            solve(NonlinearActivation(n * jnp.ones(3)), zero, ts, throw=False).ys
        ),
        "rates of GradientFlow, arrays, in solve": lambda n: solve(GradientFlow(still, n), zero, ts, throw=False).ys,
        "rates of GradientFlow, Python floats, in solve": lambda n: (
            solve(GradientFlow(still, float(n)), zero, ts, throw=False).ys
        ),
    }
    print("\n(e) compilations when a number changes: at the first value, and at three more")
    for name, call in subjects.items():
        counts = []
        for n in numbers:
            before = count
            jax.block_until_ready(call(n))
            counts.append(count - before)
        print(f"  {name:50}{counts[0]:>10}  {sum(counts[1:]):>19}", flush=True)


def solve_overhead() -> None:
    """(f) `traindyn.solve` against the bare `diffeqsolve` that it calls, at the same tolerances."""
    flow, zero = LinearActivation(jnp.asarray([1.0, 0.8, 0.5, 0.1, -0.3, -0.9])), jnp.zeros(6)
    rtol, atol = (1e-10, 1e-12) if zero.dtype == jnp.float64 else (1e-5, 1e-7)
    ts = jnp.linspace(0, 0.99 * float(jnp.min(flow.blow_up_time(zero))), 34)

    @jax.jit
    def bare(flow, zero, ts):
        return dfx.diffeqsolve(
            dfx.ODETerm(flow),
            dfx.Tsit5(),
            0.0,
            ts[-1],
            None,
            zero,
            saveat=dfx.SaveAt(ts=ts),
            stepsize_controller=dfx.PIDController(rtol=rtol, atol=atol, norm=optx.max_norm),
            max_steps=2**16,
            throw=False,
        ).ys

    within = jax.jit(lambda flow, zero, ts: solve(flow, zero, ts, throw=False).ys)
    candidates = {
        "diffrax.diffeqsolve under jit": lambda: bare(flow, zero, ts),
        "traindyn: solve under jit, throw=False": lambda: within(flow, zero, ts),
        "traindyn: solve, called from Python": lambda: solve(flow, zero, ts).ys,
    }
    timings, outputs = interleaved(candidates)
    steps = int(solve(flow, zero, ts).stats["num_steps"])
    title = f"(f) v̇ = Δ exp(v²/2), 6 tokens, {ts.size} times, {steps} steps, rtol {rtol:g}"
    table(title, timings, "diffrax.diffeqsolve under jit")
    values = list(outputs.values())
    print(f"  largest difference between the three: {max(float(jnp.max(jnp.abs(v - values[0]))) for v in values):.0e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--x32", action="store_true", help="float32 instead of float64")
    jax.config.update("jax_enable_x64", not parser.parse_args().x32)
    print_header()
    start = time.perf_counter()
    nonlinear(1)
    nonlinear(1000)
    blow_up()
    training_step()
    learning_rate_sweep()
    compilations()
    solve_overhead()
    print(f"\n{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
