"""The report of a study: its table (printed, Markdown, CSV, LaTeX), one page, and the archive for reviewers."""

from sweeps.core.report.report import WrittenReport, report_text, write_bundle, write_report

__all__ = ["WrittenReport", "report_text", "write_bundle", "write_report"]
