"""Where it runs: Ray sessions, the run loop, the command line. Here a worker's block meets the store."""
