from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from clustermesh.errors import UserError

app = App(name="cleanup", help="Take everything of ours off this node.")


@app.default
def cleanup(
    *,
    bpffs: Annotated[Path, Parameter(env_var="CLUSTERMESH_BPFFS")] = Path("/sys/fs/bpf"),
    state_dir: Annotated[Path, Parameter(env_var="CLUSTERMESH_STATE_DIR")] = Path(
        "/var/lib/clustermesh"
    ),
) -> None:
    """
    Take everything of ours off this node: BPF programs and maps, routes, devices, nftables.

    For a node that leaves the mesh for good. Stop its agent first, or it puts everything back.
    Connections through the mesh break.

    Args:
        bpffs: The BPF file system that the agent pinned its programs in.
        state_dir: The directory in which the agent kept what the clusters said last.
    """
    from agent.kernel.datapath import Datapath  # noqa: PLC0415 - only a node has use for these
    from agent.kernel.netlink import Netlink  # noqa: PLC0415
    from agent.kernel.nftables import Nftables  # noqa: PLC0415

    async def remove_network() -> None:
        async with Netlink.open() as netlink:
            await netlink.remove_everything()
        await Nftables().remove()

    try:
        asyncio.run(remove_network())
        Datapath.remove(bpffs)  # now that there is no tunnel which only they look into
        shutil.rmtree(state_dir, ignore_errors=not state_dir.exists())
    except OSError as error:
        raise UserError(f"not everything could be removed: {error}", hint="run as root") from error
    print("nothing of clustermesh is left on this node")
