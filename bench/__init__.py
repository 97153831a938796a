"""Measures the service: ``python -m bench`` for its numbers, ``python -m bench.replay`` for recorded traffic."""
