"""The report of a run: one HTML page that needs nothing else, the same as JSON, and the picture of the headline."""

from sandbox.report.build import build_report
from sandbox.report.picture import write_headline_picture
from sandbox.report.record import RunRecord

__all__ = ["RunRecord", "build_report", "write_headline_picture"]
