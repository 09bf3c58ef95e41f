"""The page of a report: one file, no network."""

from __future__ import annotations

import base64
import html
import math
import platform
from collections.abc import Iterable, Sequence
from datetime import date
from importlib.metadata import version

from matplotlib.figure import Figure

from gradlogp.audit.canvas import png
from gradlogp.audit.columns import limit
from gradlogp.audit.pictures import (
    IMAGES,
    POINTS,
    draw_checks,
    draw_learning,
    draw_marginals,
    draw_samples,
    draw_score_error,
    shown_marginals,
)
from gradlogp.audit.result import MARK, Audit
from gradlogp.audit.words import percent, shown
from gradlogp.diagnostics import Bracket, Estimate, LevelError
from gradlogp.training import kept

STYLE = """
:root { color-scheme: light dark; --paper: #fcfcfa; --ink: #222; --faint: #555; --line: #ddd; --code: #f0f0ec; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #191a1c; --ink: #e4e4e0; --faint: #a9a9a4; --line: #3a3b3e; --code: #2a2b2e; } }
body { max-width: 58rem; margin: 0 auto; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; }
h2 { font-size: 1.15rem; margin-top: 2.2rem; }
figure { margin: 0; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; background: #fff; border: 1px solid var(--line); }
figcaption { margin-top: .5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
.words td { white-space: normal; }
code { background: var(--code); padding: .1rem .3rem; }
footer { margin-top: 2.5rem; color: var(--faint); font-size: .9rem; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{mark}
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""

_VERDICTS = (
    ("certified", "bounded from both sides, closely: to a tenth of the score's size, or to a factor of 2"),
    ("bracketed", "as closely, but from fewer than 300 independent rows, or rows correlated in their order"),
    ("estimated", "the upper bound is not that close, but its fall with the number of rows shows where it ends"),
    ("only bounded below", "the rows are too few to say how large the error is; both bounds still hold"),
    ("exact", "the law of the data is known, and with it the true score"),
)


def document(title: str, body: str, mark: str) -> str:
    """A whole page."""
    return _PAGE.format(title=html.escape(title), body=body, mark=mark, style=STYLE)


def table(rows: Iterable[Sequence[object]], header: Sequence[str] = (), kind: str = "") -> str:
    """A table that scrolls where it is wide; everything in it is text."""
    lines = [_line("th", header)] if header else []
    lines += [_line("td", row) for row in rows]
    return f'<div class="wide"><table class="{kind}">\n' + "\n".join(lines) + "\n</table></div>"


def _line(tag: str, cells: Sequence[object]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(str(c))}</{tag}>" for c in cells) + "</tr>"


def page(audit: Audit) -> str:
    """The report as one file."""
    body = [_sentences(audit), *_about_error(audit), *_about_learning(audit), *_about_checks(audit)]
    body += [*_about_memory(audit), *_about_samples(audit), _footer(audit)]
    return document("How good is this score?", "\n".join(body), MARK)


def summary(audit: Audit) -> str:
    """The sentences, R² and the table of levels: what a notebook shows."""
    return "\n".join([_sentences(audit), _picture(draw_score_error(audit), "R² of the score"), _levels(audit)])


def _sentences(audit: Audit) -> str:
    parts = (sentence.partition(": ") for sentence in audit.sentences)
    return "\n".join(f"<p><b>{html.escape(head + colon)}</b>{html.escape(rest)}</p>" for head, colon, rest in parts)


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def _picture(figure: Figure, alt: str, caption: str = "") -> str:
    data = base64.b64encode(png(figure)).decode("ascii")
    words = f"\n<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">{words}</figure>'


def _about_error(audit: Audit) -> list[str]:
    score = audit.score_error
    caption = (
        f"R² = 1 − E‖ψ − ∇log p_σ‖² / E‖∇log p_σ‖² of the score ψ: 1 is the true score, 0 is no better than zero. "
        f"Measured on {score.n_rows:,} held-out rows, {score.n_draws:,} noisy draws a level. No true score is needed: "
        "the lower bound of the error is a difference of denoising losses, the upper one the distance from targets "
        "averaged over held-out rows. The band holds at 95 % for all levels together if the rows, or their groups, are "
        f"independent draws, {score.seen}."
    )
    return [
        "<h2>Score error</h2>",
        _paragraph(str(score)[0].upper() + str(score)[1:] + "."),
        _picture(draw_score_error(audit), "R² of the score against the noise level, between two bounds", caption),
        _levels(audit),
        _paragraph(
            f"σ is in {_unit(audit)}, losses and errors ½E‖·‖² in 1/σ-unit²; ± is one standard error. The floor is the "
            "loss of a perfect model."
        ),
        table(_VERDICTS, ("verdict", "what it says"), "words"),
    ]


def _unit(audit: Audit) -> str:
    unit = audit.view.sigma_unit
    return unit if unit.endswith("column") else f"the {unit}"


def _levels(audit: Audit) -> str:
    header = ("σ", "error / size (95 %)", "R² (95 %)", "verdict", "loss", "floor", "error")
    levels = audit.score_error.levels
    if not any(level.where for level in levels):
        return table([_level(level) for level in levels], header)
    rows = [(*_level(level), level.where or "") for level in levels]
    return table(rows, (*header, "to be improved most where (model's units)"))


def _level(level: LevelError) -> tuple[str, ...]:
    low, high = level.relative
    share = f"{percent(low)} to {percent(high)}" if math.isfinite(high) else f"at least {percent(low)}"
    return (
        f"{level.sigma:.3g}",
        share,
        f"{_r2(level.r2_interval[0])} to {_r2(level.r2_interval[1])}",
        level.verdict,
        shown(level.dsm),
        _bracket(level.floor),
        _bracket(level.error),
    )


def _bracket(bracket: Bracket) -> str:
    if bracket.lower == bracket.upper:
        return shown(bracket.lower)
    return f"{shown(bracket.lower)} to {shown(bracket.upper)}"


def _r2(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "−∞"


def _about_learning(audit: Audit) -> list[str]:
    head = "<h2>Learning curve</h2>"
    if not audit.history:
        return [head, _paragraph("Not recorded.")]
    best = kept(audit.history)
    held_out, left, floor = (
        shown(Estimate(getattr(best, k), getattr(best, f"{k}_stderr"))) for k in ("held_out", "left", "floor")
    )
    caption = (
        f"On the rows held out in training, over all levels. Kept: step {best.step:,}, loss {held_out}. Of it at most "
        f"{left} is score error that a better model would take away; at least {floor}, the floor, no model takes away."
    )
    return [head, _picture(draw_learning(audit), "Training and held-out loss and its floor against steps", caption)]


def _about_checks(audit: Audit) -> list[str]:
    caption = (
        "Calibration: the factor on the score that would be best, and the denoiser's squared error over what the score "
        "itself implies (Tweedie's formula); both are 1 for the true score. Antisymmetric share of the Jacobian ∇ψ: 0 "
        "for a gradient, which the true score is. Memorised share, if training rows were given: 0 where the loss is "
        "the same on them as on new rows, 1 for a model that knows nothing else; not shown where the rows cannot tell. "
        "Bars are one standard error."
    )
    return [
        "<h2>Size and symmetry of the score</h2>",
        _picture(draw_checks(audit), "Calibration, antisymmetric share and memorised share against σ", caption),
        _paragraph(f"S{str(audit.self_check)[1:]}; it is 0 for any data and model if loss and target are right."),
    ]


def _about_memory(audit: Audit) -> list[str]:
    head = "<h2>Training rows</h2>"
    near, repeats, memory = audit.neighbours, audit.repeats, audit.memorisation
    if near is None or repeats is None or memory is None:
        return [head, _paragraph("Not measured: the training rows were not given.")]
    rows = [
        ("samples that are near copies of a training row", shown(near.copies), "share"),
        ("— of held-out rows, for comparison", shown(near.held_out_copies), "share"),
        ("distance to the nearest training row, samples over held-out rows", shown(near.distance_ratio), "ratio"),
        ("held-out rows that equal a training row", f"{repeats.test:,} of {repeats.n_test:,}", "rows"),
        ("training rows that equal another", f"{repeats.train:,} of {repeats.n_train:,}", "rows"),
    ]
    note = "A near copy is less than a third as far from the nearest training row as from the second nearest."
    told = ((f"{v.sigma:.3g}", shown(v.value) if v.informative else "these rows cannot tell") for v in memory.levels)
    return [
        head,
        table(rows, ("what", "value", "unit"), "words"),
        _paragraph(note),
        table(told, ("σ", "memorised share")),
    ]


def _about_samples(audit: Audit) -> list[str]:
    return [
        "<h2>Samples beside data</h2>",
        _picture(draw_samples(audit), "Held-out rows beside samples", _shown_rows(audit)),
        "<h2>Marginals</h2>",
        _picture(draw_marginals(audit), "Histograms of held-out rows and of samples", _shown_columns(audit)),
    ]


def _shown_rows(audit: Audit) -> str:
    """What of the rows is drawn, and of how many."""
    n, m = len(audit.data), len(audit.samples)
    images = audit.view.images(audit.data[:1]) is not None
    most = IMAGES if images else POINTS
    some = f"the first {most} of {n:,} held-out rows" if n > most else f"all {n:,} held-out rows"
    drawn = f"the first {most} of {m:,} samples" if m > most else f"all {m:,} samples"
    if images or audit.pair is None:
        return f"{some[0].upper()}{some[1:]} and {drawn}."
    first, second = (audit.view.name(i) for i in audit.pair[:2])
    return (
        f"{some[0].upper()}{some[1:]} and {drawn}: {first} and {second}, the two columns of largest correlation in the "
        f"held-out rows, {shown(audit.pair.data)}; in the samples it is {shown(audit.pair.samples)}."
    )


def _shown_columns(audit: Audit) -> str:
    """Which columns are drawn, and of how many."""
    n, m, every, drawn = len(audit.data), len(audit.samples), len(audit.marginals), len(shown_marginals(audit))
    which = f"all {every}" if drawn == every else f"the {drawn} of {every:,} that differ most, the worst first"
    return (
        f"The same {n:,} rows and {m:,} samples, column by column, as shares: {which}. Beside a name is the largest "
        f"difference of the two distribution functions (Kolmogorov and Smirnov's), which for rows of one law is above "
        f"{limit(n, m):.2f} in one column of twenty. All {every:,} are in report.json."
    )


def _footer(audit: Audit) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("gradlogp", "torch", "numpy"))
    seconds = ", ".join(f"{part} {t:.1f} s" for part, t in audit.seconds.items())
    text = f"{date.today()}; {versions}, Python {platform.python_version()}. Measured in: {seconds}. "
    return f"<footer>{html.escape(text)}All numbers are in <code>report.json</code> beside this page.</footer>"
