"""The report of a study: its table (printed, Markdown, CSV) and one page that needs nothing but a browser."""

from sweeps.core.report.write import StudyReport, write_report

__all__ = ["StudyReport", "write_report"]
