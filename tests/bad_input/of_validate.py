import json
import os
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

jax.config.update("jax_enable_x64", True)
from traindyn import sweep
from traindyn import validate as v
from traindyn.nets import read_corpus
from traindyn.sweeps import named as named_sweep
from traindyn.validate import metrics

from .cases import C

k = jax.random.key(0)
nan, inf = float("nan"), float("inf")
TMP = Path.cwd()  # a temporary folder: see __main__
new = lambda n=[0]: (n.__setitem__(0, n[0] + 1), TMP / f"d{n[0]}")[1]
f = lambda p: p["a"] * 2.0
# ---- sweep
G = "sweep"
C(G, "axes {}", lambda: sweep(f, {}))
C(G, "axes None", lambda: sweep(f, None))
C(G, "axes a list", lambda: sweep(f, [1, 2]))
C(G, "axis empty", lambda: sweep(f, {"a": []}))
C(G, "axis scalar", lambda: sweep(f, {"a": 1.0}))
C(G, "axis None", lambda: sweep(f, {"a": None}))
C(G, "axis a string", lambda: sweep(f, {"a": "abc"}))
C(G, "axis of strings", lambda: sweep(f, {"a": ["x", "y"]}))
C(G, "axis ragged", lambda: sweep(f, {"a": [[1], [2, 3]]}))
C(G, "axis named status", lambda: sweep(lambda p: p["status"], {"status": [1.0]}))
C(G, "axis name not a string", lambda: sweep(f, {1: [1.0]}))
C(G, "tied axes of unlike length", lambda: sweep(lambda p: p["a"] + p["b"], {("a", "b"): ([1.0], [1.0, 2.0])}))
C(G, "tied names, one set", lambda: sweep(lambda p: p["a"], {("a", "b"): ([1.0],)}))
C(G, "same name twice", lambda: sweep(f, {"a": [1.0], ("a",): ([1.0],)}))
C(G, "axis NaN", lambda: sweep(f, {"a": [1.0, nan]}).value.values, "ok")
C(G, "axis with the same value twice", lambda: sweep(f, {"a": [1.0, 1.0]}).sel(a=1.0).value.values)
C(G, "axis a generator", lambda: sweep(f, {"a": (x for x in [1.0, 2.0])}).value.values)
C(G, "axis a tuple of numbers (a PyTree of scalars)", lambda: sweep(f, {"a": (1.0, 2.0)}))
C(G, "axis int64 beyond int32", lambda: sweep(f, {"a": [2**40, 2**41]}).value.values, "ok")
C(G, "axis numpy float32", lambda: sweep(f, {"a": np.ones(2, np.float32)}).value.values, "ok")
C(G, "axis complex", lambda: sweep(lambda p: jnp.abs(p["a"]), {"a": [1j, 2j]}).value.values, "ok")
C(G, "axis xarray", lambda: sweep(f, {"a": xr.DataArray([1.0, 2.0])}).value.values)
C(G, "fn not callable", lambda: sweep(3, {"a": [1.0]}))
C(G, "fn None", lambda: sweep(None, {"a": [1.0]}))
C(G, "fn returns nothing", lambda: sweep(lambda p: None, {"a": [1.0]}))
C(G, "fn returns a string", lambda: sweep(lambda p: "x", {"a": [1.0]}))
C(G, "fn misspells the axis", lambda: sweep(lambda p: p["b"], {"a": [1.0]}))
C(G, "fn raises in python", lambda: sweep(lambda p: 1 / 0, {"a": [1.0]}))
C(G, "fn branches on a value (if p['a'] > 1)", lambda: sweep(lambda p: 1.0 if p["a"] > 1 else 0.0, {"a": [1.0, 2.0]}))
C(G, "fn uses numpy on a tracer", lambda: sweep(lambda p: np.sqrt(p["a"]), {"a": [1.0]}))
C(
    G,
    "fn has a side effect / impure (random)",
    lambda: sweep(lambda p: p["a"] * np.random.rand(), {"a": [1.0, 2.0, 3.0]}).value.values,
)
C(G, "fn returns a variable called like the axis", lambda: sweep(lambda p: {"a": p["a"]}, {"a": [1.0]}))
C(G, "fn returns 'status'", lambda: sweep(lambda p: {"status": p["a"]}, {"a": [1.0]}))
C(
    G,
    "fn returns a key with a dot and a clash",
    lambda: list(sweep(lambda p: {"x.y": p["a"], "x": {"y": 2 * p["a"]}}, {"a": [1.0]}).data_vars),
)
C(G, "fn returns int keys", lambda: list(sweep(lambda p: {1: p["a"]}, {"a": [1.0]}).data_vars), "ok")
C(G, "batch_size 0", lambda: sweep(f, {"a": [1.0]}, batch_size=0))
C(G, "batch_size 1.5", lambda: sweep(f, {"a": [1.0, 2.0, 3.0]}, batch_size=1.5))
C(G, "batch_size '8'", lambda: sweep(f, {"a": [1.0]}, batch_size="8"))
C(G, "mesh a string", lambda: sweep(f, {"a": [1.0]}, mesh="x"))
C(G, "cost vector", lambda: sweep(f, {"a": [1.0, 2.0]}, cost=lambda p: jnp.ones(2)))
C(G, "cost NaN", lambda: sweep(f, {"a": [1.0, 2.0]}, cost=lambda p: p["a"] * nan).value.values, "ok")
C(G, "cost not callable", lambda: sweep(f, {"a": [1.0, 2.0]}, cost=3))
C(G, "dims unknown variable", lambda: sweep(f, {"a": [1.0]}, dims={"nope": ["x"]}))
C(G, "dims too many", lambda: sweep(f, {"a": [1.0]}, dims={"value": ["x"]}))
C(G, "dims a string", lambda: sweep(lambda p: p["a"] * jnp.ones(2), {"a": [1.0]}, dims={"value": "t"}).value.dims)
C(G, "dims a longer string", lambda: sweep(lambda p: p["a"] * jnp.ones(2), {"a": [1.0]}, dims={"value": "time"}))
C(
    G,
    "dims names an axis of the sweep",
    lambda: sweep(lambda p: p["a"] * jnp.ones(2), {"a": [1.0]}, dims={"value": ["a"]}),
)
C(
    G,
    "coords of another length",
    lambda: sweep(lambda p: p["a"] * jnp.ones(2), {"a": [1.0]}, dims={"value": ["t"]}, coords={"t": [1, 2, 3]}),
)
C(G, "coords for an unknown dim", lambda: list(sweep(f, {"a": [1.0]}, coords={"zz": [1, 2, 3]}).coords))
C(G, "coords override an axis", lambda: sweep(f, {"a": [1.0]}, coords={"a": [9.0]}).a.values)


