"""Certificates: upper bounds that are proofs, lower bounds with a witness (numpy, no torch)."""
