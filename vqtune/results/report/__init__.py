"""The report of a study: one HTML file that opens offline, and a PNG of every figure."""

from vqtune.results.report.write import write_report

__all__ = ["write_report"]
