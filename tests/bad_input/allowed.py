"""Cases that end otherwise than by an error of our own, and rightly so: reason, name, and how what comes begins."""

REASONS: dict[str, dict[str, str]] = {
    "refused since: a state narrower than its flow loses digits at every step": {
        "solve: y0 float32 with float64 flow": "ValueError: flow must return float32[3] for y0, got float64[",
    },
    "the gradient is finite, and a flow needs no loss": {
        "GradientFlow: loss NaN": "float64[2, 2][-1.     -1.     -0.8944 -0.8944]",
    },
    "the formula holds there too, as its docstring says or as the flow run backwards does": {
        "joma: LinearActivation.exact t negative": "float64[3][-0.5229 -0.4113  0.1506]",
        "scan_snap: Decoder.exact t<0": "float64[][-0.1039]",
        "dynamics.galore: ReversibleGradient.exact t<0": "float64[3, 4][-1.7183 -1.7183 -1.7183 -1.7183]",
        "composing: optimum_path t=2": "float64[",
        "grokking: OutputLayer.exact t<0": "float64[2, 3][2.6881e+43 2.6881e+43 2.6881e+43 2.6881e+43]",
    },
    "whole numbers mean the same numbers as floats": {
        "joma: LinearActivation.exact int v0": "float64[3][ 0.1002  0.0801 -0.03  ]",
        "joma: invariants numpy int v": "float64[3][0. 0. 0.]",
        "representations: fourier f int": "float64[",
        "grokking: OutputLayer ints": "float64[][0.5]",
        "grokking: coupon_time ints": "float64[][1.]",
        "nets.joma: ClassMixture ints": "float64[64, 2][1. 0. 1. 0.]",
        "nets.joma: gaussian_clusters int centres": "float64[4, 3][0.7942 0.2152 2.8161 1.1878]",
        "nets.reversal: Bilinear vectors ints": "float64[2, 2][0. 0. 0. 0.]",
        "quantise: quantise ints": "float64[8][0.     1.0431 1.9675 2.8792]",
        "pairs: TwoLayer ints": "float64[][0.5]",
        "dynamics, integer or narrow states: ModeRace.exact int alpha0": "float64[2][2. 2.]",
        "dynamics, integer or narrow states: ManyNodes.exact int V0": "float64[2, 2][0.551 0.551 0.551 0.551]",
        "dynamics, integer or narrow states: NonlinearActivation.exact int v0": "float64[2][0.4027 0.4027]",
        "dynamics, integer or narrow states: LogGap.exact int y0": "float64[2][0.5154 0.5154]",
        "dynamics, integer or narrow states: LinearAttention.exact int z0": "float64[2, 1][0.5211 0.5211]",
        "dynamics, integer or narrow states: ReversibleGradient.exact int W0": "float64[3, 4][0.3935 0.3935 0.393",
        "dynamics, integer or narrow states: OutputLayer.exact int V0": "float64[2, 6][-0.1927  0.2335 -0.1474  0",
        "dynamics, integer or narrow states: OutputLayer int features, decay 0.5, limit": "float64[2, 6][-0.1552 ",
        "dynamics, integer or narrow states: InfiniteWidth.exact int r0": "float64[4, 4, 4][0.3935 0.     0.     ",
        "dynamics, integer or narrow states: Energy int w": "float64[][300.]",
        "dynamics, integer or narrow states: fourier int f": "float64[2, 2][-2.     -1.7321  1.7321 -2.    ]",
        "dynamics, integer or narrow states: predicted_logits int": "float64[3][0.5 0.5 0.5]",
        "dynamics, integer or narrow states: invariants int, rate_ratio 0.5": "float64[3][0. 0. 0.]",
        "dynamics, integer or narrow states: repulsion int features, decay 0.5": "float64[][-0.0347]",
        "dynamics, integer or narrow states: inverse_gram int features, decay 0.5": "float64[3, 3][0.6667 0.     ",
        "dynamics, integer or narrow states: maximum int a, x, b of S3": "float64[2, 6][ 0.4082 -0.3221  0.3783 -",
        "dynamics, integer or narrow states: from_weights ints": "complex128[3, 5, 2][ 4.+0.j      5.+0.j     -1.",
    },
    "a list of numbers is an array": {
        "joma: LinearActivation.exact list v0": "float64[3][ 0.1002  0.0801 -0.03  ]",
        "reversal: Bilinear start list": "float64[3, 3][1. 0. 0. 0.]",
        "grokking: OutputLayer lists": "float64[1, 1][0.]",
        "nets.joma: JomaBlock({'tokens': 2, 'nodes': 2, 'embeddings': [[1.0, 2.0, 3.0]]})": "float64[1, 2][-0.002",
        "eviction: keep scores list": "bool[2][False  True]",
    },
    "values inside jit are not known: the docstring says what happens there": {
        "joma: Mixture relu, v = 0": "float64[2][1.5 1.5]",
        "reversal: Bilinear pair out of range, jit": "float64[3, 3][-0.3333 -0.3333 -0.3333 -0.    ]",
        "reversal: OneLayer outputs 1, jit": "float64[][0.2877]",
        "dynamics.galore: ReversibleGradient b asymmetric, jit": "float64[3, 4][1. 1. 1. 1.]",
        "composing: Solution not Hermitian, jit": "NaN! float64[][nan]",
        "grokking: OutputLayer decay negative, jit": "NaN! float64[2, 3][nan nan nan nan]",
        "grokking: SingleTarget p tie for focused, jit": "NaN! float64[5][nan nan nan nan]",
        "grokking: coupon_time p zero, jit": "NaN! float64[][nan]",
        "grokking: repulsion node traced same": "NaN! float64[][nan]",
        "eviction: keep budget 0 under jit": "bool[5][False False False False]",
    },
    "the docstring says what comes there": {
        "joma: Joint x without tokens for softmax (row of zeros)": "float64[4, 3][0. 0. 0. 0.]",
        "scan_snap: SymmetricAttention no common": "float64[2][0. 0.]",
        "grokking: polar zero matrix": "float64[2, 2][0. 0. 0. 0.]",
        "nets.scan_snap: YZTransformer empty context": "float64[2][0. 0.]",
        "metrics: attention_entropy x zeros": "NaN! float64[][nan]",
    },
    "NaN in, NaN out": {
        "scan_snap: Decoder.exact t NaN": "NaN! float64[][nan]",
        "grokking: polar NaN": "NaN! float64[2, 2][nan nan nan nan]",
        "quantise: quantise NaN": "NaN! float64[3][nan nan nan]",
        "metrics: entropy NaN": "NaN! float64[][nan]",
        "metrics: largest_rise NaN": "NaN! float64[][nan]",
    },
    "the limit: at no weight at all the gap is −∞": {
        "scan_snap: logit_gap k=-inf": "float64[][-inf]",
    },
    "the equation as written, which the docstring says of other norms": {
        "grokking: SphereAscent not of norm one": "float64[2, 2, 5][ 0.  5. 10. 15.]",
    },
    "zero, to rounding: the labels lie in the span": {
        "grokking: OutputLayer.limit_gradient decay 0": "float64[",
    },
    "zero: real representations are representations too": {
        "grokking: complex_nodes of real irreps": "1.",
    },
    "0 and 1 are truth values, whatever their type": {
        "grokking: task used complex": "int64[25][0 0 0 0]",
        "pairs: pairs used ints 0/1 (~used!)": "int64[20][1 2 3 4]",
    },
    "refused since: a key that would be ignored": {
        "train: key None for data that is no sampler, given key": "ValueError: key would be ignored: data is fixe",
    },
    "NumPy's arrays train as JAX's do: 0.8³": {
        "train: model of numpy arrays": "float64[2][0.512 0.512]",
    },
    "the run says that it diverged at step 0": {
        "train: model NaN": "NaN! float64[2][nan  1.]",
        "train: data empty array": "float64[2][1. 1.]",
    },
    "the gradient is zero": {
        "train: loss that ignores the model": "float64[2][1. 1.]",
    },
    "ascent, 1.2³: which optimiser to use is the caller's choice": {
        "train: learning rate negative": "float64[2][1.728 1.728]",
    },
    "0.8⁴, with its bar": {
        "train: progress=True under jit": "float64[2][0.4096 0.4096]",
    },
    "a node a class, and no label beyond the nodes": {
        "nets.joma: cross_entropy of a block without a decoder (nodes as classes)": "float64[][1.0935]",
    },
    "each row is normalised, as the docstring says": {
        "nets.joma: class_tokens tokens 1": "float64[20, 1][1. 1. 1. 1.]",
        "nets.joma: class_tokens 200 classes of 4 tokens (underflow?)": "float64[4][0.     0.     0.8194 0.1806]",
        "nets.joma: ClassMixture rows not one": "float64[][64.]",
    },
    "the docstring says so: one string is one, or a pattern; all there are, if fewer": {
        "text: contexts queries a string": "float64[119, 6][0.     0.3333 0.     0.    ]",
        "text: frequent_queries 99": "('the', 'cat', 'dog', 'mat', 'on')",
        "nets.galore: galore_labels a string (iterates letters)": "{'b': 'full', 'w': 'galore'}",
        "nets.galore: galore_labels a longer string": "{'blocks': 'galore', 'head': 'full'}",
        "low_rank: factorise where a string": "float64[8, 4][-0.341   0.3222  0.4363  0.3565]",
        "rows: claim assumptions a string (letters)": "('gradient flow',)",
    },
    "any integer is a seed": {
        "nets.galore: galore(0.1, {'rank': 2, 'seed': -1})": "float64[4][-0.1 -0.1 -0.1 -0.1]",
    },
    "nothing in, nothing out": {
        "nets.galore: galore empty params": "{}",
        "quantise: quantise empty": "float64[0][]",
        "verify(): claims []": "[]",
        "verify(): claims []: summary/html": "[]",
    },
    "any table of labels can be learnt": {
        "nets.pair_runs: train_pairs({'table': [0, 0]})": "float32[1, 1, 1, 1, 2][0.6047 0.4232]",
    },
    "a value may come twice: one lane each": {
        "sweep: axis with the same value twice": "float64[2][2. 2.]",
        "parse_axis: 'a=1:1:3'": "float64[3][1. 1. 1.]",
    },
    "right, as NumPy and Python read it": {
        "sweep: axis xarray": "float64[2][2. 4.]",
        "sweep: fn has a side effect / impure (random)": "float64[",
        "parse_axis: 'a=1_000:2_000'": "int64[4][1000 1001 1002 1003]",
        "parse_axis: 'a=5:1:3'": "float64[3][5. 3. 1.]",
    },
    "one string is one name": {
        "sweep: dims a string": "('a', 't')",
        "sweep: dims a longer string": "<xarray.Dataset> Size: 25B",
    },
    "the chunk is found damaged and computed anew: equal to the unbroken sweep": {
        "sweep: chunk truncated to half": "int64[][1]",
        "sweep: chunk empty": "int64[][1]",
        "sweep: chunk, byte 0 flipped": "int64[][1]",
        "sweep: chunk, byte 30 flipped": "int64[][1]",
        "sweep: chunk, byte 200 flipped": "int64[][1]",
        "sweep: chunk, byte 400 flipped": "int64[][1]",
        "sweep: chunk, byte 700 flipped": "int64[][1]",
        "sweep: chunk, byte 1000 flipped": "int64[][1]",
        "sweep: chunk, byte 1300 flipped": "int64[][1]",
        "sweep: chunk, byte -30 flipped": "int64[][1]",
        "sweep: chunk, byte -200 flipped": "int64[][1]",
        "sweep: foreign chunk-abc.npz": "int64[][1]",
        "sweep: chunk-.npz with a copy (chunk-000001 copy.npz)": "int64[][1]",
        "sweep: sweep.json empty": "int64[][1]",
        "sweep: sweep.json []": "int64[][1]",
        "sweep: sweep.json {}": "int64[][1]",
        "sweep: sweep.json without jax, other fn": "int64[][1]",
        "sweep: chunk with a pickled object": "int64[][1]",
        "sweep: chunk with lane −1 and values of another run": "int64[][1]",
        "sweep: read-only value of NaN status chunk: lanes 99": "int64[][1]",
    },
    "right: 2⁶³ as a float, 255, and nothing measured": {
        "rows: identity int min (abs overflows)": "'refuted'",
        "rows: identity uint difference wraps": "255.0",
        "rows: statistic inf sample": "'undecided'",
    },
    "an error relative to zero is infinite": {
        "metrics: relative_error of zero": "float64[][inf]",
    },
    "without the mark": {
        "read_corpus: BOM": "'hello'",
    },
    "what no other process can import is checked in this one": {
        "verify(): jobs 2 with local claims": "[{'name': 't.a', 'paper': 'P', 'statement': 'S', 'kind': 'id",
    },
    "an interrupt is the user's, and ends the run": {
        "verify(): check raises KeyboardInterrupt": "KeyboardInterrupt:",
    },
    "right: kept, or computed anew because what decides it differs": {
        "resume: []": "['t.a:holds:0.0', 't.b:holds:0.0']",
        "resume: another seed into the same folder: are the old records kept?": "[('t.a', 0), ('t.b', 0), ('t.a',",
        "resume: a subset without resume: are the other records kept?": "['t.a', 't.b']",
        "resume: a subset with resume: does the report keep the others?": "[('t.b in report', True), ('t.b in res",
        "resume: another corpus of the same file name (stale result?)": "18.0",
    },
}
ALLOWED = {name: start for cases in REASONS.values() for name, start in cases.items()}
