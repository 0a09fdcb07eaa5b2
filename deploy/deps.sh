#!/usr/bin/env bash
# Installs what a make target needs and this machine lacks, on Debian and Ubuntu:
#
#   deploy/deps.sh up|test|gpu|lint|bare
#
# Elsewhere it says what to install. What a GPU host needs (containerd, runc, CNI
# plugins) is not here: install.sh gets it, as on every host.
set -euo pipefail

have() { command -v "$1" >/dev/null 2>&1; }

missing=()
# want CHECK PACKAGE… notes packages when the command CHECK fails; of A|B it is
# the first that the release has.
want() {
	eval "$1" >/dev/null 2>&1 || missing+=("${@:2}")
}

go_ready() {
	have go || {
		echo "deps: Go is missing: install Go 1.26 or newer from https://go.dev/dl, so that 'go version' works." >&2
		exit 1
	}
}

for_build() {
	go_ready
	want 'have gcc && test -e /usr/include/stdlib.h' gcc libc6-dev # the NVML child and the race detector
	want 'have openssl' openssl
}

for_up() {
	for_build
	want 'have curl' curl
	want 'test -e /etc/ssl/certs/ca-certificates.crt' ca-certificates
	want 'ls /usr/lib/postgresql/*/bin/postgres' postgresql
	want 'have skopeo' skopeo
	want 'have mmdebstrap' mmdebstrap
	want 'test -e /usr/share/keyrings/debian-archive-keyring.gpg' debian-archive-keyring
	want 'have ssh && have ssh-keygen && have ssh-keyscan' openssh-client
}

# for_gpu is what the tests on a machine with real GPUs need.
for_gpu() {
	for_up
	want 'have containerd' containerd
	want 'have runc' runc
	want 'ls /usr/lib/cni/bridge || ls /opt/cni/bin/bridge' containernetworking-plugins
	want 'have ip' iproute2
	want 'have nft' nftables
	want 'have iptables' iptables
	want 'have busybox' busybox-static
	want 'have ps && have sysctl' procps
}

for_test() {
	for_gpu
	want 'have shellcheck' shellcheck
	want 'have systemd-nspawn' systemd-container
	want 'have nginx' nginx-light
	want 'have haproxy' haproxy
	want 'have tinyproxy' tinyproxy
	want 'have mosquitto_pub' mosquitto-clients
	want 'have mosquitto' mosquitto
	want 'have expect' expect
	want 'have git' git
	want 'have rsync' rsync
	want 'have socat' socat
	want 'test -x /usr/bin/docker' 'docker-cli|docker.io'
	want 'have dockerd' docker.io
	want 'test -x /usr/sbin/sshd' openssh-server openssh-sftp-server
	want 'have python3' python3
	want '/usr/bin/python3 -c "import asyncssh"' python3-asyncssh
	want 'have chromium' chromium
	want 'have node && have npm' nodejs npm
	want 'have xfreerdp3 || have xfreerdp' 'freerdp2-x11|freerdp3-x11'
	want 'have freerdp-shadow-cli3 || have freerdp-shadow-cli' 'freerdp2-shadow-x11|freerdp3-shadow-x11'
	want 'have Xvfb' xvfb
	want 'have xclock' x11-apps
	want 'have xdotool' xdotool
	want 'have xclip' xclip
	want 'have xauth' xauth
	want 'have xdpyinfo' x11-utils
	want 'have ansible' ansible-core
	want 'have import' imagemagick
}

for_bare() {
	go_ready
	want 'have mmdebstrap' mmdebstrap
	want 'test -e /usr/share/keyrings/debian-archive-keyring.gpg' debian-archive-keyring
	want 'have slirp4netns' slirp4netns
	want 'have ip' iproute2
	want 'have git' git
}

for_lint() {
	go_ready
	want 'have shellcheck' shellcheck
}

# no_services keeps packages from starting their daemons: the server runs a
# PostgreSQL of its own, tests start what they need.
no_services() {
	if [ ! -e /usr/sbin/policy-rc.d ]; then
		printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
		chmod 755 /usr/sbin/policy-rc.d
		trap 'rm -f /usr/sbin/policy-rc.d' EXIT
	fi
	mkdir -p /etc/postgresql-common/createcluster.d
	echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.d/remotegpu.conf
}

# choose replaces each A|B in missing.
choose() {
	local i package
	for i in "${!missing[@]}"; do
		for package in ${missing[i]//|/ }; do
			! apt-cache show "$package" >/dev/null 2>&1 || break
		done
		missing[i]=$package
	done
}

install_missing() {
	have apt-get || {
		echo "deps: please install what provides: ${missing[*]} (names of Debian packages), then run this again." >&2
		exit 1
	}
	[ "$(id -u)" = 0 ] || {
		echo "deps: packages are missing (${missing[*]}): run this as root once, or install them." >&2
		exit 1
	}
	no_services
	export DEBIAN_FRONTEND=noninteractive
	local log
	log=$(mktemp)
	apt-get -qq -o DPkg::Lock::Timeout=300 update >"$log" 2>&1 || true
	choose
	echo "installing ${missing[*]}"
	apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends --no-remove "${missing[@]}" >>"$log" 2>&1 || {
		tail -n 20 "$log" >&2
		echo "deps: apt-get could not install ${missing[*]}: see the lines above, mend it, then run this again." >&2
		exit 1
	}
	rm -f "$log"
}

case ${1:-} in
up) for_up ;;
test) for_test ;;
gpu) for_gpu ;;
lint) for_lint ;;
bare) for_bare ;;
*)
	echo "usage: deploy/deps.sh up|test|gpu|lint|bare" >&2
	exit 2
	;;
esac
[ ${#missing[@]} = 0 ] || install_missing
