from __future__ import annotations


class CertificateError(Exception):
    """A certificate or key that cannot be used, made or read. `hint` says what to do about it."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
