"""The demonstration: digits and a density that is known, learnt, drawn, and written up in one page; auto-encoders."""

from gradlogp.reports.autoencoder import (
    LearntAutoencoder,
    chain_of,
    check_pictures,
    draw_filters,
    draw_losses,
    learn_autoencoder,
    save_pictures,
)
from gradlogp.reports.demonstration import demo, headline

__all__ = [
    "LearntAutoencoder",
    "chain_of",
    "check_pictures",
    "demo",
    "draw_filters",
    "draw_losses",
    "headline",
    "learn_autoencoder",
    "save_pictures",
]
