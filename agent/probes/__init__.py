"""
Whether packets get from pod to pod, tried all the time, and why not when they do not.

    paths       which ways to probe (rules/paths.py), how each one is, and for whom to see
    look        tries one way, and on failure looks for the cause (rules/causes.py names it)
    prober      asks other nodes; echo answers them; messages is what they say
    here        what this node knows of itself

Nothing here changes anything, and no decision of the agent hangs on it.
"""

from .here import Here
from .metrics import PathMetrics
from .paths import Paths

__all__ = ["Here", "PathMetrics", "Paths"]
