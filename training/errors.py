"""The errors that a user of the study can put right."""

from __future__ import annotations

from pathlib import Path


class StudyError(Exception):
    """Something in the options, the files or the machine; its message says what is allowed or what to do.

    The command prints the message as one line and ends with exit status 2.
    """


class CannotWriteError(StudyError):
    """A file could not be written, as on a full disk; the command ends with exit status 4 and says how to go on."""

    def __init__(self, path: Path, cause: OSError, advice: str = "make room") -> None:
        self.path, self.cause = path, cause
        super().__init__(f"{path} could not be written ({cause.strerror or cause}); {advice}")
