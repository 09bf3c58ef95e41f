"""What to tell a user about a mistake."""

from __future__ import annotations

import argparse
import re

from gradlogp.cli.stops import notes

# option: the estimator's parameter that it sets
OPTIONS = {
    "--sigma-min": "sigma_min",
    "--sigma-max": "sigma_max",
    "--standardize": "standardize",
    "--width": "width",
    "--depth": "depth",
    "--steps": "n_steps",
    "--max-seconds": "max_seconds",
    "--batch-size": "batch_size",
    "--learning-rate": "learning_rate",
    "--dropout": "dropout",
    "--patience": "patience",
    "--validation-fraction": "validation_fraction",
    "--objective": "objective",
    "--energy": "energy",
    "--contamination": "contamination",
    "--device": "device",
    "--seed": "random_state",
}


_LONGEST = 390  # characters


class UsageError(Exception):
    """A command line that cannot be understood."""


def mistake(error: Exception, args: argparse.Namespace | None = None) -> str | None:
    """What to tell a user about a mistake in a command line, on one line; None for a bug."""
    if isinstance(error, UsageError):
        message = str(error)
    elif isinstance(error, OSError):
        where = "" if error.filename is None else f"{error.filename}: "
        message = f"{where}{error.strerror or error}"
    elif _no_memory(error):
        message = f"memory: got a request that does not fit{_asked_for(str(error))}, want smaller numbers or fewer rows"
    else:
        from gradlogp._errors import InputError

        if not isinstance(error, InputError):
            return None
        message = _in_words_of_the_command(str(error), args)
    line = plain(" ".join(message.split()))
    line = line if len(line) <= _LONGEST else f"{line[: _LONGEST - 165]} ... {line[-160:]}"
    return "; ".join([line, *notes(error)])


def plain(text: str) -> str:
    """Text for a terminal: what a name in a file may tell it to do is shown instead."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def _no_memory(error: Exception) -> bool:
    """Whether Python, torch's allocator or a GPU's was out of memory, which are errors of three kinds."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in said or "out of memory" in said)
    )


def _asked_for(text: str) -> str:
    """The size that a message of an allocator tells, as words to add."""
    size = re.search(r"allocate (\d+) bytes|allocate ([\d.]+ [KMGT]i?B)", text)
    return "" if size is None else f" ({size[2] or f'{int(size[1]) / 1e9:.2g} GB'})"


# what a message says of Python, as the command line has it
DROPPED = {
    r"\b(encode|convert) or drop (the columns?) first": r"\1 \2 first, or leave out with --drop",
    r"\bdrop (the columns?)": r"leave \1 out with --drop",
}
PHRASES = {
    r"\benergy=True": "--energy",
    r", or None\b": "",
    **{rf"(?<![\w-]){p}\b": o for o, p in OPTIONS.items() if "_" in p or p == "contamination"},
}


def _in_words_of_the_command(message: str, args: argparse.Namespace | None) -> str:
    """A message of the library's, with the options that set its parameters, and the file in the place of its data."""
    data, train = (getattr(args, name, None) or shown for name, shown in (("data", "DATA"), ("train", "--train")))
    options = {parameter: option for option, parameter in OPTIONS.items()}
    options |= {"sampling_steps": "--steps", "n": "-n", "sigma": "--sigma", "seconds": "--seconds", "atol": "--atol"}
    options |= {"n_levels": "--levels", "X_test": data, "X_train": train, "X": data, "held-out rows": data}
    options |= {"n_hidden": "--hidden", "unnormalised_log_prob": "--unnormalised", "seed": "--seed"}
    names, separator, rest = message.partition(": ")
    phrases = PHRASES | (DROPPED if hasattr(args, "drop") else {})
    for phrase, words in phrases.items() if "saved model" not in rest else ():
        rest = re.sub(phrase, words, rest)
    return ", ".join(options.get(name, name) for name in names.split(", ")) + separator + rest
