"""Command line cases in one process by click's runner: exit code, message, traceback or not, and what was left on disk."""

import json
import os
import shutil
import time
import warnings

os.environ.setdefault("MPLBACKEND", "agg")
from pathlib import Path

from click.testing import CliRunner

from traindyn.__main__ import main

from .cases import Outcome

TMP = Path.cwd()  # a temporary folder: see __main__
OUTCOMES = []
n = [0]


def new():
    n[0] += 1
    return TMP / f"o{n[0]}"


def file(b, name=None):
    p = TMP / (name or f"f{n[0]}")
    n[0] += 1
    p.write_bytes(b)
    return str(p)


GOODCLAIM = """
import jax.numpy as jnp, numpy as np
from traindyn.validate import Evidence, claim, identity, panel, Erratum
@claim("S <script>alert(2)</script>", source="<img src=x onerror=alert(3)>", assumptions=("<b>a</b>",), name="%s", paper="P<script>alert(1)</script>")
def check(setting):
    return Evidence(rows={"<script>alert(5)</script>": identity([0.0], 1.0)}, control={"c\\" onmouseover=alert(4)": identity([2.0], 1.0)}, panels=[panel("<svg/onload=alert(6)>", ("x", [1, 2]), observed={"o": [1, 2]})], remarks=["<script>alert(7)</script>", "</style></head><script>8</script>"], errata=[Erratum("<script>9</script>", "p", "c", 1.0, 2.0)])
CLAIMS = (check,)
"""


def claims(name, text=GOODCLAIM, stem=None):
    stem = stem or f"claims_{n[0]}"
    n[0] += 1
    p = TMP / f"{stem}.py"
    p.write_text(text % name if "%s" in text else text)
    return str(p)


def C(label, args, expect="2", look=None):
    """Runs a command now, in this process. `expect` lists the exit statuses that are right, or "undecided"."""
    args, start = [str(a) for a in args], time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = CliRunner().invoke(main, args)
    seconds = round(time.perf_counter() - start, 2)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        text = f"{type(result.exception).__name__}: {' '.join(str(result.exception).split())[:300]}"
        OUTCOMES.append(Outcome(f"command line: {label}", "poor", text, seconds))
        return
    lines = (result.output or "").strip().splitlines()
    right = str(result.exit_code) in expect.split(" or ") or ("undecided" in expect and "undecided" in result.output)
    seen = str(look()) if look else ""
    text = f"exit {result.exit_code}, needs {expect}: {lines[-1][:250] if lines else ''} {seen}"
    ending = "good" if right else "bad" if result.exit_code == 0 else "poor"
    OUTCOMES.append(Outcome(f"command line: {label}", ending, text, seconds))


