"""Core of the reference reproduction of *Perturb and Recover* (PAR, arXiv 2412.00727)."""
