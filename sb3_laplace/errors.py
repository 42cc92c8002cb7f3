"""What the command line reports in one line."""


class InputError(Exception):
    """Something the user passed in cannot be used; the message is all that is shown."""
