"""
The certificates of a mesh: a CA, a server certificate, and one client certificate per etcd user.

    init(Path("pki/east"), "east", ca_directory=Path("pki/ca"), now=now)

Imports nothing of ours, and never looks at the clock: `now` is passed in, aware and in UTC.
"""

from .ca import CA_LIFETIME, Authority, create_authority
from .cluster import NAMESPACE, init, init_authority, renew, show
from .errors import CertificateError
from .leaf import LEAF_LIFETIME, Pair, Profile, issue
from .rotation import Renewal
from .store import Store

__all__ = [
    "CA_LIFETIME",
    "LEAF_LIFETIME",
    "NAMESPACE",
    "Authority",
    "CertificateError",
    "Pair",
    "Profile",
    "Renewal",
    "Store",
    "create_authority",
    "init",
    "init_authority",
    "issue",
    "renew",
    "show",
]
