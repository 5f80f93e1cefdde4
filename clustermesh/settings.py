"""
Settings of a daemon: a frozen dataclass whose fields are its flags, and their docstrings its help.

A setting comes from the first that has it: the flag `--node-name`, the environment variable
`CLUSTERMESH_NODE_NAME`, the key `node-name` in the YAML file that `--config` names, the default.

The command line and the daemons share one parser, cyclopts. It costs a daemon 2.4 MB of 60 and
50 ms once; argparse would cost neither, and give us a second mechanism to keep.
"""

# Annotations are evaluated here: cyclopts looks up the names of an inherited field's type in the
# module of the class that inherits it.

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeAlias, TypeVar, cast

import yaml
from cyclopts import App, ArgumentCollection, CycloptsError, MissingArgumentError, Parameter, Token
from cyclopts.config import Dict, Env

from .errors import UserError
from .model import parse_cluster_id, parse_cluster_name

S = TypeVar("S")

_SUBDOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


class UsageError(UserError):
    """The command line, the environment or the settings file says something impossible."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DaemonSettings:
    """
    What both daemons have to be told.

    Raises:
        UserError: a field is out of range or no name; it says what is allowed.
    """

    cluster_name: str
    "Name of this cluster: lower-case letters, digits and dashes, 32 at most; unique in the mesh."

    cluster_id: int
    "Number of this cluster: 1 to --max-connected-clusters; unique in the mesh."

    max_connected_clusters: Literal[255, 511] = 255
    "How many clusters the mesh may have; the same in all of them."

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    "The least severe messages that are logged."

    log_format: Literal["text", "json"] = "text"
    "Lines for a person, or a JSON object for each message."

    def __post_init__(self) -> None:
        parse_cluster_name(self.cluster_name)
        parse_cluster_id(self.cluster_id, self.max_connected_clusters)


class TcpAddress(NamedTuple):
    """A host and port to listen on or to connect to; printed `127.0.0.1:80`, `[::1]:80`."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class UnixAddress(NamedTuple):
    """A unix socket to listen on or to connect to; printed `unix:/run/x.sock`."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address: TypeAlias = TcpAddress | UnixAddress


def parse_address(text: str) -> Address:
    """
    `HOST:PORT`, `[IPV6]:PORT`, `http://HOST:PORT` or `unix:PATH`; port 0 picks a free one.

    Raises:
        UserError: it is none of these.
    """
    if text.startswith("unix:") and len(text) > len("unix:"):
        return UnixAddress(Path(text.removeprefix("unix:")))
    host, colon, port = text.removeprefix("http://").rstrip("/").rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if colon and host and port.isascii() and port.isdecimal() and int(port) <= 0xFFFF:
        return TcpAddress(host, int(port))
    raise UserError(f"{text!r} is no address", hint="write HOST:PORT or unix:PATH")


def check_node_name(name: str) -> None:
    """
    See that Kubernetes would let a node be called `name`.

    Raises:
        UserError: it would not.
    """
    if len(name) > 253 or not _SUBDOMAIN.fullmatch(name):
        raise UserError(
            f"{name!r} is no node name",
            hint="use lower-case letters, digits, - and ., as in `kubectl get nodes`",
        )


def comma_separated(type_: object, tokens: Sequence[Token]) -> tuple[str, ...]:
    """Convert a setting that may be given several times, or once with commas."""
    del type_
    parts = (part.strip() for token in tokens for part in token.value.split(","))
    return tuple(part for part in parts if part)


CommaSeparated: TypeAlias = Annotated[
    tuple[str, ...], Parameter(converter=comma_separated, consume_multiple=False, negative=())
]


def _shown(default: object) -> str | None:
    """A default as one would type it; None: it is nothing, which need not be said."""
    if default is None or default == ():
        return None
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


SHOWN: Final = Parameter(show_default=_shown)
"""How help and docs show defaults."""


def read_settings(
    kind: type[S], *, name: str, version: str, arguments: Sequence[str] | None = None
) -> S:
    """
    The settings of the daemon `name`, of the dataclass `kind`.

    `--help` and `--version` print to stdout and exit.

    Args:
        arguments: the command line without the program; None means the process's own.

    Raises:
        UsageError: an unknown flag or key, a wrong type, a missing setting, an unreadable file. It
            names the flag, or the file and the key.
        UserError: what the dataclass raised.
    """
    found: list[S] = []
    try:
        settings_app(kind, name=name, version=version, found=found.append)(arguments)
    except CycloptsError as error:
        raise _usage_error(error, name) from error
    if not found:
        sys.exit(0)  # --help or --version
    return found[0]


def settings_app(kind: type[S], *, name: str, version: str, found: Callable[[S], None]) -> App:
    """The command line of the daemon `name`, which calls `found` with its settings."""

    def default(
        settings: Annotated[S, Parameter(name="*")],
        *,
        config: Annotated[Path | None, Parameter(help="YAML file with settings.")] = None,
    ) -> None:
        del config  # read in _settings_file, while the other sources are
        found(settings)

    # What a type checker calls S is a class that is known now.
    default.__annotations__["settings"] = Annotated[kind, Parameter(name="*")]
    return App(
        name=name,
        version=version,
        help=f"{(kind.__doc__ or '').strip().splitlines()[0]}",
        default_command=default,
        config=(Env("CLUSTERMESH_", command=False), _settings_file),
        default_parameter=SHOWN,
        result_action="return_value",
        exit_on_error=False,
        print_error=False,
    )


def _settings_file(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Add what the file says, after the flags and the environment: cyclopts keeps the first."""
    token = next((t for a in arguments if a.name == "--config" for t in a.tokens), None)
    if token is not None:
        path = Path(token.value)
        Dict(_read_yaml(path), source=str(path))(app, commands, arguments)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"{path} holds no settings", hint="write one `flag-name: value` a line")
    for key, value in content.items():
        if value is None or isinstance(value, dict):
            raise UsageError(f"{path}: {key} has no value that a setting can have")
        if key == "config":
            raise UsageError(f"{path}: a settings file cannot name another one")
    return cast("dict[str, Any]", content)


def _usage_error(error: CycloptsError, name: str) -> UsageError:
    if isinstance(error, MissingArgumentError) and error.argument and not error.tokens_so_far:
        flag = error.argument.name
        key = flag.removeprefix("--")
        variable = f"CLUSTERMESH_{key.upper().replace('-', '_')}"
        return UsageError(f"{flag} is missing", hint=f"or set {variable}, or {key} in --config")
    return UsageError(" ".join(str(error).split()).rstrip("."), hint=f"see {name} --help")
