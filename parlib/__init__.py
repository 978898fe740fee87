"""Core of the reference reproduction of *Perturb and Recover* (PAR, arXiv 2412.00727)."""

import os

# Both are read when torch is loaded, and change no result.
# A thread that waits for the others of its training looks this often before it sleeps. By default it looks for milliseconds, on a core that
# another process could use: two trainings of two threads each on two cores then take four to eight times as long as one, with this 2.4
# times. A quarter of it would make that 2.0, but one alone a quarter slower where the machine is shared; with this it is as fast as ever.
os.environ.setdefault("GOMP_SPINCOUNT", "8000")
# Tensors in pages of 2 MB where Linux gives them: a step of PAR on two threads takes 0.37 s for 0.44, with a twentieth of the page faults.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
