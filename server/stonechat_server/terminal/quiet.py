"""Silences libraries whose warnings mean nothing to the user of a command."""

import logging

NOISY = ("torchao", "torch.utils._pytree")
"""Loggers that warn of parts which this project does not use, when their library is imported."""


def quiet_libraries() -> None:
    """Let the noisy libraries report only errors."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
