"""Workers: what runs units in this process or in Ray actors, and the pool that keeps them."""
