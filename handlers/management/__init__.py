"""The agent about itself: its health, whether its sums agree, and the contract it speaks."""
