"""The one exception that means "the user's input is wrong"."""


class InputError(Exception):
    """Bad input: its text is one line that names file, key and value and says what to do.

    The command line prints that line without a traceback and exits with code 2.
    """
