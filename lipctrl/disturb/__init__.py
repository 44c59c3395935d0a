"""Disturbances: what may enter where, in which norm and units."""
