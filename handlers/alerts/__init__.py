"""Alerts: what is raised, and how it is delivered."""
