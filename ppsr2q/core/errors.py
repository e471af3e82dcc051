"""The errors that a person using ppsr2q can cause."""


class UserError(Exception):
    """A mistake in what the user gave (a file, a key, a shape).

    The message names the culprit and says what was expected. The command line tools print it without a
    traceback and exit with code 2.
    """


class ParityError(Exception):
    """Two forms of one network that must agree do not. The command line tools exit with code 3."""


class Interrupted(Exception):
    """A run stopped on the user's wish after saving its state. The command line tools exit with code 130."""
