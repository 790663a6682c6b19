"""The one exception that means "the input is wrong", as opposed to "the program is"."""


class InputError(ValueError):
    """Bad input: a key, a value or a file that the user can mend.

    The commands print the message on one line of standard error and exit with code 2, without a traceback. It names the
    key or file, says what is wrong with it and what would be right.
    """


class TrainingError(RuntimeError):
    """Training went wrong in a way that has a likely cause to name; the commands exit with code 1."""
