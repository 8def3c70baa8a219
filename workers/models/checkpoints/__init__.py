"""A checkpoint as it lies in a directory or on the hub: its files, what is wrong with them, and what they hold."""
