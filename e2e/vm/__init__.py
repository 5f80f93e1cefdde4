"""
The tests on another kernel: `make test-vm KERNEL=uml`.

    debian.py    packages of any release of Debian, without a word to the machine's own apt
    uml.py       User Mode Linux: the newest kernel, as a program that is built here once
    qemu.py      a stock kernel of Debian, in a machine that is emulated
    init         the first process of a guest
    guest.py     boots one on this very checkout and runs a command in it

A guest sees the files of this machine read-only, below a layer of memory, and has neither its
network nor its processes.
"""
