"""Budgets: which apply, what fits, and what a reservation holds until its call is settled."""
