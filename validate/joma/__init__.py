"""The claims of JoMA: attention and MLP move together, and what follows for attention over training."""

from ..paper import Paper

PAPER = Paper(
    "JoMA",
    "Tian et al., ICLR 2024",
    predicts="Attention logits equal half the sum of squared MLP weights: attention sparsens, then comes back.",
    bibtex="""\
@inproceedings{tian2024joma,
  title     = {{JoMA}: Demystifying Multilayer Transformers via Joint Dynamics of {MLP} and Attention},
  author    = {Tian, Yuandong and Wang, Yiping and Zhang, Zhenyu and Chen, Beidi and Du, Simon},
  booktitle = {International Conference on Learning Representations},
  year      = {2024},
  note      = {arXiv:2310.00535}
}""",
)