# names and options
C("no command", [], "2")
C("unknown command", ["train2"])
C("verify unknown name", ["verify", "nope"])
C("verify empty name", ["verify", ""])
C("verify name with dot at end", ["verify", "joma."])
C("verify seed -1", ["verify", "galore.memory_table", "--seed", "-1"])
C("verify seed 2**40", ["verify", "galore.memory_table", "--scale", "smoke", "--seed", 2**40, "--out", new()], "0")
C("verify seed 2**70", ["verify", "composing.occam_norm", "--scale", "smoke", "--seed", 2**70, "--out", new()])
C("verify scale", ["verify", "galore.memory_table", "--scale", "tiny"])
C("verify jobs 0", ["verify", "galore.memory_table", "--jobs", "0"])
C("verify corpus missing", ["verify", "galore.memory_table", "--corpus", "nope.txt"])
C("verify corpus folder", ["verify", "galore.memory_table", "--corpus", TMP])
C("verify corpus empty", ["verify", "galore.memory_table", "--corpus", file(b"")])
C(
    "verify corpus of one word",
    ["verify", "joma.text_invariant", "--scale", "smoke", "--corpus", file(b"hello"), "--out", new()],
    "2 or undecided",
)
C(
    "verify corpus one line of 20 words",
    [
        "verify",
        "galore.text_perplexity",
        "--scale",
        "smoke",
        "--corpus",
        file(b"the cat sat on the mat " * 4),
        "--out",
        new(),
    ],
    "2 or undecided",
)
C("verify out is a file", ["verify", "galore.memory_table", "--scale", "smoke", "--out", file(b"x")])
C("verify out below a file", ["verify", "galore.memory_table", "--scale", "smoke", "--out", file(b"x") + "/sub"])
C("verify out /proc/x", ["verify", "galore.memory_table", "--scale", "smoke", "--out", "/proc/nope"])
C("verify --claims missing file", ["verify", "--claims", "nope.py"])
C("verify --claims syntax error", ["verify", "--claims", claims("", "def (:\n")])
C("verify --claims raises at import", ["verify", "--claims", claims("", "1/0\n")])
C("verify --claims without CLAIMS", ["verify", "--claims", claims("", "x = 1\n")])
C("verify --claims CLAIMS None", ["list", "--claims", claims("", "CLAIMS = None\n")])
C("verify --claims CLAIMS of strings", ["list", "--claims", claims("", "CLAIMS = ('a', 'b')\n")])
C(
    "verify --claims CLAIMS one claim, no tuple",
    ["list", "--claims", claims("x.y", GOODCLAIM.replace("CLAIMS = (check,)", "CLAIMS = check"))],
)
C("verify --claims same name as a built-in", ["list", "--claims", claims("joma.blow_up")])
C("verify --claims file named json.py (a module that is there)", ["list", "--claims", claims("x.y", stem="json")])
C("verify --claims file with a dash", ["list", "--claims", claims("x.y", stem="my-claims")], "0")
C("verify --claims file with a dot", ["list", "--claims", claims("x.y", stem="my.claims")])
C("verify --claims relative ../", ["list", "--claims", "../nope.py"])
C("verify --claims a folder.py", ["list", "--claims", (TMP / "folder.py").mkdir() or TMP / "folder.py"])
d = new()
C(
    "claim '../x.y' through the command line",
    ["verify", "../x", "--claims", claims("../x.y"), "--scale", "smoke", "--jobs", "1", "--out", d],
    "2",
    lambda: sorted(str(p.relative_to(TMP)) for p in TMP.rglob("evidence.nc")),
)
d2 = new()
C(
    "claim with script in all its texts",
    ["verify", "evil", "--claims", claims("evil.x"), "--scale", "smoke", "--jobs", "1", "--out", d2],
    "0",
    lambda: {
        "raw script tags in report": (d2 / "report.html").read_text().count("<script"),
        "onerror raw": "<img src=x" in (d2 / "report.html").read_text(),
        "quote breaks attribute": '" onmouseover' in (d2 / "report.html").read_text(),
    },
)
C(
    "claim '<script>…</script>' (with a slash)",
    [
        "verify",
        "evil",
        "--claims",
        claims("evil.<script>alert(0)</script>"),
        "--scale",
        "smoke",
        "--jobs",
        "1",
        "--out",
        new(),
    ],
    "2",
)


# resume through the command line
def spoiled(text):
    d = new()
    d.mkdir()
    (d / "results.json").write_bytes(text)
    return d


