#!/bin/sh
# Makes the root file system of an image that can use a GPU and holds nothing
# of NVIDIA's:
#
#   gpuroot.sh DIR
#
# In it are busybox, this machine's C library, and the program vectoradd.
set -eu

here=$(dirname "$0")
mkdir -p "$1/bin" "$1/etc" "$1/tmp" "$1/lib64"
cp "$(command -v busybox)" "$1/bin/busybox"
for name in sh cat ls id sleep env true hostname grep; do ln -sf busybox "$1/bin/$name"; done
echo root:x:0:0:root:/:/bin/sh >"$1/etc/passwd"
${CC:-gcc} -O2 -Wall -Wextra -Werror -o "$1/bin/vectoradd" "$here/vectoradd.c" -ldl

# What the driver's libraries and programs need of the C library, where they look for it.
loader=$(ldd "$1/bin/vectoradd" | awk '/ld-linux/ { print $1 }')
mkdir -p "$1$(dirname "$loader")"
cp -L "$loader" "$1$loader"
libc=$(ldd "$1/bin/vectoradd" | awk '$1 == "libc.so.6" { print $3 }')
mkdir -p "$1$(dirname "$libc")"
for lib in libc.so.6 libm.so.6 libdl.so.2 libpthread.so.0 librt.so.1; do cp -L "$(dirname "$libc")/$lib" "$1$(dirname "$libc")/"; done
