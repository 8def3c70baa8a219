"""``python -m persona_atlas.cluster.cli``: the same as the command ``persona-atlas``."""

from . import main

main()
