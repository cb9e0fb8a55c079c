"""How to cite the papers whose claims are checked here, by the first part of a claim's name."""

BIBTEX = {
    "joma": """\
@inproceedings{tian2024joma,
  title     = {{JoMA}: Demystifying Multilayer Transformers via Joint Dynamics of {MLP} and Attention},
  author    = {Tian, Yuandong and Wang, Yiping and Zhang, Zhenyu and Chen, Beidi and Du, Simon},
  booktitle = {International Conference on Learning Representations},
  year      = {2024},
  note      = {arXiv:2310.00535}
}""",
}
