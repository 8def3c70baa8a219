"""Workers and executors: run units in this process or in Ray actors, and keep the pool of workers."""
