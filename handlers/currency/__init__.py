"""Exchange rates: dated, exact, frozen for each budget window; and sums told in one currency."""
