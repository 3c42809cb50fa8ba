"""The verbs of ``python -m toco``, one file each: a public module defines a click command ``command``.

A module ``export_cams`` is the verb ``export-cams``. All are imported for the help, so none may
import torch when it is imported: what works is imported where it is needed.
"""
