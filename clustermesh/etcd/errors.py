"""What can go wrong with an etcd. All of it is the world's doing, so all of it is an OSError."""

from __future__ import annotations


class EtcdError(OSError):
    """A call failed. The message names the endpoint, what was asked for and the cause."""


class UnreachableError(EtcdError):
    """No endpoint answered, or the connection broke. Whether a write was done is not known."""


class DeniedError(EtcdError):
    """etcd does not let this user do that. The message names the user and the key."""


class HistoryLostError(EtcdError):
    """
    What was asked for lies in a past that this server no longer has: list again.

    It was compacted, or the server was replaced by one with another, shorter history.
    """


class LeaseLostError(EtcdError):
    """A key was to hang on a lease that the server does not know (any more)."""
