"""Conversations whose turns are generated one after another: who plays the user, and what they talk about."""
