"""The command ``gradlogp``: files in, files out, by way of :class:`gradlogp.ScoreDensity`.

Exit code 0; 2 for a mistake of the user's, with one line on stderr after those of phases; 130 on Ctrl-C, 143 on
SIGTERM, 129 on SIGHUP, with one line; 1 for a bug, with its traceback.
Nothing heavy is imported before a command runs, so that ``--help`` is quick.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from gradlogp.cli.arguments import parse
from gradlogp.cli.mistakes import mistake
from gradlogp.cli.stops import exit_code, stoppable, told

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code is returned."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without σ or × shows ? instead
    args = None
    try:
        with stoppable():
            args = parse(argv)
            args.run(args)
            sys.stdout.flush()
    except SystemExit as end:  # --help, --version
        return int(end.code or 0)
    except KeyboardInterrupt as stop:
        with suppress(OSError):  # of a closed terminal
            print(f"gradlogp: {told(stop)}", file=sys.stderr)
        return exit_code(stop)
    except BrokenPipeError:  # whoever read the output has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        message = mistake(error, args)
        if message is None:
            raise
        print(f"gradlogp: error: {message}", file=sys.stderr)
        return 2
    return 0
