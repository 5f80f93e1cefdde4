"""
WireGuard devices: one seam, and who is behind it.

    driver.py      what the agent wants of WireGuard, and how a device looks
    kernel.py      the kernel's own, by netlink
    userspace.py   wireguard-go, where the kernel has none: a process for each device
    choice.py      which of the two it is here, found out by trying
"""
