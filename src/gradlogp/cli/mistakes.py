"""What to tell a user about a mistake."""

from __future__ import annotations

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
    return " ".join(message.split())


def _in_words_of_the_command(message: str) -> str:
    """A message about a parameter, with the option that sets it."""
    options = {parameter: option for option, parameter in OPTIONS.items()}
    options |= {"sampling_steps": "--steps", "n": "-n", "sigma": "--sigma", "seconds": "--seconds"}
    options |= {"n_levels": "--levels", "X_test": "DATA", "X_train": "--train"}
    options |= {"n_hidden": "--hidden", "unnormalised_log_prob": "--unnormalised"}
    names, separator, rest = message.partition(": ")
    return ", ".join(options.get(name, name) for name in names.split(", ")) + separator + rest
