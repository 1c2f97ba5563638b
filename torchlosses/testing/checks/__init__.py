"""The checks, one file a subject; importing this package fills `torchlosses.testing.CHECKS` in this order."""

# isort: off
from torchlosses.testing.checks import values  # noqa: F401
from torchlosses.testing.checks import derivatives  # noqa: F401
from torchlosses.testing.checks import transforms  # noqa: F401
from torchlosses.testing.checks import gradients  # noqa: F401
from torchlosses.testing.checks import inputs  # noqa: F401
from torchlosses.testing.checks import laws  # noqa: F401
from torchlosses.testing.checks import integration  # noqa: F401
from torchlosses.testing.checks import errors  # noqa: F401
from torchlosses.testing.checks import cost  # noqa: F401
