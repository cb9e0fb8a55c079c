"""How to cite the papers whose claims are checked here, by the first part of a claim's name."""

BIBTEX = {
    "composing": """\
@misc{tian2024composing,
  title         = {Composing Global Optimizers to Reasoning Tasks via Algebraic Objects in Neural Nets},
  author        = {Tian, Yuandong},
  year          = {2024},
  eprint        = {2410.01779},
  archivePrefix = {arXiv},
  primaryClass  = {cs.LG}
}""",
    "galore": """\
@inproceedings{zhao2024galore,
  title     = {{GaLore}: Memory-Efficient {LLM} Training by Gradient Low-Rank Projection},
  author    = {Zhao, Jiawei and Zhang, Zhenyu and Chen, Beidi and Wang, Zhangyang and Anandkumar, Anima and Tian,
               Yuandong},
  booktitle = {International Conference on Machine Learning},
  year      = {2024},
  note      = {arXiv:2403.03507}
}""",
    "grokking": """\
@misc{tian2025provable,
  title         = {Provable Scaling Laws of Feature Emergence from Learning Dynamics of Grokking},
  author        = {Tian, Yuandong},
  year          = {2025},
  eprint        = {2509.21519},
  archivePrefix = {arXiv},
  primaryClass  = {cs.LG}
}""",
    "joma": """\
@inproceedings{tian2024joma,
  title     = {{JoMA}: Demystifying Multilayer Transformers via Joint Dynamics of {MLP} and Attention},
  author    = {Tian, Yuandong and Wang, Yiping and Zhang, Zhenyu and Chen, Beidi and Du, Simon},
  booktitle = {International Conference on Learning Representations},
  year      = {2024},
  note      = {arXiv:2310.00535}
}""",
    "scan_snap": """\
@inproceedings{tian2023scan,
  title     = {Scan and Snap: Understanding Training Dynamics and Token Composition in 1-layer Transformer},
  author    = {Tian, Yuandong and Wang, Yiping and Chen, Beidi and Du, Simon},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2023},
  note      = {arXiv:2305.16380}
}""",
    "reversal": """\
@inproceedings{zhu2024reversal,
  title     = {Towards a Theoretical Understanding of the 'Reversal Curse' via Training Dynamics},
  author    = {Zhu, Hanlin and Huang, Baihe and Zhang, Shaolun and Jordan, Michael and Jiao, Jiantao and Tian, Yuandong
               and Russell, Stuart},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024},
  note      = {arXiv:2405.04669}
}""",
}
