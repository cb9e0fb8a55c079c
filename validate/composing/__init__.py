"""The claims of composing global optimisers: the algebra, the solutions built by hand, what training finds."""

from ..paper import Paper

PAPER = Paper(
    "Composing Global Optimizers",
    "Tian",
    predicts="Quadratic networks learn group addition by sums and products of simple solutions, a semi-ring.",
    bibtex="""\
@misc{tian2024composing,
  title         = {Composing Global Optimizers to Reasoning Tasks via Algebraic Objects in Neural Nets},
  author        = {Tian, Yuandong},
  year          = {2024},
  eprint        = {2410.01779},
  archivePrefix = {arXiv},
  primaryClass  = {cs.LG}
}""",
)
