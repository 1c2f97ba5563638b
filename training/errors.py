"""The one kind of error that a user of the study can put right."""


class StudyError(Exception):
    """Something in the options, the files or the machine; its message says what is allowed or what to do.

    The command prints the message as one line and ends with exit code 2.
    """
