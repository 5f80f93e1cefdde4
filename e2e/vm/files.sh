#!/bin/sh
# files.sh SHARED COMMAND…: run COMMAND, which finds a server of the files of this machine at the
# socket /mnt/files: all to read, those below SHARED to write. In a mount namespace of its own.
set -eu
shared=$1
shift
mount -t tmpfs tmpfs /mnt
mkdir /mnt/root
mount --rbind / /mnt/root
mount -o remount,bind,ro /mnt/root
mount --bind "$shared" "/mnt/root$shared"
/usr/lib/qemu/virtiofsd -f --socket-path=/mnt/files -o source=/mnt/root,cache=always,log_level=err &
server=$! # it ends with the one connection that it gets
until [ -S /mnt/files ]; do
	kill -0 $server 2>/dev/null || { echo "virtiofsd has ended" >&2; exit 1; }
	sleep 0.1
done
exec "$@"
