"""Closed forms of JoMA beside the solvers of others. `python benchmarks/trajectories.py [--x32]`.

Each table's candidates run interleaved in this one process; whatever is computed from is an argument, so that nothing
is folded while compiling. See README.md for what each row means.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import torch
from peers import finished, one_thread, tensor
from scipy.integrate import solve_ivp
from timing import Floor, Timing, check, floor, interleaved, print_header, ratio, table, unit
from torchdiffeq import odeint

from traindyn.dynamics import solve
from traindyn.dynamics.joma import LinearActivation, LogGap, NonlinearActivation

TOKENS, END, MAX_STEPS = 10, 1.0, 512
EXACT = "traindyn: NonlinearActivation.exact"
V_FORM = "diffrax Tsit5, v-form"
ROUNDS, PATIENCE = 5, 0.7  # a call that takes longer than this many seconds is timed once


Candidate = Callable[[float], Callable[[], Any]]  # from rtol to a call


def controller(rtol: Any) -> dfx.PIDController:
    return dfx.PIDController(rtol=rtol, atol=rtol / 100, norm=optx.max_norm)


def of_diffrax(mu: jax.Array, field: Callable, back: Callable, solver: dfx.AbstractSolver) -> Candidate:
    """`vmap(diffeqsolve)`, compiled once for all tolerances."""

    @jax.jit
    def lanes(mu, rtol):
        def lane(m):
            solution = dfx.diffeqsolve(
                dfx.ODETerm(lambda t, y, args: field(m, y)),
                solver,
                0.0,
                END,
                None,
                jnp.zeros_like(m),
                stepsize_controller=controller(rtol),
                max_steps=MAX_STEPS,
                throw=False,
            )
            return back(m, solution.ys[0]), solution.result == dfx.RESULTS.successful

        return jax.vmap(lane)(mu)

    return lambda rtol: lambda: lanes(mu, jnp.asarray(rtol, mu.dtype))


def of_torch(mu: np.ndarray, log_form: bool, method: str) -> Candidate:
    """torchdiffeq, all lanes in one state of a common step, as it is meant to be used."""
    m, ends = tensor(mu), tensor(np.array([0, END], mu.dtype))
    field = (lambda t, y: torch.exp((m * torch.expm1(-y)) ** 2 / 2)) if log_form else _clipped(m)

    def at(rtol):
        def call():
            try:
                with torch.no_grad():
                    y = odeint(field, torch.zeros_like(m), ends, rtol=rtol, atol=rtol / 100, method=method)[-1]
            except AssertionError:  # "underflow in dt": a trial step overflowed, from which it does not come back
                return np.full_like(mu, np.nan), np.zeros(len(mu), bool)
            return finished(-m * torch.expm1(-y) if log_form else y)[0], np.ones(len(mu), bool)

        return call

    return at


def _clipped(m: torch.Tensor) -> Callable:
    return lambda t, v: (m - v) * torch.exp(torch.minimum(v.clamp(min=0), m) ** 2 / 2)


def of_scipy(mu: np.ndarray, method: str) -> Candidate:
    """SciPy, lane after lane, or for many lanes as one state."""
    systems = mu if len(mu) == 1 else mu.reshape(1, -1)

    def at(rtol):
        def call():
            ends = []
            for m in systems:
                field = lambda t, v, m=m: (m - v) * np.exp(np.clip(v, 0, m) ** 2 / 2)
                ends.append(solve_ivp(field, (0, END), np.zeros_like(m), method, rtol=rtol, atol=rtol / 100).y[:, -1])
            return np.reshape(ends, mu.shape), np.ones(len(mu), bool)

        return call

    return at


def candidates(mu_of_lanes: np.ndarray) -> dict[str, Candidate]:
    mu = jnp.asarray(mu_of_lanes)
    exact = jax.jit(jax.vmap(lambda m: NonlinearActivation(m).exact(jnp.zeros_like(m), END)))
    every = np.ones(len(mu), bool)
    v_form = lambda m, v: (m - v) * jnp.exp(v**2 / 2)
    clipped = lambda m, v: (m - v) * jnp.exp(jnp.clip(v, 0, m) ** 2 / 2)
    log_form, to_v = lambda m, y: jnp.exp(LogGap(m).to_v(y) ** 2 / 2), lambda m, y: LogGap(m).to_v(y)
    same = lambda m, v: v
    found = {
        EXACT: lambda rtol: lambda: (exact(mu), every),
        V_FORM: of_diffrax(mu, v_form, same, dfx.Tsit5()),
        "diffrax Tsit5, v-form clipped to [0, μ]": of_diffrax(mu, clipped, same, dfx.Tsit5()),
        "diffrax Tsit5, log form": of_diffrax(mu, log_form, to_v, dfx.Tsit5()),
        "diffrax Dopri8, log form": of_diffrax(mu, log_form, to_v, dfx.Dopri8()),
        "torchdiffeq dopri5, v-form clipped": of_torch(mu_of_lanes, False, "dopri5"),
        "torchdiffeq dopri8, log form": of_torch(mu_of_lanes, True, "dopri8"),
    }
    found |= {f"scipy {m}": of_scipy(mu_of_lanes, m) for m in ("DOP853", *(["LSODA"] if len(mu) == 1 else []))}
    return found


def loosest(candidate: Candidate, reference: np.ndarray, goal: float) -> float | None:
    """The largest of a ladder of tolerances at which all lanes finish with an error below the goal."""
    least = 3e-14 if reference.dtype == np.float64 else 1e-7
    for rtol in goal * np.array([10.0, 3, 1, 0.3, 0.1, 0.01, 1e-3]):
        if least < rtol < 0.2:
            error, stuck = _error(candidate(float(rtol))(), reference)
            if error <= goal and not stuck:
                return float(rtol)
    return None


def _error(found: Any, reference: np.ndarray) -> tuple[float, int]:
    """Of the lanes that finished, and how many did not."""
    v, done = (np.asarray(x) for x in found)
    return float(np.max(np.abs(v - reference)[done], initial=0.0)) if done.any() else np.inf, int(np.sum(~done))


def nonlinear(lanes_of: tuple[int, ...], goals: tuple[float, ...], floors: Floor) -> None:
    """(a) `v̇ = (μ − v) exp(v²/2)` to an error, by closed form and by solvers at the loosest tolerance that gets there.

    Tolerances are found on the lanes themselves, up to a hundred of them.
    """
    dtype = jnp.result_type(float)
    for lanes in lanes_of:
        mu = np.random.default_rng(0).uniform(0.5, 3.0, (lanes, TOKENS)).astype(dtype)
        few, reference = mu[:100], _reference(mu).astype(dtype)
        here, sample = candidates(mu), candidates(few)
        for goal in goals:
            tolerance = {name: loosest(c, reference[:100], goal) for name, c in sample.items()}
            missed = [name for name, rtol in tolerance.items() if rtol is None]
            calls = {name: here[name](rtol) for name, rtol in tolerance.items() if rtol is not None}
            timings, outputs = _patiently(calls)
            notes = {}
            for name, output in outputs.items():
                error, stuck = _error(output, reference)
                rtol = "" if name == EXACT else f", rtol {tolerance[name]:.0e}"
                notes[name] = f"error {error:.0e}{rtol}" + (f", {stuck} lanes stuck at {MAX_STEPS}" if stuck else "")
            title = f"(a) v̇ = (μ − v) exp(v²/2) to t = {END:g}, error ≤ {goal:g}: {TOKENS} tokens × {lanes} lanes"
            _table(title, timings, notes)
            if missed:
                print(f"  not reached by {', '.join(missed)}")
            least = 64 * mu.size * floors.exponential
            print(f"  floor: one quadrature, 64 exponentials a component, {unit(least)};", end=" ")
            print(f"the closed form takes {timings[EXACT].median / least:.2g}× that")
            _bars(lanes, goal, timings, {name: _error(o, reference) for name, o in outputs.items()})


def _patiently(calls: Mapping[str, Callable[[], Any]]) -> tuple[dict[str, Timing], dict[str, Any]]:
    slow, outputs = {}, {}
    for name, call in calls.items():
        if not name.startswith("torch"):  # which compiles nothing
            jax.block_until_ready(call())
        start = time.perf_counter()
        outputs[name] = jax.block_until_ready(call())
        if (seconds := time.perf_counter() - start) > PATIENCE:
            slow[name] = Timing(seconds, (seconds,))
    timings, _ = interleaved({name: call for name, call in calls.items() if name not in slow}, ROUNDS)
    return {name: slow.get(name) or timings[name] for name in calls}, outputs


def _table(title: str, timings: Mapping[str, Timing], notes: dict[str, str]) -> None:
    """Those timed once stand beside the median of the others."""
    rounds = len(timings[EXACT].rounds)
    once = {name for name, t in timings.items() if len(t.rounds) < rounds}
    notes = {name: note + (", timed once" if name in once else "") for name, note in notes.items()}
    table(title, {n: _stretched(t, rounds) for n, t in timings.items()}, EXACT, notes)


def _stretched(timing: Timing, rounds: int) -> Timing:
    return timing if len(timing.rounds) == rounds else Timing(timing.first, timing.rounds * rounds)


def _bars(lanes: int, goal: float, timings: Mapping[str, Timing], errors: Mapping[str, tuple[float, int]]) -> None:
    timings = {n: _stretched(t, len(timings[EXACT].rounds)) for n, t in timings.items()}
    best = lambda start: min((n for n in timings if n.startswith(start)), key=lambda n: timings[n].median, default=None)
    error = f"error {errors[EXACT][0]:.0e}"
    if lanes == 1000 and goal == 1e-6:
        solver = ratio(timings, V_FORM, EXACT)
        figure = f"{solver} as long, {errors[V_FORM][1]} lanes not finished; exact has {error}"
        check(f"1, vmap(diffeqsolve) in the v-form, {TOKENS} × {lanes}", solver.median >= 10, figure, "≥ 10×")
        clip = ratio(timings, "diffrax Tsit5, v-form clipped to [0, μ]", EXACT)
        print(f"        clipped, so that all lanes finish: {clip}")
        if peer := best("torchdiffeq"):
            figure = ratio(timings, peer, EXACT)
            check(f"1, {peer}, {TOKENS} × {lanes}", figure.median >= 50, figure, "≥ 50×")
    if lanes == 1 and goal == 1e-6 and (peer := best("scipy")):
        figure = ratio(timings, peer, EXACT)
        check(f"1, {peer}, {TOKENS} × 1", figure.median >= 30, figure, "≥ 30×")


def _reference(mu: np.ndarray) -> np.ndarray:
    """By scipy's DOP853 in the log form, float64, at 1e-12: it shares nothing with the closed form."""
    flat = mu.ravel().astype(np.float64)
    field = lambda t, y: np.exp((flat * np.expm1(-y)) ** 2 / 2)
    y = solve_ivp(field, (0, END), np.zeros(flat.size), "DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
    return (-flat * np.expm1(-y)).reshape(mu.shape)


def blow_up(floors: Floor) -> None:
    """(b) When `v̇ = Δ exp(v²/2)` diverges, for many lanes, by formula and by running into it."""
    lanes, far = 10_000, 6.0
    delta = jnp.asarray(np.random.default_rng(1).uniform(0.5, 2.0, lanes))
    zero = jnp.zeros(lanes)
    formula = jax.jit(lambda delta, zero: LinearActivation(delta).blow_up_time(zero))
    base = "traindyn: LinearActivation.blow_up_time"
    calls = {base: lambda: formula(delta, zero)}
    if delta.dtype == jnp.float64:  # float32 cannot tell v = 6 from the blow-up
        calls[f"diffrax, Boolean event v > {far:g}"] = _by_event(delta, dfx.Event(lambda t, y, args, **_: y > far))
        root = dfx.Event(lambda t, y, args, **_: y - far, optx.Newton(1e-9, 1e-9))
        calls[f"diffrax, root-finding event v = {far:g}"] = _by_event(delta, root)
    timings, outputs = interleaved(calls)
    law = np.sqrt(np.pi / 2) / np.asarray(delta, float)
    notes = {n: f"off √(π/2)/Δ by {np.max(np.abs(np.asarray(t) / law - 1)):.0e}" for n, t in outputs.items()}
    table(f"(b) blow-up times of {lanes} lanes; per lane", timings, base, notes, lanes)
    least = 3 * delta.dtype.itemsize * floors.byte + floors.exponential
    print(f"  floor: three numbers moved and one exponential a lane, {unit(least)}")
    for name in list(calls)[1:]:
        figure = ratio(timings, name, base)
        check(f"1, {name}", figure.median >= 500, figure, "≥ 500×")


def _by_event(delta: jax.Array, event: dfx.Event) -> Callable[[], jax.Array]:
    @jax.jit
    @jax.vmap
    def hit(d):
        term = dfx.ODETerm(lambda t, v, args: d * jnp.exp(v**2 / 2))
        step = controller(1e-8)
        zero = jnp.zeros_like(d)
        return dfx.diffeqsolve(
            term, dfx.Tsit5(), 0.0, 4.0, None, zero, stepsize_controller=step, event=event, throw=False
        ).ts[0]

    return lambda: hit(delta)


def solve_overhead() -> None:
    """(c) `traindyn.solve` against the bare `diffeqsolve` that it calls, at the same tolerances."""
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
    calls = {
        "diffrax.diffeqsolve under jit": lambda: bare(flow, zero, ts),
        "traindyn: solve under jit, throw=False": lambda: within(flow, zero, ts),
        "traindyn: solve, called from Python": lambda: solve(flow, zero, ts).ys,
    }
    timings, outputs = interleaved(calls)
    steps = int(solve(flow, zero, ts).stats["num_steps"])
    title = f"(c) v̇ = Δ exp(v²/2), 6 tokens, {ts.size} times, {steps} steps, rtol {rtol:g}"
    table(title, timings, "diffrax.diffeqsolve under jit")
    values = list(outputs.values())
    print(f"  largest difference between the three: {max(float(jnp.max(jnp.abs(v - values[0]))) for v in values):.0e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--x32", action="store_true", help="float32 instead of float64")
    x32 = parser.parse_args().x32
    jax.config.update("jax_enable_x64", not x32)
    print_header()
    one_thread()
    start = time.perf_counter()
    floors = floor()
    nonlinear((1, 100, 1000, 10_000), (1e-3, 1e-5) if x32 else (1e-3, 1e-6, 1e-10), floors)
    blow_up(floors)
    solve_overhead()
    print(f"\n{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
