"""The text files, YAML, paths, names and store URLs that users write, read and checked before anything else."""
