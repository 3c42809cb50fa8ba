"""Report of a study: tables, an HTML page, and the archive for reviewers."""

from sweeps.core.report.report import WrittenReport, report_text, write_bundle, write_report

__all__ = ["WrittenReport", "report_text", "write_bundle", "write_report"]
