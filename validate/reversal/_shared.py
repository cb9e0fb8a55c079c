"""What the claims of the reversal curse share."""

TIME = "t = learning rate × step"
