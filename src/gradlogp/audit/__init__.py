"""What one model is worth, measured on held-out rows: numbers with their errors, three sentences, a page."""

from gradlogp.audit.measure import MIN_DRAWS, MIN_ROWS, measure
from gradlogp.audit.result import Audit, Repeats, check_folder
from gradlogp.audit.sentences import Sentences
from gradlogp.audit.view import View

__all__ = ["MIN_DRAWS", "MIN_ROWS", "Audit", "Repeats", "Sentences", "View", "check_folder", "measure"]
