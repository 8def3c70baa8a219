"""The report of a reduction: one self-contained HTML file, and figures for papers."""

from .origin import Origin, origin_of_run, origin_of_vectors
from .page import render_page, render_report, write_report

__all__ = ["Origin", "origin_of_run", "origin_of_vectors", "render_page", "render_report", "write_report"]
