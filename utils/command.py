"""One way in for every command: one line and an exit code for what was wrong or failed."""

import argparse
import math
import sys
from collections.abc import Callable

GOOD, FAILED, WRONG_USAGE = 0, 1, 2  # exit codes


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """--help with defaults, but not with those that say nothing: None, no items, no limit."""

    def _get_help_string(self, action: argparse.Action) -> str | None:  # as argparse's own do
        if action.default in (None, math.inf) or action.default == []:
            return action.help
        return super()._get_help_string(action)


class UserError(ValueError):
    """Something that the user has to change; the message says what was expected and what to do."""


def run(
    program: str,
    work: Callable[[], int | None],
    wrong: tuple[type[Exception], ...] = (),
    failures: tuple[type[Exception], ...] = (),
    interrupted: str = "interrupted",
) -> int:
    """Do a command's work and return its exit code, with one line on stderr, not a traceback.

    Args:
        program: what the line begins with.
        work: the command behind its arguments; returns the exit code, or None if all is good.
        wrong: exceptions that are the user's, besides UserError.
        failures: exceptions that mean that the work failed, besides OSError.
        interrupted: what to say after Ctrl-C.
    """
    users: tuple[type[Exception], ...] = (UserError, *wrong)
    try:
        return work() or GOOD
    except failures as error:
        message, code = str(error), FAILED
    except users as error:
        message, code = str(error), WRONG_USAGE
    except OSError as error:
        message, code = str(error), FAILED
    except KeyboardInterrupt:
        message, code = interrupted, FAILED
    print(f"{program}: {message}", file=sys.stderr)
    return code
