"""One file for each command about judges and their scores."""
