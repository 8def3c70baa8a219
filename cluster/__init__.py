"""Run jobs: pools of workers, the run loop, submission to a cluster, the Python interface and the command line."""
