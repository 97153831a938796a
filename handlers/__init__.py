"""Decisions: pure functions on top, effects through the context, routes as data at the foot of each module."""
