"""Honest evaluation: closed loops, statistics, report."""
