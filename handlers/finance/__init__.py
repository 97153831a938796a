"""Who bears what, what a plan would cost, and invoices."""
