"""Decode a whole data set once and report every fault, before a training meets one.

A fault is what a training refuses, or fails on. All else that is worth a look is a note.
"""

from toco.data.check.findings import Report
from toco.data.check.folder import check_folder
from toco.data.check.splits import check_splits

__all__ = ["Report", "check_folder", "check_splits"]
