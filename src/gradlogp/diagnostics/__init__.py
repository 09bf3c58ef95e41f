"""Is it right, and how far off is it: the theorem as a tool, and measured numbers with their errors."""

from gradlogp.diagnostics.estimates import Z_THRESHOLD, Bracket, Estimate
from gradlogp.diagnostics.identities import Equivalence, SelfCheck, equivalence, self_check

__all__ = ["Z_THRESHOLD", "Bracket", "Equivalence", "Estimate", "SelfCheck", "equivalence", "self_check"]
