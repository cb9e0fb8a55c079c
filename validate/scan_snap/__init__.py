"""The claims of Scan and Snap: attention scans for the tokens that distinguish classes, then snaps."""

from ..paper import Paper

PAPER = Paper(
    "Scan and Snap",
    "Tian et al., NeurIPS 2023",
    predicts="Attention grows on distinct tokens, falls on common ones, and snaps at a phase transition.",
    bibtex="""\
@inproceedings{tian2023scan,
  title     = {Scan and Snap: Understanding Training Dynamics and Token Composition in 1-layer Transformer},
  author    = {Tian, Yuandong and Wang, Yiping and Chen, Beidi and Du, Simon},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2023},
  note      = {arXiv:2305.16380}
}""",
)
