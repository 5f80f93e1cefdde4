from __future__ import annotations


class UserError(Exception):
    """
    Something that the user can put right. Printed as one line and a hint, without a traceback.

    `UserError("cluster id 300 is out of range", hint="choose 1-255")`
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message} ({self.hint})" if self.hint else message


class BadRowError(ValueError):
    """A row that its writer had no right to, or that cannot be read. Skipped, counted and named."""
