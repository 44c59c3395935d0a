"""Adversaries: search over a disturbance set, with the cost counted."""
