"""The claims of the reversal curse: what is learned from A to B, and what is not from B to A, in three models."""

from ..paper import Paper

PAPER = Paper(
    "Reversal curse",
    "Zhu et al., NeurIPS 2024",
    predicts="Training on A → B teaches little or nothing about B → A: effective weights are not symmetric.",
    bibtex="""\
@inproceedings{zhu2024reversal,
  title     = {Towards a Theoretical Understanding of the 'Reversal Curse' via Training Dynamics},
  author    = {Zhu, Hanlin and Huang, Baihe and Zhang, Shaolun and Jordan, Michael and Jiao, Jiantao and Tian, Yuandong
               and Russell, Stuart},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024},
  note      = {arXiv:2405.04669}
}""",
)
