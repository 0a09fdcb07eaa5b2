#!/bin/sh
# Makes the files of a fresh Debian machine with systemd, for tests:
#
#   e2e/root.sh DIR
#
# The result is a tar in DIR, named after what went in: while nothing of that
# changes, a second run takes no time. The last line printed is its path. What
# install.sh would get from a mirror is in it, because machines in tests reach none.
set -eu

mkdir -p "$1"
out=$(cd "$1" && pwd)
release=bookworm
mirror=${RG_DEBIAN_MIRROR:-}

tar=$out/machine-$release-$(sha256sum <"$0" | cut -c 1-16).tar
if [ -e "$tar" ]; then
	echo "$tar"
	exit
fi

work=$(mktemp -d "$out/.new.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' HUP INT TERM

# In a container, cgroups of version 1 are there to be read only.
mkdir "$work/containerd.service.d"
cat >"$work/containerd.service.d/cgroup.conf" <<'CONF'
[Service]
ExecStartPre=/bin/sh -c "awk '$$3 == \"cgroup\" { print $$2 }' /proc/mounts | xargs -r -n 1 mount -o remount,bind,rw"
CONF

# shellcheck disable=SC2016 # mmdebstrap's shell expands $1
mmdebstrap --variant=minbase --skip=output/mknod \
	--include=systemd-sysv,dbus,ca-certificates,curl,openssl,iproute2,procps,containerd,runc,containernetworking-plugins,iptables,nftables \
	--aptopt='APT::Install-Recommends "false"' \
	--dpkgopt=force-unsafe-io \
	--dpkgopt='path-exclude=/usr/share/doc/*' \
	--dpkgopt='path-exclude=/usr/share/man/*' \
	--dpkgopt='path-exclude=/usr/share/locale/*' \
	--customize-hook="copy-in $work/containerd.service.d /etc/systemd/system" \
	--customize-hook='rm -f "$1"/etc/machine-id "$1"/etc/hostname "$1"/etc/resolv.conf' \
	"$release" "$work/root.tar" ${mirror:+"$mirror"} 2>"$work/log" >&2 || {
	cat "$work/log" >&2
	echo "root.sh: mmdebstrap could not make a Debian root: is the Debian mirror reachable? (RG_DEBIAN_MIRROR chooses another)" >&2
	exit 1
}
rm -f "$out/machine-$release-"*.tar
mv "$work/root.tar" "$tar"
echo "$tar"