C("resume: invalid JSON", ["verify", "galore.memory_table", "--scale", "smoke", "--resume", "--out", spoiled(b"[{")])
C("resume: empty file", ["verify", "galore.memory_table", "--scale", "smoke", "--resume", "--out", spoiled(b"")])
C(
    "resume: not a list",
    ["verify", "galore.memory_table", "--scale", "smoke", "--resume", "--out", spoiled(b'{"a": 1}')],
)
C(
    "resume: list of numbers",
    ["verify", "galore.memory_table", "--scale", "smoke", "--resume", "--out", spoiled(b"[1]")],
)
base = {
    "name": "galore.memory_table",
    "scale": "smoke",
    "seed": 0,
    "dtype": "float64",
    "corpus": "pydoc_data.topics",
    "failure": "",
}
C(
    "resume: a record with the keys of the settings only",
    ["verify", "galore.memory_table", "--scale", "smoke", "--resume", "--out", spoiled(json.dumps([base]).encode())],
)
C(
    "resume: no key failure",
    [
        "verify",
        "galore.memory_table",
        "--scale",
        "smoke",
        "--resume",
        "--out",
        spoiled(json.dumps([{k: v for k, v in base.items() if k != "failure"}]).encode()),
    ],
)
C(
    "resume: results.json is a folder",
    [
        "verify",
        "galore.memory_table",
        "--scale",
        "smoke",
        "--resume",
        "--out",
        (lambda d: ((d / "results.json").mkdir(parents=True), d)[1])(new()),
    ],
)
C("resume without a folder", ["verify", "galore.memory_table", "--scale", "smoke", "--resume", "--out", new()], "0")
# sweep
F = "joma.LinearActivation"
C("sweep unknown", ["sweep", "nope"])
C("sweep empty name", ["sweep", ""])
C("sweep unknown axis", ["sweep", F, "--axis", "mu=1,2", "--out", new()])
C("sweep axis syntax", ["sweep", F, "--axis", "delta", "--out", new()])
C("sweep axis 10^9 values", ["sweep", F, "--axis", "delta=1:2:1000000000", "--out", new()])
C("sweep learning_rate 0", ["sweep", F, "--axis", "learning_rate=0,0.1", "--out", new()])
C("sweep learning_rate negative", ["sweep", F, "--axis", "learning_rate=-0.1,0.1", "--out", new()])
# The lane fails, its status says why, the others are well.
C(
    "sweep learning_rate 1e-300 (steps beyond int)",
    ["sweep", F, "--axis", "learning_rate=1e300,0.1", "--out", new()],
    "0",
)
C("sweep learning_rate nan", ["sweep", F, "--axis", "learning_rate=nan,0.1", "--out", new()])
# As above.
C("sweep delta 0 (nothing moves)", ["sweep", F, "--axis", "delta=0,1", "--out", new()], "0")
C("sweep seed beyond int32", ["sweep", F, "--axis", "seed=5000000000:5000000002", "--out", new()], "0")
C("sweep seed fractional", ["sweep", F, "--axis", "seed=0.5,1.5", "--out", new()])
C(
    "sweep same axis twice",
    ["sweep", F, "--axis", "delta=1,2", "--axis", "delta=3,4", "--out", new()],
    "2",
)
C("sweep time negative", ["sweep", F, "--axis", "time=-1,1", "--out", new()])
C(
    "sweep joma.Mixture sigma -1",
    ["sweep", "joma.Mixture", "--axis", "sigma=-1,1", "--axis", "learning_rate=0.1,0.2", "--out", new()],
)
C(
    "sweep Decoder outputs 1",
    ["sweep", "scan_snap.Decoder", "--axis", "outputs=1,5", "--axis", "learning_rate=0.1,0.2", "--out", new()],
)
C("sweep claim without axis", ["sweep", "galore.memory_table", "--out", new()])
C("sweep claim axis delta", ["sweep", "galore.memory_table", "--axis", "delta=1,2", "--out", new()])
C("sweep claim seed fractional", ["sweep", "composing.occam_norm", "--axis", "seed=0.5,1.5", "--out", new()])
C("sweep claim seed negative", ["sweep", "composing.occam_norm", "--axis", "seed=-2:0", "--out", new()])
C("sweep claim seed twice (0,0)", ["sweep", "galore.memory_table", "--axis", "seed=0,0", "--out", new()], "0 or 2")
C("sweep --processes without coordinator", ["sweep", F, "--processes", "2"])
C("sweep --process 0 without coordinator", ["sweep", F, "--process", "0"])
C("sweep out is a file", ["sweep", F, "--out", file(b"x")])
C("sweep out below a file", ["sweep", F, "--axis", "delta=1,2", "--out", file(b"x") + "/s"])
C("sweep out /proc/x", ["sweep", F, "--axis", "delta=1,2", "--out", "/proc/nope"])
C("sweep batch-size 0", ["sweep", F, "--batch-size", "0"])
C("sweep devices 0", ["sweep", F, "--devices", "0"])


def swept(spoil):
    d = new()
    CliRunner().invoke(main, ["sweep", F, "--axis", "delta=1,2", "--out", str(d)])
    spoil(d)
    return d


