"""What was measured of one model, its three sentences, and how it is kept."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from datetime import date
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradlogp._shapes import InputError
from gradlogp.audit.columns import Marginal, Pair, closest_pair, distances
from gradlogp.audit.view import Floats, View, flat
from gradlogp.checkpoints import NUMBERS, REPORT
from gradlogp.diagnostics import Calibration, Curl, Memorisation, NearestNeighbours, ScoreError, SelfCheck
from gradlogp.training import Record

if TYPE_CHECKING:
    from gradlogp.audit.sentences import Sentences

FORMAT, FORMAT_VERSION = "gradlogp report", 1
_CLEARLY = 3.0  # standard errors
MARK = '<meta name="generator" content="gradlogp report">'


@dataclass(frozen=True)
class Repeats:
    """Rows that come twice.

    Attributes:
        n_train: training rows.
        train: those that equal another training row.
        n_test: held-out rows.
        test: those that equal a training row.
    """

    n_train: int
    train: int
    n_test: int
    test: int

    @property
    def suspicious(self) -> bool:
        """Whether clearly more held-out rows equal a training row than training rows equal another."""
        usual = (self.train + 1) / (self.n_train + 2)
        spread = math.sqrt(self.n_test * usual * (1 - usual))
        return self.test > self.n_test * usual + _CLEARLY * spread + 1


@dataclass(frozen=True)
class Audit:
    """All that was measured of one model on held-out rows; :func:`gradlogp.audit.measure` makes it.

    Attributes:
        score_error: how far the score is from the true one, at each level.
        self_check: that loss, target and gradient fit together.
        calibration: whether the scores have the right size.
        curl: how far the score is from a gradient.
        memorisation: the share memorised, None without the training rows.
        neighbours: whether samples are copies, None without the training rows.
        repeats: rows that come twice, None without the training rows.
        data: the held-out rows, in the data's units, ``(N, *event)``.
        samples: rows drawn from the model, in the same units.
        view: how rows are shown.
        history: the training's records.
        seconds: what each part took.
    """

    score_error: ScoreError
    self_check: SelfCheck
    calibration: Calibration
    curl: Curl
    memorisation: Memorisation | None
    neighbours: NearestNeighbours | None
    repeats: Repeats | None
    data: Floats
    samples: Floats
    view: View
    history: tuple[Record, ...]
    seconds: dict[str, float]

    @cached_property
    def marginals(self) -> tuple[Marginal, ...]:
        """How each column of the samples differs from that of the held-out rows, all of them, in the columns' order."""
        found = zip(*distances(flat(self.data), flat(self.samples)), strict=True)
        return tuple(Marginal(i, self.view.name(i), float(d), float(p)) for i, (d, p) in enumerate(found))

    @cached_property
    def pair(self) -> Pair | None:
        """The two columns of largest correlation in the held-out rows; None if fewer than two vary."""
        return closest_pair(flat(self.data), flat(self.samples))

    @property
    def sentences(self) -> Sentences:
        """What is good, what is not, and what to try: three sentences in plain words."""
        from gradlogp.audit.sentences import sentences_of

        return sentences_of(self)

    def __str__(self) -> str:
        return "\n".join([str(self.score_error), *self.sentences])

    def _repr_html_(self) -> str:
        from gradlogp.audit.page import summary

        return summary(self)

    def to_json(self) -> dict[str, Any]:
        """Every number, as a dictionary of JSON types; what is infinite or not a number is None."""
        from gradlogp.audit.sentences import faults_of

        score = self.score_error
        levels = [
            record | {"weights": level.weights}
            for record, level in zip(score.to_frame().to_dicts(), score.levels, strict=True)
        ]
        entry = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "made": date.today().isoformat(),
            "versions": {name: version(name) for name in ("gradlogp", "torch", "numpy")},
            "sentences": self.sentences._asdict(),
            "faults": [fault._asdict() for fault in faults_of(self)],
            "summary": str(score),
            "sigma_unit": self.view.sigma_unit,
            "held_out_rows": score.n_rows,
            "draws_a_level": score.n_draws,
            "independent_rows": score.n_independent,
            "cautions": list(score.cautions),
            "score_error": levels,
            "self_check": asdict(self.self_check) | {"z": self.self_check.z, "holds": self.self_check.holds},
            "calibration": self.calibration.to_frame().to_dicts(),
            "curl": self.curl.to_frame().to_dicts(),
            "memorisation": None if self.memorisation is None else self.memorisation.to_frame().to_dicts(),
            "nearest_neighbours": None if self.neighbours is None else asdict(self.neighbours),
            "marginals": [asdict(marginal) for marginal in self.marginals],
            "most_correlated": None if self.pair is None else _pair_to_json(self),
            "repeats": None if self.repeats is None else asdict(self.repeats),
            "history": [asdict(record) for record in self.history],
            "seconds": self.seconds,
        }
        finite: dict[str, Any] = _finite(entry)
        return finite

    def to_html(self) -> str:
        """The page: one file that needs nothing else."""
        from gradlogp.audit.page import page

        return page(self)

    def save(self, folder: str | Path) -> Path:
        """Write ``report.html`` and ``report.json`` into a folder, made if it is not there, and return the page's path.

        Both are written whole before either takes its place; on a failure what was there stays.

        Raises:
            InputError: as :func:`check_folder`, or the files cannot be written.
        """
        check_folder(folder)
        folder = Path(folder)
        text = {NUMBERS: json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n", REPORT: self.to_html()}
        made = not folder.exists()
        try:
            folder.mkdir(exist_ok=True)
            _replace(folder, text)
        except OSError as e:
            if made and folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
            raise InputError(f"{folder}: cannot be written ({e.strerror or e}), want a folder that can") from None
        return folder / REPORT


def _pair_to_json(audit: Audit) -> dict[str, Any]:
    assert audit.pair is not None
    names = [audit.view.name(i) for i in audit.pair[:2]]
    return {"columns": names, "held_out_rows": asdict(audit.pair.data), "samples": asdict(audit.pair.samples)}


def check_folder(folder: str | Path) -> None:
    """Refuse a folder that a report cannot be written into: before long work, not after it.

    Raises:
        InputError: it is a file, its parent is missing, it must not be written in, or it holds a ``report.html`` or
            ``report.json`` that is no report of gradlogp.
    """
    place = Path(os.path.realpath(folder))
    if place.exists() and not place.is_dir():
        raise InputError(f"{folder}: is a file, want a folder for the report")
    if not place.parent.is_dir():
        raise InputError(f"{folder}: the folder {place.parent} does not exist, want one that does: make it first")
    if not os.access(place if place.is_dir() else place.parent, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: must not be written in, want another folder")
    for name, mark in ((REPORT, MARK), (NUMBERS, f'"{FORMAT}"')):
        if not _is_ours(place / name, mark):
            raise InputError(f"{folder}: holds a {name} that is no report of gradlogp, want another folder")


def _is_ours(path: Path, mark: str) -> bool:
    """Whether a file may be replaced: it is not there, or begins as ours do."""
    if not path.exists():
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return mark.encode() in file.read(1000)


def _replace(folder: Path, text: dict[str, str]) -> None:
    """Write files beside their places, then move all there; if one move fails, what was there is put back."""
    fresh = Path(tempfile.mkdtemp(prefix=".gradlogp-report-", dir=folder))
    moved: list[str] = []
    try:
        for name, content in text.items():
            (fresh / name).write_text(content, encoding="utf-8")
        for name in text:
            if (folder / name).exists():
                os.replace(folder / name, fresh / f"old-{name}")
            moved.append(name)
            os.replace(fresh / name, folder / name)
    except BaseException:  # an interrupt too
        for name in moved:
            (folder / name).unlink(missing_ok=True)
        for old in fresh.glob("old-*"):
            os.replace(old, folder / old.name.removeprefix("old-"))
        raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _finite(value: Any) -> Any:
    """The same with None for numbers that JSON does not know."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
