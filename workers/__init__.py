"""Run a model: loading, chat rendering, generation and capture. Imports neither Ray nor the store."""

import os

# The threads of torch compute a part of each operation and then wait for one another. By default OpenMP lets them wait
# in a loop, for a few hundred microseconds at least. Where another program has taken a core, the thread that all wait
# for is not running, and the loops of the others take the time that it would need: a run became ten times as slow
# beside two programs on two cores. OpenMP reads this when torch is imported, which no module does before it has
# imported this package. It is inherited by processes that are started from here, and a user's own choice is kept.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "passive"
    # Of GNU's OpenMP, which torch brings on Linux: some two hundred microseconds of spinning before a thread sleeps.
    # Threads that run beside each other wait for less, and to be woken each time would cost them a few per cent.
    os.environ.setdefault("GOMP_SPINCOUNT", "4000")
