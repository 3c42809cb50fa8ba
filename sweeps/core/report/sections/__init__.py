"""Sections of a study's report, in the order of the page."""

from sweeps.core.report.sections.classes import CLASSES
from sweeps.core.report.sections.curves import SIMILARITY, THRESHOLDS, TRAINING
from sweeps.core.report.sections.differences import DIFFERENCES
from sweeps.core.report.sections.gallery import GALLERY
from sweeps.core.report.sections.interactions import INTERACTIONS
from sweeps.core.report.sections.looks import LOOKS
from sweeps.core.report.sections.means import MEANS
from sweeps.core.report.sections.results import CLAIMS, RESULTS

SECTIONS = (
    RESULTS,
    CLAIMS,
    LOOKS,
    DIFFERENCES,
    MEANS,
    INTERACTIONS,
    CLASSES,
    GALLERY,
    THRESHOLDS,
    SIMILARITY,
    TRAINING,
)
