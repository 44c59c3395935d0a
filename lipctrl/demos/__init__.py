"""Demonstrations: checked trajectories, one documented file per data set."""
