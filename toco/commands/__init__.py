"""Verbs of ``python -m toco``, one file each with a click command ``command``.

The module ``export_cams`` is the verb ``export-cams``. The help imports all modules, so none may
import torch at module level; commands import what they need inside their functions.
"""
