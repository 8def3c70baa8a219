"""Read conversations and prompts from files, in the layouts that leave nothing to guess; knows no sources."""
