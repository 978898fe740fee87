"""Core of the reference reproduction of *Perturb and Recover* (PAR, arXiv 2412.00727)."""

import os

# Both are read when torch is loaded, and change no result.
# A thread that waits for the others of its training looks this often before it sleeps. By default it looks for milliseconds, on a core that
# another process could use: two trainings of two threads each on two cores took twice as long as one after the other, and take as long with
# this; one alone is as fast as before.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
# Tensors in pages of 2 MB where Linux gives them: a step of PAR on two threads takes 0.37 s for 0.44, with 2 % of the page faults.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
