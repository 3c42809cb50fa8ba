"""Check a complete data set and report every fault before a training fails on it.

A fault makes a training refuse the data or fail. Other remarks are notes.
"""

from toco.data.check.findings import Report
from toco.data.check.folder import check_folder
from toco.data.check.splits import check_splits

__all__ = ["Report", "check_folder", "check_splits"]
