"""The claims of Li2: three stages of feature learning on group tasks, theory and training."""

from ..paper import Paper

PAPER = Paper(
    "Provable Scaling Laws of Feature Emergence from Learning Dynamics of Grokking",
    "Tian",
    predicts="Features emerge in three stages (lazy, independent, interactive), from M log M pairs of elements.",
    bibtex="""\
@misc{tian2025provable,
  title         = {Provable Scaling Laws of Feature Emergence from Learning Dynamics of Grokking},
  author        = {Tian, Yuandong},
  year          = {2025},
  eprint        = {2509.21519},
  archivePrefix = {arXiv},
  primaryClass  = {cs.LG}
}""",
)
