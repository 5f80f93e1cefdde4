"""`cilium/state/identities/v1/id/<number>`: text, not JSON."""

from __future__ import annotations

from typing import Final

from clustermesh.errors import BadRowError
from clustermesh.model import (
    Identity,
    IdentityId,
)

from .kind import CLUSTER_LABEL, Kind, Owner


def _encode_identity(identity: Identity) -> bytes:
    return "".join(f"{source}:{key}={value};" for source, key, value in identity.labels).encode()


def _decode_identity(owner: Owner, number: IdentityId, value: bytes) -> Identity:
    if number not in owner.identities:
        raise BadRowError(
            f"identity {number} is not in {owner.identities[0]}-{owner.identities[-1]}, "
            f"the range of cluster id {owner.id}"
        )
    labels = []
    try:
        text = value.decode()
    except UnicodeDecodeError:
        raise BadRowError("its labels are no UTF-8") from None
    for label in text.removesuffix(";").split(";"):
        source, colon, rest = label.partition(":")
        key, equals, content = rest.partition("=")
        if not (colon and equals):
            raise BadRowError(f"label {label!r} is not source:key=value")
        labels.append((source, key, content))
    for source, key, content in labels:
        if key == CLUSTER_LABEL and (source, content) != ("k8s", owner.cluster):
            raise BadRowError(f"it has the label {source}:{key}={content} of another cluster")
    if ("k8s", CLUSTER_LABEL, owner.cluster) not in labels:
        raise BadRowError(f"it has no label k8s:{CLUSTER_LABEL}={owner.cluster}")
    return Identity(number, tuple(sorted(labels)))


def _parse_identity_id(text: str) -> IdentityId:
    if not (text.isascii() and text.isdecimal() and len(text) <= 8):
        raise BadRowError("its key is not a number")
    return IdentityId(int(text))


IDENTITIES: Final = Kind[IdentityId, Identity](
    name="identities",
    state="cilium/state/identities/v1/id/",
    cache="cilium/cache/identities/v1/{cluster}/id/",
    key=str,
    parse_key=_parse_identity_id,
    encode=_encode_identity,
    decode=_decode_identity,
)
