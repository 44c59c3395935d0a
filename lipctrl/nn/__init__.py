"""Lipschitz layers and networks (torch) and the plain network they export to (numpy)."""
