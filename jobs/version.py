"""The version of the package, for records, images and jobs that are sent to a cluster."""

from __future__ import annotations

__version__ = "0.1.0"
