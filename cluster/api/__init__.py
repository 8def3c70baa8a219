"""The Python interface: what the commands do, as functions.

Each function does what the command of the same name does and raises the same errors; progress goes to stderr. The names
that a program should use are those of ``persona_atlas``; these modules are where they are made.
"""
