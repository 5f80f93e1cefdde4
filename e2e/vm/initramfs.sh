#!/bin/busybox sh
# The first thing that a stock kernel runs: finds the files of the machine, and goes on with init.
/bin/busybox --install -s /bin
mount -t proc proc /proc
for module in /modules/*; do insmod "$module"; done
mount -t virtiofs root /root # which the machine keeps from being written to
for word in $(cat /proc/cmdline); do
    case $word in init=*) init=${word#init=} ;; esac
done
umount /proc
exec switch_root /root "$init"
