"""What a call costs: rate cards, exact prices and the signals that tell them. Records nothing."""
