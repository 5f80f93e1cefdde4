"""The `clustermesh` command. Each part is imported only when it is called: `--help` is instant."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from cyclopts import App, CycloptsError, UnknownCommandError

from clustermesh.errors import UserError
from clustermesh.settings import SHOWN

app = App(
    name="clustermesh",
    help="Join Kubernetes clusters into one network.",
    version=lambda: version("clustermesh-controller"),
    default_parameter=SHOWN,
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
)
app.command(
    "clustermesh.cli.contexts.install:install",
    name="install",
    help="Install clustermesh into a cluster, with helm.",
)
app.command(
    "clustermesh.cli.contexts.install:enable",
    name="enable",
    help="Let other clusters reach a cluster.",
)
app.command(
    "clustermesh.cli.contexts.install:disable",
    name="disable",
    help="Take a cluster out of the mesh; it stays installed.",
)
app.command(
    "clustermesh.cli.contexts.connect:connect",
    name="connect",
    help="Connect clusters, once everything was checked.",
)
app.command(
    "clustermesh.cli.contexts.connect:disconnect",
    name="disconnect",
    help="Disconnect clusters.",
)
app.command(
    "clustermesh.cli.status:app",
    name="status",
    help="Sum up clusters, or the daemons on this machine, and say what is wrong.",
)
app.command(
    "clustermesh.cli.connectivity:app",
    name="connectivity",
    help="Test whether packets get from cluster to cluster.",
)
app.command(
    "clustermesh.cli.contexts.troubleshoot:troubleshoot",
    name="troubleshoot",
    help="Find out, step by step, why a cluster does not reach its peers.",
)
app.command(
    "clustermesh.cli.contexts.sysdump:sysdump",
    name="sysdump",
    help="Collect what one needs to look into a problem, without secrets.",
)
app.command(
    "clustermesh.cli.show:app",
    name="show",
    help="Print what the agent knows, or what the kernel holds.",
)
app.command(
    "clustermesh.cli.certs:app",
    name="certs",
    help="Make, show and renew the certificates of the mesh.",
)
app.command(
    "clustermesh.cli.encryption:app",
    name="encryption",
    help="Show how nodes encrypt, and change their keys.",
)
app.command(
    "clustermesh.cli.sandbox:app",
    name="sandbox",
    help="Bring up whole clusters on this machine, in network namespaces.",
)
app.command(
    "clustermesh.cli.cleanup:app",
    name="cleanup",
    help="Take everything of ours off this node.",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Run the command and exit.

    The exit code is what the command returned, 0 for None; 1 for a UserError, 2 for a command line
    that makes no sense.
    """
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    try:
        result = app(arguments)
        sys.stdout.flush()
    except UnknownCommandError as error:
        # Not the error's own words: it would import every command to tell what there is.
        word = (error.unused_tokens or [""])[0]
        return _fail(f"there is no command {word!r}", "see clustermesh --help", code=2)
    except CycloptsError as error:
        command = " ".join(["clustermesh", *(error.command_chain or ())])
        return _fail(" ".join(str(error).split()), f"see {command} --help", code=2)
    except UserError as error:
        return _fail(error.args[0], error.hint, code=1)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (head, less) has had enough. Whatever is still buffered goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return result if isinstance(result, int) else 0


def _fail(message: str, hint: str, *, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    return code
