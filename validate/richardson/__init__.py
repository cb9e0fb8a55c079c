"""The claims behind `compare`: the difference between SGD and a flow, at learning rate zero, is the flow's error."""

from ..paper import Paper

PAPER = Paper(
    "Richardson extrapolation of SGD",
    "Dieuleveut, Durmus and Bach, Annals of Statistics 2020",
    predicts="The mean of SGD is a smooth function of the learning rate; runs at several rates give its value at zero.",
    bibtex="""\
@article{dieuleveut2020bridging,
  title   = {Bridging the Gap between Constant Step Size Stochastic Gradient Descent and {Markov} Chains},
  author  = {Dieuleveut, Aymeric and Durmus, Alain and Bach, Francis},
  journal = {The Annals of Statistics},
  volume  = {48},
  number  = {3},
  pages   = {1348--1382},
  year    = {2020},
  note    = {arXiv:1707.06386}
}""",
)
