"""Drives a running service with recorded traffic, as a router and a provider agent would, and checks its books."""
