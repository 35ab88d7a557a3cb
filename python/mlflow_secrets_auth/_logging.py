"""``MLFLOW_SECRETS_LOG_LEVEL``: sets the level of our loggers, and shows them where nobody else does."""

from __future__ import annotations

import logging

_LEVELS = {
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARNING": logging.WARNING,
    "WARN": logging.WARNING,
    "ERROR": logging.ERROR,
}
_ROOT = "mlflow_secrets_auth"
_warned: set[str] = set()


def configure(level: str) -> None:
    """Applies the level. An unknown one warns once."""
    logger = logging.getLogger(_ROOT)
    number = _LEVELS.get(level.strip().upper())
    if number is None:
        if level not in _warned:
            _warned.add(level)
            logger.warning("MLFLOW_SECRETS_LOG_LEVEL is set to %r; accepted: DEBUG, INFO, WARNING or ERROR", level[:80])
        return
    logger.setLevel(number)
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)
