"""The sections of a study's report, one file each, in the order in which a reader meets them."""

from sweeps.core.report.sections.claims import CLAIMS
from sweeps.core.report.sections.classes import CLASSES
from sweeps.core.report.sections.differences import DIFFERENCES
from sweeps.core.report.sections.gallery import GALLERY
from sweeps.core.report.sections.interactions import INTERACTIONS
from sweeps.core.report.sections.means import MEANS
from sweeps.core.report.sections.results import RESULTS
from sweeps.core.report.sections.similarity import SIMILARITY
from sweeps.core.report.sections.thresholds import THRESHOLDS
from sweeps.core.report.sections.training import TRAINING

SECTIONS = (
    RESULTS,
    CLAIMS,
    DIFFERENCES,
    MEANS,
    INTERACTIONS,
    CLASSES,
    GALLERY,
    THRESHOLDS,
    SIMILARITY,
    TRAINING,
)
