"""What can go wrong with an API server. All of it is the world's doing, hence an OSError."""

from __future__ import annotations


class KubeError(OSError):
    """A call failed. The message names the server, what was asked for and the cause."""

    def __init__(self, message: str, *, retry_after: float = 0.0) -> None:
        """
        Args:
            retry_after: seconds that the server wants us to wait.
        """
        super().__init__(message)
        self.retry_after = retry_after


class UnreachableError(KubeError):
    """There was no answer, or the connection broke. Whether a write was done is not known."""


class DeniedError(KubeError):
    """It does not know us, or does not let us do that."""


class NotFoundError(KubeError):
    """There is no such object, or, where objects are listed, no such kind of object."""


class ConflictError(KubeError):
    """It is there already, or somebody else has changed it meanwhile."""


class HistoryLostError(KubeError):
    """What was asked for lies in a past that the server no longer has: list again."""
