"""The one error for what a user can mend."""


class UserError(ValueError):
    """What was given, or what lies on disk, cannot be used; the message says what would be right.

    Launches print it as one line. Any other exception is a fault of the program, and shows its
    traceback.
    """