def outs(make):
    d = new()
    make(d)
    return d


C(G, "out is a file", lambda: sweep(f, {"a": [1.0]}, out=outs(lambda d: d.write_text("x"))))
C(
    G,
    "out holds another sweep",
    lambda: (lambda d: (sweep(f, {"a": [1.0]}, out=d), sweep(f, {"a": [2.0]}, out=d)))(new()),
)
C(
    G,
    "out holds another function",
    lambda: (lambda d: (sweep(f, {"a": [1.0]}, out=d), sweep(lambda p: 3 * p["a"], {"a": [1.0]}, out=d)))(new()),
)


def with_chunks(spoil, n=4):
    d = new()
    g = lambda p: {"y": p["a"] * 2.0, "z": jnp.ones(3) * p["a"]}
    ref = sweep(g, {"a": np.arange(1.0, 9.0)}, batch_size=2, out=d)
    spoil(d)
    again = sweep(g, {"a": np.arange(1.0, 9.0)}, batch_size=2, out=d)
    assert again.equals(ref), "DIFFERS from the unbroken sweep"
    return {"same": np.array(1)}


chunk = lambda d, i=1: sorted(d.glob("chunk-*.npz"))[i]
C(G, "chunk deleted", lambda: with_chunks(lambda d: chunk(d).unlink()), "ok")
C(
    G,
    "chunk truncated to half",
    lambda: with_chunks(lambda d: chunk(d).write_bytes(chunk(d).read_bytes()[: chunk(d).stat().st_size // 2])),
)
C(G, "chunk empty", lambda: with_chunks(lambda d: chunk(d).write_bytes(b"")))


def flip(p, at):
    b = bytearray(p.read_bytes())
    b[at] ^= 0xFF
    p.write_bytes(bytes(b))


def flips(p, n):
    return with_chunks(lambda d: flip(chunk(d), n if n >= 0 else chunk(d).stat().st_size + n))


for at in (0, 30, 200, 400, 700, 1000, 1300, -30, -200):
    C(G, f"chunk, byte {at} flipped", lambda at=at: flips(None, at))
C(G, "chunk.new left behind", lambda: with_chunks(lambda d: (d / "chunk-000099.new").write_bytes(b"x")), "ok")
C(G, "foreign chunk-abc.npz", lambda: with_chunks(lambda d: (d / "chunk-abc.npz").write_bytes(b"x")))
C(
    G,
    "chunk-.npz with a copy (chunk-000001 copy.npz)",
    lambda: with_chunks(lambda d: shutil.copy(chunk(d), d / "chunk-000001 copy.npz")),
)
C(G, "sweep.json empty", lambda: with_chunks(lambda d: (d / "sweep.json").write_text("")))
C(G, "sweep.json []", lambda: with_chunks(lambda d: (d / "sweep.json").write_text("[]")))
C(G, "sweep.json {}", lambda: with_chunks(lambda d: (d / "sweep.json").write_text("{}")))
C(
    G,
    "sweep.json without jax, other fn",
    lambda: with_chunks(lambda d: (d / "sweep.json").write_text(json.dumps({"same": {}}))),
)
C(
    G,
    "sweep.json deleted, chunks of another sweep left",
    lambda: (
        lambda d: (
            sweep(f, {"a": [1.0, 2.0]}, out=d),
            (d / "sweep.json").unlink(),
            sweep(lambda p: p["a"] * 50.0, {"a": [7.0, 8.0]}, out=d).value.values,
        )[-1]
    )(new()),
)


def pickled(d):
    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {TMP}/PWNED",))

    np.savez(
        chunk(d),
        allow_pickle=True,
        names=json.dumps([["y", ""], ["z", ""]]),
        lanes=np.array([0, 1]),
        status=np.zeros(2, np.int8),
        steps=np.zeros(2),
        error="",
        v0=np.array([Evil()], object),
        v1=np.ones((2, 3)),
    )
    p = sorted(d.glob("chunk-*"))


C(G, "chunk with a pickled object", lambda: with_chunks(pickled))
C(
    G,
    "was the pickle executed?",
    lambda: (_ for _ in ()).throw(AssertionError("EXECUTED")) if (TMP / "PWNED").exists() else {"not": np.array(0)},
    "ok",
)


def wronglanes(d):
    np.savez(
        chunk(d),
        names=json.dumps([["y", ""], ["z", ""]]),
        lanes=np.array([-1, 6]),
        status=np.zeros(2, np.int8),
        steps=np.zeros(2),
        error="",
        v0=np.ones(2) * 99,
        v1=np.ones((2, 3)),
    )


C(G, "chunk with lane −1 and values of another run", lambda: with_chunks(wronglanes))
C(
    G,
    "read-only value of NaN status chunk: lanes 99",
    lambda: with_chunks(
        lambda d: np.savez(
            chunk(d), names="[]", lanes=np.array([99]), status=np.zeros(1, np.int8), steps=np.zeros(2), error=""
        )
    ),
)
# ---- statistics of claims
G = "rows"
C(G, "identity NaN", lambda: v.identity([nan], 1.0).verdict.value, "ok")
C(G, "identity empty", lambda: v.identity([], 1.0))
C(G, "identity bound NaN", lambda: v.identity([0.1], nan).verdict.value)
C(G, "identity bound negative", lambda: v.identity([0.0], -1.0).verdict.value)
C(G, "identity strings", lambda: v.identity(["a"], 1.0))
C(G, "identity None", lambda: v.identity(None, 1.0))
C(G, "identity bound None", lambda: v.identity([0.1], None))
C(G, "identity complex", lambda: v.identity([1j], 0.5).verdict.value, "ok")
C(G, "identity int min (abs overflows)", lambda: v.identity(np.array([np.iinfo(np.int64).min]), 1.0).verdict.value)
C(
    G,
    "identity uint difference wraps",
    lambda: v.identity(np.array([1], np.uint8) - np.array([2], np.uint8), 1.0).measured,
)
C(G, "identity bool", lambda: v.identity(np.array([False]), 0.0).verdict.value, "ok")
C(G, "limit three values", lambda: v.limit([1, 2, 3], [1, 2, 3], 1.0))
C(G, "limit lengths differ", lambda: v.limit([1, 2, 3, 4], [1, 2, 3], 1.0))
C(G, "limit zero parameter", lambda: v.limit([0, 1, 2, 3], [1, 2, 3, 4], 1.0).verdict.value)
C(G, "limit negative parameter", lambda: v.limit([-1, 1, 2, 3], [1, 2, 3, 4], 1.0).verdict.value)
C(G, "limit all parameters equal", lambda: v.limit([1, 1, 1, 1], [1, 2, 3, 4], 1.0).verdict.value)
C(G, "limit zero errors", lambda: v.limit([1, 2, 3, 4], [0, 0, 0, 0], 1.0).verdict.value, "ok")
C(G, "limit negative errors", lambda: v.limit([1, 2, 3, 4], [-1, -2, -3, -4], 1.0).verdict.value)
C(G, "limit NaN error", lambda: v.limit([1, 2, 3, 4], [1, nan, 3, 4], 1.0).verdict.value, "ok")
C(G, "limit tolerance negative", lambda: v.limit([1, 2, 3, 4], [1, 2, 3, 4], 1.0, -0.5).verdict.value)
C(G, "limit 2-d", lambda: v.limit(np.ones((4, 4)), np.ones((4, 4)), 1.0))
C(G, "limit strings", lambda: v.limit(list("abcd"), list("abcd"), 1.0))
C(G, "statistic two samples", lambda: v.statistic([1, 2], at_least=0))
C(G, "statistic no bound", lambda: v.statistic([1, 2, 3]))
C(G, "statistic both bounds", lambda: v.statistic([1, 2, 3], at_least=0, at_most=4))
C(G, "statistic NaN sample", lambda: v.statistic([1, nan, 3], at_least=0).verdict.value, "ok")
C(G, "statistic inf sample", lambda: v.statistic([1, inf, 3], at_least=0).verdict.value)
C(G, "statistic equal samples", lambda: v.statistic([1, 1, 1], at_least=0).verdict.value, "ok")
C(G, "statistic quantile 1.5", lambda: v.statistic([1, 2, 3, 4], at_least=0, quantile=1.5))
C(
    G,
    "statistic quantile 0.5, four samples",
    lambda: v.statistic([1, 2, 3, 4], at_least=0, quantile=0.5).verdict.value,
    "ok",
)
C(
    G,
    "statistic quantile 0.99, five samples",
    lambda: v.statistic([1, 2, 3, 4, 5], at_most=9, quantile=0.99).verdict.value,
    "ok",
)
C(G, "statistic quantile NaN sample", lambda: v.statistic([1, nan, 3, 4], at_least=0, quantile=0.5).verdict.value, "ok")
C(G, "statistic complex", lambda: v.statistic([1j, 2, 3], at_least=0))
C(G, "Evidence of nothing", lambda: v.Evidence({}, {}).verdict.value, "ok")
C(G, "Evidence.decisive of nothing", lambda: v.Evidence({}, {}).decisive)
C(G, "Evidence with a non-row", lambda: v.Evidence({"x": 1.0}, {}).verdict)
named = lambda name, **more: v.claim("", source="", **{"assumptions": (), **more}, name=name)(lambda s: None)
C(G, "claim flow unknown", lambda: named("a.b", flow="Flow"))
C(G, "claim without a dot", lambda: named("ab"))
C(G, "claim assumptions a string (letters)", lambda: named("a.b", assumptions="gradient flow").assumptions)
C(G, "claim named ../x.y", lambda: named("../x.y").name)
C(G, "claim named /x.y", lambda: named("/x.y").name)
C(G, "Setting scale", lambda: v.Setting("huge").pick(smoke=1, laptop=2, paper=3))
C(G, "Setting seed -1", lambda: v.Setting("smoke", -1).rng)
C(G, "Setting seed 1.5", lambda: v.Setting("smoke", 1.5).key)
C(G, "panel curve of another length", lambda: v.panel("t", ("x", [1, 2, 3]), observed={"y": [1, 2]}))
C(G, "panel 3-d curve", lambda: v.panel("t", ("x", [1, 2]), observed={"y": np.ones((2, 2, 2))}))
C(G, "panel x not a pair", lambda: v.panel("t", [1, 2, 3], observed={"y": [1, 2, 3]}))
C(
    G,
    "panel no curves -> figure",
    lambda: v.verify and __import__("traindyn.validate.report", fromlist=["x"]).figure([v.panel("t", ("x", [1, 2]))]),
)
C(G, "panel label equal to x", lambda: v.panel("t", ("observed: y", [1, 2]), observed={"y": [1, 2]}))
C(G, "heatmap z transposed", lambda: v.heatmap("t", ("x", [1, 2, 3]), ("y", [1, 2]), np.ones((3, 2))))
C(G, "heatmap same labels", lambda: v.heatmap("t", ("x", [1]), ("x", [1]), [[1.0]]))
G = "metrics"
C(G, "fit_order two points", lambda: metrics.fit_order([1, 2], [1, 2]))
C(
    G,
    "normalised_correlation of a constant (documented NaN)",
    lambda: metrics.normalised_correlation(jnp.ones(3), jnp.arange(3.0)),
    "ok",
)
C(G, "normalised_correlation lengths", lambda: metrics.normalised_correlation(jnp.ones(3), jnp.ones(4)))
C(G, "normalised_correlation length 1 broadcast", lambda: metrics.normalised_correlation(jnp.arange(3.0), jnp.ones(1)))
C(G, "relative_error of zero", lambda: metrics.relative_error(jnp.zeros(3), jnp.ones(3)))
C(G, "relative_error length 1 broadcast", lambda: metrics.relative_error(jnp.arange(3.0), jnp.ones(1)))
C(G, "stable_rank of a vector", lambda: metrics.stable_rank(jnp.ones(3)))
C(G, "stable_rank zero (documented NaN)", lambda: metrics.stable_rank(jnp.zeros((2, 2))), "ok")
C(G, "entropy negative p", lambda: metrics.entropy(jnp.array([-0.5, 1.5])))
C(G, "entropy not normalised", lambda: metrics.entropy(jnp.array([2.0, 2.0])))
C(G, "entropy NaN", lambda: metrics.entropy(jnp.array([nan, 1.0])))
C(G, "attention_entropy x zeros", lambda: metrics.attention_entropy(jnp.zeros(3), jnp.zeros(3)))
C(G, "rebound empty", lambda: metrics.rebound(jnp.zeros((0, 2))))
C(G, "largest_rise NaN", lambda: metrics.largest_rise(jnp.array([1.0, nan, 0.0])))
C(G, "crossing_time t falls", lambda: metrics.crossing_time(jnp.array([1.0, 0.0]), jnp.arange(2.0), 0.5))
C(G, "crossing_time lengths", lambda: metrics.crossing_time(jnp.arange(3.0), jnp.arange(2.0), 0.5))
C(G, "crossing_time never", lambda: metrics.crossing_time(jnp.arange(2.0), jnp.arange(2.0), 5), "inf")
C(G, "crossing_time ints", lambda: metrics.crossing_time(jnp.arange(2), jnp.arange(2), 0.25), "0.25")
C(G, "escape_time fraction 2", lambda: metrics.escape_time(jnp.arange(2.0), jnp.arange(2.0), 2))
# ---- corpus
G = "read_corpus"


def corpus(b):
    p = new()
    p.write_bytes(b)
    return read_corpus(p)[0][:20]


C(G, "missing file", lambda: read_corpus(TMP / "nope"))
C(G, "a folder", lambda: read_corpus(TMP))
C(G, "empty", lambda: corpus(b""))
C(G, "whitespace only", lambda: corpus(b" \n\t  \r\n"))
C(G, "binary", lambda: corpus(bytes(range(256))))
C(G, "nulls", lambda: corpus(b"abc\0def"))
C(G, "Latin-1", lambda: corpus("café".encode("latin-1")))
C(G, "UTF-16", lambda: corpus("hello world".encode("utf-16")))
C(G, "BOM", lambda: corpus("\ufeffhello".encode()))
C(G, "CRLF", lambda: corpus(b"a\r\nb\r\n"), "ok")
C(G, "path None -> default", lambda: read_corpus()[1], "ok")
C(G, "path an int (file descriptor)", lambda: read_corpus(3))
C(G, "path ''", lambda: read_corpus(""))
C(G, "path with a null", lambda: read_corpus("a\0b"))
C(G, "path bytes", lambda: read_corpus(b"/etc/hostname"))
C(G, "FIFO-like: /dev/null", lambda: read_corpus("/dev/null"))
# ---- parse_axis
G = "parse_axis"
for s in (
    "",
    "a",
    "=1",
    "a=",
    "a=x",
    "a=1:2:3:4",
    "a=1:2:3:log:5",
    "a=0:1:3:log",
    "a=-1:1:3:log",
    "a=1:2:0",
    "a=1:2:-3",
    "a=1:2:2.5",
    "a=3:1",
    "a=1:1",
    "a=0:0.5",
    "a=nan",
    "a=inf,1",
    "a=1,,2",
    "a=nan:1:3",
    "a=0:inf:3",
    "a=1e400:1:3",
    "a=0:10000000000",
    "a=1:2:1000000000",
    "a = 1,2",
    "a=1_000:2_000",
    "a=1:2:3:LOG",
    "a=1;2",
    "a=1,2=3",
    "a=5:1:3",
    "a=1:1:3",
):
    C(G, repr(s), lambda s=s: (lambda r: {"name": r[0], "n": np.array(r[1][:4])})(named_sweep.parse_axis(s)))
# ---- verify in process
G = "verify()"
mk = lambda name, fn: v.Claim(name, "P", "S", "src", ("a",), fn)
good = lambda s: v.Evidence(
    {"r": v.identity([0.0], 1.0)}, {"c": v.identity([2.0], 1.0)}, [v.panel("p", ("x", [1, 2]), observed={"o": [1, 2]})]
)
S = v.Setting("smoke")


def two(fn):
    """a broken claim between two good ones: do the others go on?"""
    d = new()
    seen = []
    try:
        v.verify(
            [mk("t.a", good), mk("t.bad", fn), mk("t.z", good)], S, out=d, on_record=lambda r: seen.append(r["name"])
        )
    finally:
        got = (
            [r["name"] + ":" + r["verdict"] for r in json.loads((d / "results.json").read_text())]
            if (d / "results.json").exists()
            else []
        )
    return got


C(G, "claims []", lambda: v.verify([], S, out=new()))
C(G, "claims []: summary/html", lambda: v.verify([], S))
C(G, "claims None", lambda: v.verify(None, S))
C(G, "claims a name", lambda: v.verify(["joma.low_rank"], S))
C(G, "setting None", lambda: v.verify([mk("t.a", good)], None))
C(G, "setting scale unknown", lambda: v.verify([mk("t.a", good)], v.Setting("huge")))
C(G, "jobs 0", lambda: v.verify([mk("t.a", good)], S, jobs=0))
C(G, "jobs -1", lambda: v.verify([mk("t.a", good)], S, jobs=-1))
C(G, "jobs 2 with local claims", lambda: v.verify([mk("t.a", good)], S, jobs=2))
C(G, "out a file", lambda: v.verify([mk("t.a", good)], S, out=outs(lambda d: d.write_text("x"))))
C(
    G,
    "two claims of one name",
    lambda: v.verify([mk("t.a", good), mk("t.a", lambda s: 1 / 0)], S, out=new())[0]["verdict"],
)
C(G, "check raises", lambda: two(lambda s: 1 / 0), "ok")
C(G, "check returns None", lambda: two(lambda s: None), "ok")
C(G, "check returns a Row", lambda: two(lambda s: v.identity([0.0], 1.0)), "ok")
C(G, "rows of floats", lambda: two(lambda s: v.Evidence({"r": 1.0}, {})), "ok")
C(
    G,
    "bound np.float32",
    lambda: two(lambda s: v.Evidence({"r": v.identity([0.0], np.float32(1))}, {"c": v.identity([2.0], 1.0)})),
    "ok",
)
C(
    G,
    "bound jnp scalar",
    lambda: two(lambda s: v.Evidence({"r": v.identity([0.0], jnp.float32(1))}, {"c": v.identity([2.0], 1.0)})),
    "ok",
)
C(
    G,
    "at_least a numpy int",
    lambda: two(
        lambda s: v.Evidence({"r": v.statistic([1, 2, 3], at_least=np.int64(0))}, {"c": v.identity([2.0], 1.0)})
    ),
    "ok",
)
C(
    G,
    "limit order np.float32",
    lambda: two(
        lambda s: v.Evidence({"r": v.limit([1, 2, 3, 4], [1, 2, 3, 4], np.float32(1))}, {"c": v.identity([2.0], 1.0)})
    ),
    "ok",
)
C(
    G,
    "remarks a string",
    lambda: two(
        lambda s: v.Evidence({"r": v.identity([0.0], 1.0)}, {"c": v.identity([2.0], 1.0)}, remarks="one remark")
    ),
    "ok",
)
C(
    G,
    "remarks numbers (np.float64 ok?) np.int64",
    lambda: two(
        lambda s: v.Evidence({"r": v.identity([0.0], 1.0)}, {"c": v.identity([2.0], 1.0)}, remarks=[np.int64(3)])
    ),
    "ok",
)
C(
    G,
    "panel title with a lone $",
    lambda: two(
        lambda s: v.Evidence(
            {"r": v.identity([0.0], 1.0)},
            {"c": v.identity([2.0], 1.0)},
            [v.panel("cost in $ and $", ("x", [1, 2]), observed={"o": [1, 2]})],
        )
    ),
    "ok",
)
C(
    G,
    "panel title with bad mathtext",
    lambda: two(
        lambda s: v.Evidence(
            {"r": v.identity([0.0], 1.0)},
            {"c": v.identity([2.0], 1.0)},
            [v.panel("$\\foo{$", ("x", [1, 2]), observed={"o": [1, 2]})],
        )
    ),
    "ok",
)
C(
    G,
    "panel without curves",
    lambda: two(
        lambda s: v.Evidence(
            {"r": v.identity([0.0], 1.0)}, {"c": v.identity([2.0], 1.0)}, [v.panel("t", ("x", [1, 2]))]
        )
    ),
    "ok",
)
C(
    G,
    "panel of objects",
    lambda: two(
        lambda s: v.Evidence(
            {"r": v.identity([0.0], 1.0)},
            {"c": v.identity([2.0], 1.0)},
            [v.panel("t", ("x", [1, 2]), observed={"o": np.array([None, 1], object)})],
        )
    ),
    "ok",
)
C(
    G,
    "panel of complex numbers",
    lambda: two(
        lambda s: v.Evidence(
            {"r": v.identity([0.0], 1.0)},
            {"c": v.identity([2.0], 1.0)},
            [v.panel("t", ("x", [1, 2]), observed={"o": [1j, 2]})],
        )
    ),
    "ok",
)
C(
    G,
    "panel log with zeros",
    lambda: two(
        lambda s: v.Evidence(
            {"r": v.identity([0.0], 1.0)},
            {"c": v.identity([2.0], 1.0)},
            [v.panel("t", ("x", [0, 1]), observed={"o": [0, 0]}, log="xy")],
        )
    ),
    "ok",
)
C(
    G,
    "panel all NaN",
    lambda: two(
        lambda s: v.Evidence(
            {"r": v.identity([0.0], 1.0)},
            {"c": v.identity([2.0], 1.0)},
            [v.panel("t", ("x", [0, 1]), observed={"o": [nan, nan]}, log="y")],
        )
    ),
    "ok",
)
C(
    G,
    "heatmap log with zeros",
    lambda: two(
        lambda s: v.Evidence(
            {"r": v.identity([0.0], 1.0)},
            {"c": v.identity([2.0], 1.0)},
            [v.heatmap("t", ("x", [0, 1]), ("y", [0, 1]), np.zeros((2, 2)), log="z")],
        )
    ),
    "ok",
)
C(
    G,
    "panels not a list",
    lambda: two(
        lambda s: v.Evidence(
            {"r": v.identity([0.0], 1.0)},
            {"c": v.identity([2.0], 1.0)},
            v.panel("t", ("x", [0, 1]), observed={"o": [1, 2]}),
        )
    ),
    "ok",
)
C(
    G,
    "errata of dicts",
    lambda: two(
        lambda s: v.Evidence({"r": v.identity([0.0], 1.0)}, {"c": v.identity([2.0], 1.0)}, errata=[{"where": "x"}])
    ),
    "ok",
)
C(
    G,
    "two panels' labels with '/' and '..'",
    lambda: two(
        lambda s: v.Evidence(
            {"r": v.identity([0.0], 1.0)},
            {"c": v.identity([2.0], 1.0)},
            [v.panel("t", ("../../../x", [0, 1]), observed={"../../../../o": [1, 2]})],
        )
    ),
    "ok",
)
C(G, "check calls sys.exit", lambda: two(lambda s: sys.exit(3)), "ok")
C(G, "check raises KeyboardInterrupt", lambda: two(lambda s: (_ for _ in ()).throw(KeyboardInterrupt)), "ok")
C(G, "check raises with a message of 1 MB", lambda: two(lambda s: (_ for _ in ()).throw(ValueError("x" * 10**6))), "ok")
C(G, "check raises with a lone surrogate", lambda: two(lambda s: (_ for _ in ()).throw(ValueError("\udc80"))), "ok")
C(G, "check raises with an empty message", lambda: two(lambda s: (_ for _ in ()).throw(ValueError())), "ok")
C(
    G,
    "check turns x64 off",
    lambda: (
        two(lambda s: (jax.config.update("jax_enable_x64", False), good(s))[1]),
        jax.config.update("jax_enable_x64", True),
    )[0],
    "ok",
)


def traversal(name):
    d = new()
    v.verify([mk(name, good)], S, out=d)
    escaped = [str(p) for p in (*TMP.glob("x.y/*"), *Path(".").glob("x.y/*"))] + [
        str(p) for p in Path(str(TMP) + "_abs").glob("x.y/*")
    ]
    return escaped or "inside"


C(G, "claim '../x.y' writes outside out", lambda: traversal("../x.y"))
C(G, "claim '/…_abs/x.y' writes outside out", lambda: traversal(f"{TMP}_abs/x.y"))
C(G, "claim 'a\\0.b'", lambda: traversal("a\0.b"))
C(G, "claim name of 300 characters", lambda: traversal("a." + "b" * 300))


def spoiled(text, resume=True):
    d = new()
    v.verify([mk("t.a", good), mk("t.b", good)], S, out=d)
    old = json.loads((d / "results.json").read_text())
    (d / "results.json").write_bytes(text(old) if callable(text) else text)
    r = v.verify([mk("t.a", good), mk("t.b", good)], S, out=d, resume=resume)
    from traindyn.validate import results

    results.summary(r)
    [results.line(x) for x in r]
    return [x["name"] + ":" + x["verdict"] + ":" + str(x["measured"]) for x in r]


dump = lambda r: json.dumps(r).encode()
for label, text in {
    "empty file": b"",
    "invalid JSON": b"[{",
    "null": b"null",
    "{}": b"{}",
    "[]": b"[]",
    "[1]": b"[1]",
    "truncated half": lambda o: dump(o)[: len(dump(o)) // 2],
    "not UTF-8": b"\xff\xfe[]",
    "BOM": lambda o: b"\xef\xbb\xbf" + dump(o),
    "no 'failure'": lambda o: dump([{a: b for a, b in r.items() if a != "failure"} for r in o]),
    "no 'name'": lambda o: dump([{a: b for a, b in r.items() if a != "name"} for r in o]),
    "no 'measured_text'": lambda o: dump([{a: b for a, b in r.items() if a != "measured_text"} for r in o]),
    "no 'remarks'": lambda o: dump([{a: b for a, b in r.items() if a != "remarks"} for r in o]),
    "no 'control_rejected'": lambda o: dump([{a: b for a, b in r.items() if a != "control_rejected"} for r in o]),
    "seconds a string": lambda o: dump([r | {"seconds": "fast"} for r in o]),
    "rows null": lambda o: dump([r | {"rows": None} for r in o]),
    "passed 'yes'": lambda o: dump([r | {"passed": "yes"} for r in o]),
    "versions of old jax (stale)": lambda o: dump(
        [r | {"versions": {"jax": "0.1"}, "measured": 42.0, "verdict": "holds"} for r in o]
    ),
    "statement and bound changed since (stale)": lambda o: dump(
        [r | {"statement": "another statement", "bound": 1e9, "measured": 77.0} for r in o]
    ),
    "duplicates": lambda o: dump(o + [o[0] | {"measured": 55.0}]),
    "errata of other keys": lambda o: dump([r | {"errata": [{"where": "x"}]} for r in o]),
}.items():
    C("resume", label, lambda text=text: spoiled(text))
C("resume", "invalid JSON, without --resume", lambda: spoiled(b"[{", resume=False), "ok")


def other_seed():
    d = new()
    v.verify([mk("t.a", good), mk("t.b", good)], S, out=d)
    v.verify([mk("t.a", good)], v.Setting("smoke", 1), out=d, resume=True)
    return [(r["name"], r["seed"]) for r in json.loads((d / "results.json").read_text())]


C("resume", "another seed into the same folder: are the old records kept?", other_seed)


def subset():
    d = new()
    v.verify([mk("t.a", good), mk("t.b", good)], S, out=d)
    v.verify([mk("t.a", good)], S, out=d)
    return [(r["name"]) for r in json.loads((d / "results.json").read_text())]


C("resume", "a subset without resume: are the other records kept?", subset)


def subset_resume():
    d = new()
    v.verify([mk("t.a", good), mk("t.b", good)], S, out=d)
    v.verify([mk("t.a", good)], S, out=d, resume=True)
    html = (d / "report.html").read_text()
    return [("t.b in report", "t.b" in html), ("t.b in results", "t.b" in (d / "results.json").read_text())]


C("resume", "a subset with resume: does the report keep the others?", subset_resume)


def same_name_corpus():
    d = new()
    (TMP / "one").mkdir(exist_ok=True)
    (TMP / "two").mkdir(exist_ok=True)
    c = lambda text: v.Setting("smoke", 0, text, "book.txt")
    n = lambda s: v.Evidence({"r": v.identity([float(len(s.corpus))], 1e9)}, {"c": v.identity([2.0], 1.0)})
    v.verify([mk("t.a", n)], c("short"), out=d)
    return v.verify([mk("t.a", n)], c("a much longer text"), out=d, resume=True)[0]["measured"]


C("resume", "another corpus of the same file name (stale result?)", same_name_corpus)

# ---- diagnose
G = "diagnose"
from traindyn import diagnose, nets

B = nets.joma.JomaBlock(4, 3, classes=2, key=k)
D = nets.joma.Contexts(jnp.ones((2, 4)) / 4, jnp.arange(2), jnp.zeros(2, int))
C(G, "a model alone", lambda: diagnose(B, D).broken, "ok")
C(G, "a NaN model", lambda: diagnose(jax.tree.map(lambda x: x * nan, B), D).in_reach, "ok")
C(G, "model None", lambda: diagnose(None, D))
C(G, "model a string", lambda: diagnose("block", D))
C(G, "model a class", lambda: diagnose(nets.joma.JomaBlock, D))
C(G, "models []", lambda: diagnose([], D))
C(G, "models of two shapes", lambda: diagnose([B, nets.joma.JomaBlock(5, 3, classes=2, key=k)], D))
C(G, "data None", lambda: diagnose(B, None))
C(G, "data of more tokens", lambda: diagnose(B, D._replace(x=jnp.ones((2, 5)))))
C(G, "data: a label too many", lambda: diagnose(B, D._replace(label=jnp.array([0, 7]))))
C(G, "data of another network", lambda: diagnose(B, jnp.zeros((2, 2), int)))
C(G, "data a sampler", lambda: diagnose(B, nets.joma.ClassMixture(jnp.ones((2, 4)))))
C(
    G,
    "data without samples",
    lambda: diagnose(B, nets.joma.Contexts(jnp.ones((0, 4)), jnp.zeros(0, int), jnp.zeros(0, int))),
)
C(G, "claims []", lambda: diagnose(B, D, claims=[]))
C(G, "claims by name", lambda: diagnose(B, D, claims=["joma.erf_law"]))