ch = lambda d: sorted(d.glob("chunk-*.npz"))[0]
# Found damaged and computed anew.
C(
    "sweep, chunk truncated",
    ["sweep", F, "--axis", "delta=1,2", "--out", swept(lambda d: ch(d).write_bytes(ch(d).read_bytes()[:500]))],
    "0",
)
# As above.
C("sweep, chunk empty", ["sweep", F, "--axis", "delta=1,2", "--out", swept(lambda d: ch(d).write_bytes(b""))], "0")
# As above.
C(
    "sweep, sweep.json {}",
    ["sweep", F, "--axis", "delta=1,2", "--out", swept(lambda d: (d / "sweep.json").write_text("{}"))],
    "0",
)
# As above.
C(
    "sweep, sweep.json truncated",
    ["sweep", F, "--axis", "delta=1,2", "--out", swept(lambda d: (d / "sweep.json").write_text('{"same'))],
    "0",
)
C("sweep, other axes into the folder", ["sweep", F, "--axis", "delta=1,3", "--out", swept(lambda d: None)])
C(
    "sweep, sweep.nc truncated",
    ["sweep", F, "--axis", "delta=1,2", "--out", swept(lambda d: (d / "sweep.nc").write_bytes(b"CDF"))],
    "0",
)
# cite
C("cite unknown", ["cite", "nope"])
C("cite mine", ["cite", "joma.blow_up"], "0")
# train
T = [
    "train",
    "--config",
    "tiny",
    "--steps",
    "2",
    "--batch",
    "2",
    "--length",
    "8",
    "--eval-every",
    "1",
    "--checkpoint-every",
    "1",
]
big = file(b"the quick brown fox jumps over the lazy dog. " * 60, "book.txt")
C("train config unknown", ["train", "--config", "9B"])
C("train corpus missing", [*T, "--corpus", "nope", "--out", new()])
C("train corpus empty", [*T, "--corpus", file(b""), "--out", new()])
C("train corpus binary", [*T, "--corpus", file(bytes(range(256))), "--out", new()])
C("train corpus Latin-1", [*T, "--corpus", file("é".encode("latin-1") * 500), "--out", new()])
C("train corpus one line of 9 bytes", [*T, "--corpus", file(b"hello you"), "--out", new()])
C("train corpus held-out tenth too short", [*T, "--corpus", file(b"x" * 60), "--out", new()])
C("train corpus whitespace", [*T, "--corpus", file(b" \n" * 500), "--out", new()])
C(
    "train words of a corpus without words",
    [*T, "--tokens", "words", "--corpus", file(b"... !!! " * 200), "--out", new()],
)
C("train corpus of one word, words", [*T, "--tokens", "words", "--corpus", file(b"word " * 400), "--out", new()], "0")
C("train vocabulary with bytes", [*T, "--vocabulary", "50", "--corpus", big, "--out", new()])
C("train vocabulary 1", [*T, "--tokens", "words", "--vocabulary", "1", "--corpus", big, "--out", new()])
C("train rank 0", [*T, "--optimiser", "galore", "--rank", "0", "--corpus", big, "--out", new()])
C("train rank 65 of 64", [*T, "--optimiser", "galore", "--rank", "65", "--corpus", big, "--out", new()])
C("train rank with adam", [*T, "--rank", "4", "--corpus", big, "--out", new()])
C("train decay with adam", [*T, "--weight-decay", "0.1", "--corpus", big, "--out", new()])
C("train learning rate 0", [*T, "--learning-rate", "0", "--corpus", big, "--out", new()])
C("train learning rate nan", [*T, "--learning-rate", "nan", "--corpus", big, "--out", new()])
C("train learning rate inf", [*T, "--learning-rate", "inf", "--corpus", big, "--out", new()])
C("train scale nan", [*T, "--optimiser", "galore", "--scale", "nan", "--corpus", big, "--out", new()])
C("train weight decay nan", [*T, "--optimiser", "adamw", "--weight-decay", "nan", "--corpus", big, "--out", new()])
C("train clip nan", [*T, "--clip", "nan", "--corpus", big, "--out", new()])
C("train steps 0", [*T, "--steps", "0", "--corpus", big, "--out", new()])
C(
    "train steps 10**12, warm-up default: accepted? (not run: bad corpus)",
    ["train", "--steps", 10**12, "--corpus", "nope", "--out", new()],
)
C("train warmup >= steps", [*T, "--warmup", "2", "--corpus", big, "--out", new()])
C("train seed -1", [*T, "--seed", "-1", "--corpus", big, "--out", new()])
C("train seed 2**70", [*T, "--seed", 2**70, "--corpus", big, "--out", new()])
C("train seed 2**33 (float32: int32 keys)", [*T, "--seed", 2**33, "--corpus", big, "--out", new()], "0")
C("train mesh 2", [*T, "--mesh", "2", "--corpus", big, "--out", new()])
C("train mesh 0x1", [*T, "--mesh", "0x1", "--corpus", big, "--out", new()])
C("train mesh 99x1", [*T, "--mesh", "99x1", "--corpus", big, "--out", new()])
C("train mesh 1x-1", [*T, "--mesh", "1x-1", "--corpus", big, "--out", new()])
C("train mesh 1X1", [*T, "--mesh", "1X1", "--corpus", big, "--out", new()])
C("train mesh 1x1x1", [*T, "--mesh", "1x1x1", "--corpus", big, "--out", new()])
C("train dtype", [*T, "--dtype", "float16", "--corpus", big, "--out", new()])
C("train out is a file", [*T, "--corpus", big, "--out", file(b"x")])
C("train out below a file", [*T, "--corpus", big, "--out", file(b"x") + "/t"])
C("train resume without a run", [*T, "--corpus", big, "--resume", "--out", new()])
run0 = new()
C("train, good", [*T, "--corpus", big, "--out", run0], "0", lambda: sorted(p.name for p in run0.iterdir()))
C("train again without --resume", [*T, "--corpus", big, "--out", run0])
C("train resume, other rate", [*T, "--corpus", big, "--learning-rate", "0.5", "--resume", "--out", run0])
C("train resume, more steps", [*T, "--steps", "4", "--corpus", big, "--resume", "--out", run0])
C("train resume, other corpus", [*T, "--corpus", file(b"another text " * 99, "other.txt"), "--resume", "--out", run0])
C(
    "train resume, the same text by another name",
    [*T, "--corpus", file(Path(big).read_bytes(), "copy.txt"), "--resume", "--out", run0],
)
C("train resume, finished", [*T, "--corpus", big, "--resume", "--out", run0], "0")


