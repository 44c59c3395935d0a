"""Networks as CasADi functions, for optimisation, differentiation and C code."""
