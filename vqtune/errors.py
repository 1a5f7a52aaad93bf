"""The one exception that means "the user's input is wrong", and what other errors say in a line."""


class InputError(Exception):
    """Bad input: its text is one line that names file, key and value and says what to do.

    The command line prints that line without a traceback and exits with code 2.
    """


def first_line(error: BaseException) -> str:
    """What an error says, short enough for a line of our own."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
