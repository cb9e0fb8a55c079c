"""What the claims of the reversal curse share."""

PAPER = "Reversal curse (Zhu et al., NeurIPS 2024, arXiv 2405.04669)"

TIME = "t = learning rate × step"
