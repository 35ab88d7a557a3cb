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
            logging.getLogger(f"{_ROOT}.settings").warning(
                "MLFLOW_SECRETS_LOG_LEVEL is set to %r; accepted: DEBUG, INFO, WARNING or ERROR",
                level[:80],
                extra={"event": "unknown_level"},
            )
        return
    logger.setLevel(number)
    if not logger.hasHandlers():
        logger.addHandler(_OnStderr())


class _OnStderr(logging.StreamHandler):  # type: ignore[type-arg]
    """Shows our records on stderr, for as long as the application has no handler for them."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        logger = logging.getLogger(_ROOT)
        if logger.handlers == [self] and not (logger.propagate and logging.getLogger().handlers):
            super().emit(record)
