"""The claims of GaLore: the form of the gradient, how its rank falls, what the transform does, and what it saves."""

from ..paper import Paper

PAPER = Paper(
    "GaLore",
    "Zhao et al., ICML 2024",
    predicts="Gradients become low rank in training, so optimiser states may live in a slowly changing subspace.",
    bibtex="""\
@inproceedings{zhao2024galore,
  title     = {{GaLore}: Memory-Efficient {LLM} Training by Gradient Low-Rank Projection},
  author    = {Zhao, Jiawei and Zhang, Zhenyu and Chen, Beidi and Wang, Zhangyang and Anandkumar, Anima and Tian,
               Yuandong},
  booktitle = {International Conference on Machine Learning},
  year      = {2024},
  note      = {arXiv:2403.03507}
}""",
)
