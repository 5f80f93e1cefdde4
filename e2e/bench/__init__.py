"""
What the mesh costs, measured on this machine: `python -m e2e.bench [NAME...] [--quick]`.

Everything runs in sandboxes: real etcd servers, agents, BPF programs and tunnels. Machines differ
and are busy, so what is compared is measured in turns within one run, and given as a ratio.
"""
