"""
Other clusters, followed by what is in their etcds: which there are, who each of them is, whether
that is believed, and how it goes. What becomes of the rows is for whoever follows: agents put them
into the kernel, an apiserver copies them.
"""

from .feed import Feed
from .follower import NO_HEARTBEAT, Follower, Pace
from .ids import ClusterIds, RefusedError
from .remotes import Member, Remotes

__all__ = [
    "NO_HEARTBEAT",
    "ClusterIds",
    "Feed",
    "Follower",
    "Member",
    "Pace",
    "RefusedError",
    "Remotes",
]
