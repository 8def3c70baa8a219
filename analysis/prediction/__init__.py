"""Predicting where a reply will lie on an axis from the message before it: ridge regression, held out; clusters."""
