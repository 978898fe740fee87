"""Core of the reference reproduction of *Perturb and Recover* (PAR, arXiv 2412.00727)."""

import os

# Before torch is loaded: a thread that waits for the others of its training looks this often before it sleeps. By default it looks for
# milliseconds, on a core that another process could use: two trainings of two threads each on two cores took twice as long as one after
# the other, and take as long with this; one alone is as fast as before.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
