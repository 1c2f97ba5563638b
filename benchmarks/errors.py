"""The one kind of error that a user of the benchmark can put right."""


class BenchmarkError(Exception):
    """Something in the options, the files or the machine; the command prints the message as one line."""
