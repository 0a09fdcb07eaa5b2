#!/usr/bin/env bash
# Runs a command of the README as a newcomer would, in a fresh clone of what is
# committed, on a machine that has nothing but git, make and this machine's Go:
#
#   deploy/bare.sh [RELEASE [COMMAND]]     bookworm, 'make up && make down'
#
# The machine is a root made by mmdebstrap, in namespaces of its own: its own
# processes, mounts and network, whose only way out is slirp4netns. It is gone
# afterwards. Its first process reaps nothing, as in many containers.
set -euo pipefail
cd "$(dirname "$0")/.."

release=${1:-bookworm}
command=${2:-make up && make down}
goroot=$(go env GOROOT)

[ "$(id -u)" = 0 ] || {
	echo "bare: a machine needs root: run 'sudo deploy/bare.sh'." >&2
	exit 1
}
deploy/deps.sh bare

work=$(mktemp -d /var/tmp/remotegpu-bare.XXXXXX)
root=$work/root
machine=
line_out=
finish() {
	[ -z "$line_out" ] || kill "$line_out" || true
	[ -z "$machine" ] || kill -KILL "$machine" || true # with it goes every process and mount of the machine
	wait
	rm -rf --one-file-system "$work"
}
trap finish EXIT
trap 'exit 130' HUP INT TERM

# shellcheck disable=SC2016 # mmdebstrap's shell expands $1
make_root() {
	mmdebstrap --variant=minbase --include=git,make \
		--customize-hook='mkdir -p "$1/usr/local/go" "$1/usr/local/share/ca-certificates"' \
		"$release" "$root" ${RG_DEBIAN_MIRROR:+"$RG_DEBIAN_MIRROR"} >"$work/log" 2>&1 || {
		tail -n 20 "$work/log" >&2
		echo "bare: mmdebstrap could not make a root of $release: is the Debian mirror reachable? (RG_DEBIAN_MIRROR chooses another)" >&2
		exit 1
	}
	# The authorities that this machine trusts beyond Debian's own.
	find /usr/local/share/ca-certificates -name '*.crt' -exec cp {} "$root/usr/local/share/ca-certificates/" \;
	cp -L --remove-destination /etc/resolv.conf "$root/etc/resolv.conf"
	echo bare >"$root/etc/hostname"
	echo "127.0.0.1 localhost bare" >"$root/etc/hosts"
	git clone -q --no-hardlinks . "$root/root/remotegpu"
}

# shellcheck disable=SC2016 # the machine's shell expands
boot='
set -e
mount --bind "$1" "$1"
cd "$1"
mount --bind -o ro "$2" usr/local/go
mount -t proc proc proc
mount -t sysfs sysfs sys
mount --rbind /sys/fs/cgroup sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mkdir run/lock
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/net dev/pts dev/shm
for d in null zero full random urandom tty net/tun; do cp -a /dev/$d dev/$d; done
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for n in 0 1 2; do ln -s fd/$n dev/$(echo stdin stdout stderr | cut -d " " -f $((n + 1))); done
hostname bare
ip link set lo up
mkdir .old
pivot_root . .old
umount -l /.old
rmdir /.old
touch /run/up
exec env -i sleep infinity
'

start() {
	unshare --mount --propagation private --pid --ipc --uts --net --fork --kill-child sh -c "$boot" boot "$root" "$goroot" 2>"$work/boot.log" &
	local outer=$!
	for _ in $(seq 100); do
		machine=$(tr -d ' ' <"/proc/$outer/task/$outer/children") || break
		[ -z "$machine" ] || [ ! -e "/proc/$machine/root/run/up" ] || break
		sleep 0.1
	done
	[ -e "/proc/${machine:-none}/root/run/up" ] || {
		cat "$work/boot.log" >&2
		echo "bare: the machine did not come up: see the lines above." >&2
		exit 1
	}
	slirp4netns --configure --mtu=65520 "$machine" tap0 >"$work/line-out.log" 2>&1 &
	line_out=$!
}

echo "bare: making a machine with nothing: $release"
make_root
start
echo "bare: $command"
nsenter --target "$machine" --mount --pid --ipc --uts --net --root \
	env -i HOME=/root TERM=dumb PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/go/bin \
	${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} ${no_proxy:+no_proxy="$no_proxy"} ${GOPROXY:+GOPROXY="$GOPROXY"} \
	bash -c "cd /root/remotegpu && $command"
