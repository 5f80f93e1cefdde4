"""What is done to a cluster's directory of certificates: make them, look at them, renew them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from . import leaf
from .ca import CA_LIFETIME, Authority, common_name, create_authority
from .errors import CertificateError
from .leaf import LEAF_LIFETIME, Profile
from .rotation import Renewal, authority_renewals, renewals
from .store import Store

NAMESPACE: Final = "kube-system"
"""Where Cilium's clustermesh-apiserver runs, and ours unless somebody says otherwise."""


def init_authority(
    directory: Path, *, now: datetime, lifetime: timedelta = CA_LIFETIME
) -> Authority:
    """
    The CA in `directory`, made if there is none.

    Raises:
        CertificateError: there is half a CA, or one that cannot be used.
    """
    store = Store(directory)
    with store.writing():
        if store.has_authority():
            return store.authority()
        if store.path("ca", "crt").exists():
            raise CertificateError(
                f"{store.path('ca', 'key')} is missing: the CA in ca.crt cannot sign here",
                hint="name the directory that has its key with --ca-dir",
            )
        authority = create_authority(now=now, lifetime=lifetime)
        store.write_authority(authority)
        return authority


def init(
    directory: Path,
    cluster: str,
    *,
    now: datetime,
    ca_directory: Path | None = None,
    namespace: str = NAMESPACE,
    server_names: Iterable[str] = (),
    remotes: Iterable[str] = (),
    lifetime: timedelta = LEAF_LIFETIME,
) -> tuple[Renewal, ...]:
    """
    Make what is missing or due in the directory of `cluster`. Run again, it changes nothing.

    What an earlier call added (server names, remotes) stays: to take something away, delete its
    files first.

    Args:
        ca_directory: the CA that the clusters of a mesh share, made if there is none. Its key stays
            there. Without it, the cluster gets a CA of its own.
        server_names: what peers dial, in addition to `leaf.SERVER_NAMES`.
        remotes: the clusters that get a certificate of their own to read this one.

    Returns:
        What was written, and why.

    Raises:
        CertificateError: nothing was changed, unless it names a file that could not be written.
    """
    wanted = [
        leaf.server(namespace, server_names),
        leaf.root(),
        leaf.admin(cluster),
        leaf.local(cluster),
        leaf.remote(),
        *(leaf.remote(peer) for peer in remotes),
    ]
    leaf.check_lifetime(lifetime)
    store = Store(directory)
    _check_owner(store, wanted)
    _check_own_key(store, ca_directory)
    authority = init_authority(ca_directory or directory, now=now)
    return _issue(store, wanted, authority, now=now, lifetime=lifetime)


def renew(
    directory: Path,
    *,
    now: datetime,
    ca_directory: Path | None = None,
    lifetime: timedelta = LEAF_LIFETIME,
    server_names: Iterable[str] = (),
    remotes: Iterable[str] = (),
    everything: bool = False,
) -> tuple[Renewal, ...]:
    """
    Issue again, each with a new key, what is due: the same subjects and names as before.

    `ca.crt` is brought up to date with `ca_directory` first, so that trust is there before what
    needs it.

    Args:
        server_names: to be added to the server certificate.
        remotes: clusters to be added.
        everything: whether it is due or not, as after a key was lost.

    Returns:
        What was written, and why.

    Raises:
        CertificateError: nothing was changed, unless it names a file that could not be written.
    """
    store = Store(directory)
    if not store.names():
        raise CertificateError(f"{directory}: no certificates to renew", hint="make them with init")
    _check_own_key(store, ca_directory)
    authority = _signer(store, ca_directory)
    names = frozenset(map(leaf.parse_name, server_names))
    wanted = [leaf.remote(peer) for peer in remotes]
    if names:
        wanted.append(Profile("server", leaf.SERVER_NAME, names, leaf.SERVER))
    return _issue(store, wanted, authority, now=now, lifetime=lifetime, everything=everything)


def show(directory: Path, *, now: datetime) -> tuple[Renewal, ...]:
    """
    Every CA and leaf in `directory`, due or not; changes nothing and needs no key of a CA.

    Raises:
        CertificateError: a file cannot be read.
    """
    store = Store(directory)
    bundle = store.bundle()
    current = store.authority().certificate if store.has_authority() else None
    held = {name: found for name in store.names() if (found := store.held(name))}
    wanted = [leaf.profile_of(name, found.certificate) for name, found in held.items()]
    return (
        *authority_renewals(bundle, now),
        *renewals(wanted, held, bundle, now, current=current),
    )


def _issue(
    store: Store,
    wanted: Iterable[Profile],
    authority: Authority,
    *,
    now: datetime,
    lifetime: timedelta,
    everything: bool = False,
) -> tuple[Renewal, ...]:
    """Issue what is due of `wanted` and of what is in the store already."""
    with store.writing():
        profiles = {profile.name: profile for profile in wanted}
        held = {name: found for name in {*profiles, *store.names()} if (found := store.held(name))}
        for name, found in sorted(held.items()):
            before = leaf.profile_of(name, found.certificate)
            profiles[name] = profiles[name] | before if name in profiles else before
        bundle, current = authority.bundle, authority.certificate
        rows = renewals(tuple(profiles.values()), held, bundle, now, current=current)
        due = [row for row in rows if row.due or everything]
        # All are made before the first is written: a CA that cannot sign changes nothing.
        made = {
            row.name: leaf.issue(profiles[row.name], authority, now=now, lifetime=lifetime)
            for row in due
        }
        if not store.path("ca", "crt").exists() or store.bundle() != bundle:
            store.write_bundle(bundle)
            end = current.not_valid_after_utc
            due.insert(0, Renewal("ca", common_name(current), end, "other CAs are trusted now"))
        for name, pair in made.items():
            store.write(name, pair)
        return tuple(due)


def _signer(store: Store, ca_directory: Path | None) -> Authority:
    signer = Store(ca_directory) if ca_directory else store
    if not signer.has_authority():
        raise CertificateError(
            f"{signer.path('ca', 'key')} is missing: nothing can be signed",
            hint="name the directory of the CA with --ca-dir",
        )
    return signer.authority()


def _check_own_key(store: Store, ca_directory: Path | None) -> None:
    """A CA of the cluster's own is not silently put aside: its peers trust it."""
    if ca_directory is None or ca_directory.resolve() == store.directory.resolve():
        return
    if store.has_authority():
        raise CertificateError(
            f"{store.directory} has a CA of its own, which is not the one in {ca_directory}",
            hint=f"add it to {ca_directory / 'ca.crt'}, then move its ca.key away",
        )


def _check_owner(store: Store, wanted: Iterable[Profile]) -> None:
    for profile in wanted:
        found = store.held(profile.name)
        if found is None:
            continue
        subject = leaf.profile_of(profile.name, found.certificate).subject
        if subject != profile.subject:
            raise CertificateError(
                f"{store.path(profile.name, 'crt')} is for {subject!r}, not for "
                f"{profile.subject!r}",
                hint="give every cluster a directory of its own",
            )
