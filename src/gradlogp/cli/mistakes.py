"""What to tell a user about a mistake."""

from __future__ import annotations

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


class UsageError(Exception):
    """A command line that cannot be understood."""


def mistake(error: Exception) -> str | None:
    """What to tell a user about a mistake, on one line; None for a bug."""
    if isinstance(error, UsageError):
        message = str(error)
    elif isinstance(error, OSError):
        where = "" if error.filename is None else f"{error.filename}: "
        message = f"{where}{error.strerror or error}"
    else:
        from gradlogp._shapes import InputError

        if not isinstance(error, InputError):
            return None
        message = _in_words_of_the_command(str(error))
    return "; ".join([" ".join(message.split()), *notes(error)])


# what a message says of Python, as the command line has it
PHRASES = {
    r"\b(encode|convert) or drop (the columns?) first": r"\1 \2 first, or leave out with --drop",
    r"\bdrop (the columns?)": r"leave \1 out with --drop",
    r"\benergy=True": "--energy",
    r", or None\b": "",
    **{rf"(?<![\w-]){p}\b": o for o, p in OPTIONS.items() if "_" in p or p == "contamination"},
}


def _in_words_of_the_command(message: str) -> str:
    """A message of the library's, with the options that set its parameters."""
    options = {parameter: option for option, parameter in OPTIONS.items()}
    options |= {"sampling_steps": "--steps", "n": "-n", "sigma": "--sigma", "seconds": "--seconds", "atol": "--atol"}
    options |= {"n_levels": "--levels", "X_test": "DATA", "X_train": "--train", "X": "DATA", "held-out rows": "DATA"}
    options |= {"n_hidden": "--hidden", "unnormalised_log_prob": "--unnormalised", "seed": "--seed"}
    names, separator, rest = message.partition(": ")
    for phrase, words in PHRASES.items() if "saved model" not in rest else ():
        rest = re.sub(phrase, words, rest)
    return ", ".join(options.get(name, name) for name in names.split(", ")) + separator + rest
