"""The error for bad input; it imports nothing heavy."""

from __future__ import annotations

import math

_LONGEST = 390  # characters of a message


class InputError(ValueError):
    """Input that cannot be used; the message says on one line what it is, what was got, and what is wanted.

    A message that quotes more than fits is cut in its middle.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(part.strip() for part in message.splitlines())
        super().__init__(line if len(line) <= _LONGEST else f"{line[: _LONGEST - 165]} ... {line[-160:]}")


def short(value: object) -> str:
    """A value on one line, at most 40 characters of it."""
    if isinstance(value, int) and value.bit_length() > 120:
        return f"a whole number of {round(value.bit_length() * math.log10(2))} digits"
    text = " ".join(repr(value).split())
    return text if len(text) <= 40 else text[:37] + "..."