def trained(spoil):
    d = new()
    shutil.copytree(run0, d)
    spoil(d)
    return d


R = lambda spoil: [*T, "--corpus", big, "--resume", "--out", trained(spoil)]
mj = lambda d: d / "metrics.jsonl"
C("resume: metrics.jsonl deleted (finished run)", R(lambda d: mj(d).unlink()), "0 or 2")
C("resume: metrics.jsonl empty", R(lambda d: mj(d).write_text("")), "0 or 2")
C("resume: metrics.jsonl last line cut", R(lambda d: mj(d).write_text(mj(d).read_text()[:-20])), "0", lambda: None)
C(
    "resume: metrics.jsonl a broken line in the middle",
    R(lambda d: mj(d).write_text(mj(d).read_text().replace("\n", "garbage\n", 1))),
    "2",
)
# What a crash leaves after the last whole line is cut off.
C(
    "resume: metrics.jsonl lines of NULs at the end",
    R(lambda d: mj(d).write_bytes(mj(d).read_bytes() + b"\0" * 100 + b"\n")),
    "0",
)
C("resume: metrics.jsonl binary", R(lambda d: mj(d).write_bytes(b"\xff\xfe\n")), "2")
C("resume: metrics.jsonl a list", R(lambda d: mj(d).write_text("[1]\n")), "2")
C("resume: metrics.jsonl blank line", R(lambda d: mj(d).write_text("\n" + mj(d).read_text())), "2")
# The checkpoint holds the options, too.
C("resume: config.json empty", R(lambda d: (d / "config.json").write_text("")), "0")
# As above.
C("resume: config.json []", R(lambda d: (d / "config.json").write_text("[]")), "0")
C(
    "resume: config.json missing a key",
    R(
        lambda d: (d / "config.json").write_text(
            json.dumps({k: v for k, v in json.loads((d / "config.json").read_text()).items() if k != "remat"})
        )
    ),
)
C(
    "resume: config.json with a key more (newer version)",
    R(
        lambda d: (d / "config.json").write_text(
            json.dumps(json.loads((d / "config.json").read_text()) | {"new_option": 1})
        )
    ),
)
C("resume: checkpoints deleted", R(lambda d: shutil.rmtree(d / "checkpoints")), "0")
C(
    "resume: newest checkpoint an empty folder",
    R(lambda d: (shutil.rmtree(d / "checkpoints" / "2"), (d / "checkpoints" / "2").mkdir())),
    "2 or 0",
)
C(
    "resume: newest checkpoint without default item",
    R(lambda d: shutil.rmtree(d / "checkpoints" / "2" / "default")),
    "2 or 0",
)
C("resume: temporary checkpoint left", R(lambda d: (d / "checkpoints" / "3.orbax-checkpoint-tmp-1").mkdir()), "0")
C("resume: checkpoint of a foreign name", R(lambda d: (d / "checkpoints" / "old").mkdir()), "0")
