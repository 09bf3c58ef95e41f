"""The demonstration: digits and a density that is known, learnt, drawn, and written up in one page."""

from gradlogp.reports.demonstration import demo, headline

__all__ = ["demo", "headline"]
