"""What providers say a call used, in their many shapes, as counts of one shape. Pure."""
