"""Optimal control in CasADi: LQR, NMPC, and learned policies inside the loop."""
