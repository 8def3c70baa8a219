"""Judging responses: rubrics that are filled in, replies that are read, requests in flight, their cost. Pure."""
