"""The demonstration: digits and a density that is known, learnt, drawn, and written up in one page; auto-encoders."""

from gradlogp.reports.autoencoder import (
    LearntAutoencoder,
    chain_of,
    check_output,
    draw_filters,
    draw_losses,
    learn_autoencoder,
    load_autoencoder,
    save_autoencoder,
)
from gradlogp.reports.demonstration import demo, headline

__all__ = [
    "LearntAutoencoder",
    "chain_of",
    "check_output",
    "demo",
    "draw_filters",
    "draw_losses",
    "headline",
    "learn_autoencoder",
    "load_autoencoder",
    "save_autoencoder",
]
