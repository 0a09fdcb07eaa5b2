#!/bin/sh
# Joins this machine to a RemoteGPU control plane as a host.
#
# The control plane serves this file with its own address, its certificate
# authority and the key of its release filled in. Everything stands in
# functions that the last line calls, so a download that was cut does nothing.
set -eu

URL='@URL@'
CA_PEM='@CA_PEM@'
RELEASE_PUB='@RELEASE_PUB@'

BIN=/usr/local/bin
LIB=/usr/local/lib/remotegpu
ETC=/etc/remotegpu
LOGS=/var/log/remotegpu
UNIT=remotegpu-agent
PROGRAM=remotegpu-agent
NAMESPACE=remotegpu

SPACE_PROGRAMS=150 # MiB that the programs need while they are replaced
SPACE_DATA=1024    # MiB for the first image and its container
CONNECT_WAIT=60    # seconds until the agent must have reached the control plane

usage() {
	cat <<TEXT
Joins this machine to the RemoteGPU control plane at
$URL

  curl -fsSL $URL/install.sh | sudo sh -s -- --token TOKEN

The console and 'remotegpu host join' print this line with everything in it.
Nothing needs to reach this machine: the agent dials out over HTTPS alone.

Options
  --token TOKEN          join token; not needed again once the machine has joined
  --name NAME            name of this host (default: its hostname)
  --gpu-source SOURCE    auto, nvml, none, or sim:8xH100 to play GPUs (default: auto)
  --mqtt tls://HOST:PORT the MQTT broker, where it is not the server's own
  --proxy URL            HTTP proxy to go out by, like http://10.0.0.1:3128
                         (default: the environment's https_proxy; sudo drops it)
  --data-dir DIR         the agent's state and volumes (default: /var/lib/remotegpu)
  --containerd-socket S  default: /run/containerd/containerd.sock
  --upgrade              take the control plane's present version; needs no token
  --stop                 stop the agent and its containers until it is started
                         again, by this script or systemd; nothing is lost
  --uninstall            remove the agent, its containers and its networks;
                         volumes stay, and so do packages
  --purge                with --uninstall: remove the volumes too
  --help                 this text

What it does: installs containerd, runc and CNI plugins where they are missing,
downloads the agent and checks its signature, joins, and starts the agent as a
systemd unit, or under its own small supervisor where there is no systemd.
Running it again changes nothing.

Files: $BIN/$PROGRAM, $LIB/, $ETC/, $LOGS/
and the data folder.
TEXT
}

# say prints one sentence, without the user and password of a URL in it: a proxy's
# may stand in the settings and in what other programs complain of.
say() { printf '%s\n' "remotegpu: $*" | sed 's|\([a-zA-Z0-9]*://\)\{0,1\}[^[:space:]'\''"]*@|\1|g'; }

# die ends with one sentence; cleanup puts back what this run began.
die() {
	say "$*" >&2
	exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# Options

parse() {
	TOKEN='' HOST_NAME='' PROXY='' DATA_DIR='' SOCKET='' GPU_SOURCE='' MQTT=''
	MODE=install PURGE=no
	while [ $# -gt 0 ]; do
		case $1 in
		--token | --name | --gpu-source | --mqtt | --proxy | --data-dir | --containerd-socket)
			[ $# -ge 2 ] || die "$1 needs a value; see --help."
			option "$1" "$2"
			shift
			;;
		--token=* | --name=* | --gpu-source=* | --mqtt=* | --proxy=* | --data-dir=* | --containerd-socket=*) option "${1%%=*}" "${1#*=}" ;;
		--upgrade) MODE=upgrade ;;
		--stop) MODE=stop ;;
		--uninstall) MODE=uninstall ;;
		--purge) PURGE=yes ;;
		-h | --help)
			usage
			exit 0
			;;
		*) die "there is no option '$1'; see --help." ;;
		esac
		shift
	done
	[ "$PURGE" = no ] || [ "$MODE" = uninstall ] || die "--purge goes with --uninstall only."
}

option() {
	case $2 in
	*"'"* | *'"'* | *\\* | *'
'*) die "the value of $1 must have no quotes, backslashes or line breaks." ;;
	esac
	case $1 in
	--token) TOKEN=$2 ;;
	--name) HOST_NAME=$2 ;;
	--gpu-source) GPU_SOURCE=$2 ;;
	--mqtt) MQTT=$2 ;;
	--proxy) PROXY=$2 ;;
	--data-dir) DATA_DIR=$2 ;;
	--containerd-socket) SOCKET=$2 ;;
	esac
	case $1:$2 in
	--data-dir:/?* | --containerd-socket:/?*) ;;
	--data-dir:* | --containerd-socket:*) die "$1 '$2' must be an absolute path." ;;
	esac
}

# settle completes the options from an earlier run's settings, then defaults.
settle() {
	: "${PROXY:=${https_proxy:-${HTTPS_PROXY:-${all_proxy:-${ALL_PROXY:-}}}}}"
	BYPASS=${no_proxy:-${NO_PROXY:-}}
	if [ -r "$ETC/agent.env" ]; then
		# shellcheck disable=SC1091 # our own file, written below
		. "$ETC/agent.env"
	fi
	DATA_DIR=${DATA_DIR:-${REMOTEGPU_DATA_DIR:-/var/lib/remotegpu}}
	RUN_DIR=${REMOTEGPU_RUN_DIR:-/run/remotegpu}
	SOCKET=${SOCKET:-${REMOTEGPU_CONTAINERD:-/run/containerd/containerd.sock}}
	GPU_SOURCE=${GPU_SOURCE:-${REMOTEGPU_GPU_SOURCE:-auto}}
	MQTT=${MQTT:-${REMOTEGPU_MQTT:-}}
	PROXY=${PROXY:-${https_proxy:-}}
	BYPASS=${BYPASS:-${no_proxy:-}}
	case $PROXY$BYPASS in
	*"'"* | *'"'* | *\\*) die "the proxy settings must have no quotes or backslashes." ;;
	esac
	case $PROXY in
	*[[:space:]]*) die "the proxy's address must have no blanks: write %20 for one in its password." ;;
	esac
	# curl and wget read the small names, Go programs both.
	[ -z "$PROXY" ] || export https_proxy="$PROXY" HTTPS_PROXY="$PROXY"
	[ -z "$BYPASS" ] || export no_proxy="$BYPASS" NO_PROXY="$BYPASS"
}

# Checks before anything is touched

check_machine() {
	[ "$(id -u)" = 0 ] || die "this needs root: run it with 'sudo sh -s --' after the '|'."
	case $URL in
	https://*) ;;
	*) die "this copy of the script has no address filled in: fetch it from your control plane, https://HOST/install.sh." ;;
	esac
	[ "$(uname -s)" = Linux ] || die "$(uname -s) is not supported by this script: it installs on Linux."
	case $(uname -m) in
	x86_64 | amd64) ARCH=amd64 ;;
	aarch64 | arm64) ARCH=arm64 ;;
	*) die "processors of type $(uname -m) are not supported: RemoteGPU runs on amd64 and arm64." ;;
	esac
	OS_NAME=Linux
	if [ -r /etc/os-release ]; then
		# shellcheck disable=SC1091 # the distribution's own
		OS_NAME=$(. /etc/os-release && printf '%s' "${PRETTY_NAME:-Linux}")
	fi
}

# free_mib prints the free space of the file system that holds or will hold $1.
free_mib() {
	dir=$1
	while [ ! -d "$dir" ]; do dir=$(dirname "$dir"); done
	df -Pk "$dir" | awk 'NR == 2 { print int($4 / 1024) }'
}

check_space() {
	free=$(free_mib "$2")
	[ "$free" -ge "$1" ] || die "$2 needs $1 MiB of free space and has $free: make room${3:-}, then run this again."
}

joined() { [ -s "$DATA_DIR/agent.json" ]; }

check_token() {
	if joined; then
		JOINED_URL=$(cat "$ETC/server" 2>/dev/null || printf '%s' "$URL")
		[ "$JOINED_URL" = "$URL" ] || die "this machine has joined $JOINED_URL: to move it to $URL, run with --uninstall first."
		[ -z "$CA_PEM" ] || [ ! -s "$ETC/ca.pem" ] || [ "$(cat "$ETC/ca.pem")" = "$CA_PEM" ] ||
			die "this machine has joined another control plane, which was at $URL before: run with --uninstall first."
		return
	fi
	[ "$MODE" = install ] || die "this machine has not joined yet, so there is nothing to upgrade: run with --token."
	[ -n "$TOKEN" ] || die "a join token is missing: take the whole line from the console (Hosts, Add), or 'remotegpu host join'."
}

# Downloads

# get URL FILE fetches a file from the control plane, trusting its authority alone
# where it has one of its own.
get() {
	status=0
	if have curl; then
		curl -fsSL --proto '=https' --connect-timeout 20 --retry 3 ${CA:+--cacert "$CA"} -o "$2" "$1" 2>"$STAGE/error" || status=$?
		[ "$status" = 0 ] || get_failed "$1" "curl:$status"
	else
		wget -q --timeout=20 --tries=3 ${CA:+--ca-certificate="$CA"} -O "$2" "$1" 2>"$STAGE/error" || status=$?
		[ "$status" = 0 ] || get_failed "$1" "wget:$status"
	fi
}

get_failed() {
	host=${URL#https://}
	via=${PROXY:+ through the proxy $PROXY}
	case $2 in
	curl:60 | curl:35 | curl:51 | curl:58 | curl:77 | wget:5)
		die "$host does not show the certificate that this script was made for, or this machine's clock is wrong (it says $(date -u '+%Y-%m-%d %H:%M') UTC): fetch the install line anew from the console, or set the clock." ;;
	curl:5 | curl:6 | curl:7 | curl:28 | curl:52 | curl:56 | curl:97 | wget:4)
		die "$host cannot be reached$via ($(tail -n 1 "$STAGE/error")): check the network$([ -n "$PROXY" ] || printf ', or give --proxy http://HOST:PORT if this network needs one')." ;;
	curl:22 | wget:8)
		die "the control plane has no ${1#"$URL"/}: ask its admin whether its release has programs for linux-$ARCH." ;;
	curl:23 | wget:3)
		die "$LIB has no room for the download: make room, then run this again." ;;
	esac
	die "$1 could not be fetched$via: $(tail -n 1 "$STAGE/error")."
}

# begin_stage makes the folder that downloads land in: on the file system of
# the programs, so that putting them in place is one rename each.
begin_stage() {
	LIB_IS_NEW=no
	[ -d "$LIB" ] || LIB_IS_NEW=yes
	mkdir -p "$LIB"
	STAGE=$(mktemp -d "$LIB/.new.XXXXXX")
	CA=''
	printf '%s\n' "$RELEASE_PUB" >"$STAGE/release.pub"
	if [ -n "$CA_PEM" ]; then
		CA=$STAGE/ca.pem
		printf '%s\n' "$CA_PEM" >"$CA"
	fi
}

cleanup() {
	if [ -n "${STAGE:-}" ]; then rm -rf "$STAGE"; fi
	if [ "${LIB_IS_NEW:-no}" = yes ]; then rmdir "$LIB" 2>/dev/null || :; fi
	if [ "${DATA_IS_NEW:-no}" = yes ]; then rm -rf "$DATA_DIR"; fi
}

fetch_sums() {
	get "$URL/dl/SHA256SUMS" "$STAGE/SHA256SUMS"
	get "$URL/dl/SHA256SUMS.sig" "$STAGE/SHA256SUMS.sig"
	openssl dgst -sha256 -verify "$STAGE/release.pub" -signature "$STAGE/SHA256SUMS.sig" "$STAGE/SHA256SUMS" >/dev/null 2>&1 ||
		die "the release at $URL is not signed with the key that this script carries: nothing was installed; tell the control plane's admin."
}

# sum_of PROGRAM prints the signed checksum, or nothing where there is no such
# program for this machine.
sum_of() { awk -v f="linux-$ARCH/$1" '$2 == f || $2 == "*" f { print $1; exit }' "$STAGE/SHA256SUMS"; }

same() { [ -f "$2" ] && [ "$(sha256sum <"$2" | cut -d ' ' -f 1)" = "$1" ]; }

# fetch PROGRAM TARGET downloads what differs from TARGET; CHANGED collects it.
fetch() {
	sum=$(sum_of "$1")
	[ -n "$sum" ] || return 0
	! same "$sum" "$2" || return 0
	get "$URL/dl/linux-$ARCH/$1" "$STAGE/$1"
	same "$sum" "$STAGE/$1" ||
		die "$1 is not what the signed checksums say (damaged on the way, or tampered with): nothing was installed; run this again, and tell the control plane's admin if it stays so."
	chmod 0755 "$STAGE/$1"
	CHANGED="$CHANGED $1"
}

download() {
	CHANGED=''
	fetch_sums
	[ -n "$(sum_of $PROGRAM)" ] || die "the control plane has no programs for linux-$ARCH: ask its admin for a release with them."
	fetch $PROGRAM "$BIN/$PROGRAM"
	fetch remotegpu-helper "$LIB/remotegpu-helper"
	fetch remotegpu-nvml "$LIB/remotegpu-nvml"
	[ -z "$CHANGED" ] || say "downloaded and checked:$CHANGED"
	get "$URL/install.sh" "$STAGE/install.sh" # kept for --uninstall without a network
}

# Packages

# need COMMAND PACKAGE… adds packages to PACKAGES where COMMAND is missing.
need() {
	! have "$1" || return 0
	shift
	PACKAGES="$PACKAGES $*"
}

packager() {
	for p in apt-get dnf yum zypper; do
		if have "$p"; then
			printf '%s' "$p"
			return
		fi
	done
}

install_packages() {
	[ -n "$PACKAGES" ] || return 0
	say "installing$PACKAGES"
	tool=$(packager)
	[ -n "$tool" ] || die "packages are missing and none of apt-get, dnf, yum, zypper is here to install them: install$PACKAGES, then run this again."
	status=0
	# shellcheck disable=SC2086 # PACKAGES is a list
	case $tool in
	apt-get) apt_install $PACKAGES ;;
	dnf | yum) rpm_install "$tool" $PACKAGES ;;
	zypper) zypper --non-interactive --quiet install --no-recommends $PACKAGES ;;
	esac >"$STAGE/packages" 2>&1 || status=$?
	[ "$status" = 0 ] || die "$tool could not install$PACKAGES ($(package_error "$STAGE/packages")): install them by hand, then run this again."
	PACKAGES=''
}

# package_error prints the line that says why: apt's first complaint, else the last line.
package_error() { awk '/^[EW]: / && why == "" { why = $0 } NF { last = $0 } END { print why != "" ? why : last }' "$1"; }

# apt_install never removes a package: on a machine with Docker's containerd
# that would break Docker.
apt_install() {
	export DEBIAN_FRONTEND=noninteractive
	apt-get -qq -o DPkg::Lock::Timeout=300 update || :
	apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends --no-remove "$@"
}

# rpm_install takes containerd from Docker's repository where the distribution
# has none (RHEL and its kin).
rpm_install() {
	pm=$1
	shift
	case " $* " in
	*" containerd "*)
		if ! "$pm" -q list containerd >/dev/null 2>&1; then
			[ -e /etc/yum.repos.d/docker-ce.repo ] || docker_repo >/etc/yum.repos.d/docker-ce.repo
			# Docker's package brings its own runc.
			# shellcheck disable=SC2046 # a list of packages
			set -- $(printf '%s\n' "$@" | sed -e 's/^containerd$/containerd.io/' -e '/^runc$/d')
		fi
		;;
	esac
	"$pm" -q -y install "$@"
}

docker_repo() {
	cat <<-'REPO'
		[docker-ce-stable]
		name=Docker CE Stable
		baseurl=https://download.docker.com/linux/centos/$releasever/$basearch/stable
		enabled=1
		gpgcheck=1
		gpgkey=https://download.docker.com/linux/centos/gpg
	REPO
}

# install_tools gets what this script itself needs.
install_tools() {
	PACKAGES=''
	if ! have curl; then need wget curl; fi
	need openssl openssl
	if [ -z "$CA_PEM" ] && [ ! -e /etc/ssl/certs/ca-certificates.crt ] && [ ! -e /etc/pki/tls/certs/ca-bundle.crt ] && [ ! -e /etc/ssl/ca-bundle.pem ]; then
		PACKAGES="$PACKAGES ca-certificates"
	fi
	install_packages
}

have_cni() {
	for d in /opt/cni/bin /usr/lib/cni /usr/libexec/cni; do
		if [ -x "$d/bridge" ] && [ -x "$d/host-local" ] && [ -x "$d/firewall" ]; then return 0; fi
	done
	return 1
}

# install_runtime gets what containers need; a containerd that is there, from
# wherever, stays as it is.
install_runtime() {
	PACKAGES=''
	[ -S "$SOCKET" ] || need containerd containerd
	need runc runc
	need iptables iptables
	if ! have_cni; then
		case $(packager) in
		zypper) PACKAGES="$PACKAGES cni-plugins" ;;
		*) PACKAGES="$PACKAGES containernetworking-plugins" ;;
		esac
	fi
	install_packages
}

# Joining and putting in place

# agent PROGRAM ARGS… runs a program of the agent with the settings of this host.
agent() {
	REMOTEGPU_DATA_DIR=$DATA_DIR REMOTEGPU_RUN_DIR=$RUN_DIR REMOTEGPU_CONTAINERD=$SOCKET REMOTEGPU_GPU_SOURCE=$GPU_SOURCE "$@"
}

# staged prints where a program is now: downloaded or already in place.
staged() { if [ -e "$STAGE/$1" ]; then printf '%s' "$STAGE/$1"; else printf '%s' "$2"; fi; }

# join enrols with the program that was just checked, before anything is put
# in place: a refused token leaves the machine as it was.
join() {
	joined && return 0
	[ -d "$DATA_DIR" ] || DATA_IS_NEW=yes
	set -- enroll --server "$URL"
	[ -z "$HOST_NAME" ] || set -- "$@" --name "$HOST_NAME"
	[ -z "$CA" ] || set -- "$@" --ca "$CA"
	REMOTEGPU_TOKEN=$TOKEN REMOTEGPU_NVML=$(staged remotegpu-nvml "$LIB/remotegpu-nvml") \
		agent "$(staged $PROGRAM "$BIN/$PROGRAM")" "$@" >"$STAGE/joined" 2>&1 ||
		die "$(tail -n 1 "$STAGE/joined" | sed 's/^remotegpu-agent: //') (Nothing was installed.)"
	DATA_IS_NEW=no
	say "joined $URL"
}

# settle_file MODE SOURCE FILE makes FILE like SOURCE where it differs.
settle_file() {
	! cmp -s "$2" "$3" || return 0
	cp "$2" "$3.new"
	chmod "$1" "$3.new"
	mv -f "$3.new" "$3"
	CHANGED="$CHANGED ${3##*/}"
}

settings() {
	printf "# Settings of the RemoteGPU agent, written by install.sh; change them by running it again with options.\n"
	printf "REMOTEGPU_DATA_DIR='%s'\nREMOTEGPU_RUN_DIR='%s'\nREMOTEGPU_CONTAINERD='%s'\nREMOTEGPU_GPU_SOURCE='%s'\n" \
		"$DATA_DIR" "$RUN_DIR" "$SOCKET" "$GPU_SOURCE"
	[ -z "$MQTT" ] || printf "REMOTEGPU_MQTT='%s'\n" "$MQTT"
	[ -z "$PROXY" ] || printf "HTTPS_PROXY='%s'\nhttps_proxy='%s'\n" "$PROXY" "$PROXY"
	[ -z "$BYPASS" ] || printf "NO_PROXY='%s'\nno_proxy='%s'\n" "$BYPASS" "$BYPASS"
}

place() {
	mkdir -p "$BIN" "$ETC" "$LOGS"
	chmod 0755 "$ETC"
	for program in remotegpu-helper remotegpu-nvml; do
		[ ! -e "$STAGE/$program" ] || mv -f "$STAGE/$program" "$LIB/$program"
	done
	[ ! -e "$STAGE/$PROGRAM" ] || mv -f "$STAGE/$PROGRAM" "$BIN/.$PROGRAM.new"
	[ ! -e "$BIN/.$PROGRAM.new" ] || mv -f "$BIN/.$PROGRAM.new" "$BIN/$PROGRAM"
	LIB_IS_NEW=no
	settings >"$STAGE/settings"
	settle_file 0600 "$STAGE/settings" "$ETC/agent.env"
	printf '%s\n' "$URL" >"$STAGE/server"
	settle_file 0644 "$STAGE/server" "$ETC/server"
	[ -z "$CA" ] || settle_file 0644 "$CA" "$ETC/ca.pem"
	settle_file 0755 "$STAGE/install.sh" "$LIB/install.sh"
}

# Starting and stopping

have_systemd() { [ -d /run/systemd/system ] && have systemctl; }

supervisor_pid() {
	pid=$(cat "$RUN_DIR/supervise.pid" 2>/dev/null) || return 1
	[ "$(readlink "/proc/$pid/exe" 2>/dev/null | sed 's/ (deleted)$//')" = "$BIN/$PROGRAM" ] || return 1
	printf '%s' "$pid"
}

start() {
	if have_systemd; then start_unit; else start_supervisor; fi
}

start_unit() {
	if [ ! -S "$SOCKET" ] && systemctl cat containerd.service >/dev/null 2>&1; then
		systemctl -q enable --now containerd.service || die "containerd does not start: see 'journalctl -u containerd', then run this again."
	fi
	if [ -z "$CHANGED" ] && systemctl -q is-active "$UNIT"; then return 0; fi
	agent "$BIN/$PROGRAM" install >/dev/null || die "the systemd unit could not be installed: see the line above."
	systemctl -q enable "$UNIT"
	systemctl -q restart "$UNIT" || die "the agent does not start: see 'journalctl -u $UNIT', then run this again."
	STARTED=yes
	say "started as systemd unit $UNIT"
}

start_supervisor() {
	if [ -z "$CHANGED" ] && supervisor_pid >/dev/null; then return 0; fi
	stop_supervisor
	mkdir -p "$RUN_DIR"
	set -- "$BIN/$PROGRAM" supervise
	# shellcheck disable=SC2016 # the inner shell expands
	(
		set -a
		# shellcheck disable=SC1091
		. "$ETC/agent.env"
		set +a
		setsid sh -c 'echo $$ >"$1"; shift; exec "$@"' sh "$RUN_DIR/supervise.pid" "$@" </dev/null >>"$LOGS/supervise.log" 2>&1 &
	)
	STARTED=yes
	say "there is no systemd here: started under the agent's own supervisor, log in $LOGS/agent.log"
	say "to start it at boot, have this run as root: sh -c 'set -a; . $ETC/agent.env; exec $BIN/$PROGRAM supervise'"
}

# stop_supervisor waits until it is gone, so that two never run at once.
stop_supervisor() {
	pid=$(supervisor_pid) || return 0
	kill -TERM "$pid" 2>/dev/null || :
	for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
		supervisor_pid >/dev/null || break # also when nobody reaps it
		sleep 0.5
	done
	! supervisor_pid >/dev/null || kill -KILL "$pid" || :
	rm -f "$RUN_DIR/supervise.pid"
}

wait_connected() {
	waited=0
	until agent "$BIN/$PROGRAM" status >"$STAGE/status" 2>&1; do
		waited=$((waited + 1))
		[ "$waited" -lt "$CONNECT_WAIT" ] ||
			die "the agent runs but has not reached $URL within $CONNECT_WAIT s ($(tail -n 1 "$STAGE/status")): see $(log_hint); it goes on trying."
		sleep 1
	done
}

log_hint() { if have_systemd; then printf "'journalctl -u %s'" "$UNIT"; else printf '%s' "$LOGS/agent.log"; fi; }

summary() {
	if [ -z "$CHANGED" ] && [ "$STARTED" = no ]; then
		say "everything is in place already, nothing was changed"
	fi
	sed 's/^/  /' "$STAGE/status"
	say "this host is visible at $URL (Hosts), and with 'remotegpu host ls'"
}

# Removing

uninstall() {
	say "removing the agent, its containers and its networks"
	stop_agent
	with_containerd empty_namespace
	remove_service
	stop_containerd
	remove_networks
	awk -v d="$RUN_DIR/" -v e="$DATA_DIR/" 'index($2, d) == 1 || index($2, e) == 1 { print $2 }' /proc/mounts | sort -r |
		while read -r m; do umount -l "$m" || :; done
	kept=''
	if [ "$PURGE" = no ] && [ -d "$DATA_DIR/volumes" ] && [ -n "$(ls -A "$DATA_DIR/volumes")" ]; then
		kept=$DATA_DIR/volumes
		find "$DATA_DIR" -mindepth 1 -maxdepth 1 ! -name volumes -exec rm -rf {} +
	else
		rm -rf "$DATA_DIR"
	fi
	rm -rf "$RUN_DIR" "$ETC" "$LOGS" "$LIB" "${BIN:?}/$PROGRAM"
	[ -z "$kept" ] || say "volumes stay in $kept: remove them yourself, or run with --uninstall --purge"
	say "done; packages stay. The host's entry stays at $URL until you retire it: 'remotegpu host retire NAME'"
}

stop() {
	stop_agent
	with_containerd end_tasks
	stop_containerd
	say "the agent and its containers are stopped; 'sh $LIB/install.sh' starts them again"
}

stop_agent() {
	stop_supervisor
	! have_systemd || systemctl -q stop "$UNIT" 2>/dev/null || :
}

remove_service() {
	if [ -x "$BIN/$PROGRAM" ]; then agent "$BIN/$PROGRAM" uninstall --networks >/dev/null 2>&1 || :; fi
	if have_systemd; then
		systemctl -q disable "$UNIT" 2>/dev/null || :
		rm -f "/etc/systemd/system/$UNIT.service"
		systemctl daemon-reload || :
	fi
}

# stop_containerd ends the one that the supervisor started, if it did.
stop_containerd() {
	pid=$(cut -d ' ' -f 1 "$RUN_DIR/containerd.pid" 2>/dev/null | head -n 1) || :
	[ "$(cat "/proc/${pid:-none}/comm" 2>/dev/null)" = containerd ] || return 0
	kill -TERM "$pid"
	for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
		[ "$(cat "/proc/$pid/comm" 2>/dev/null)" = containerd ] || break
		sleep 0.5
	done
}

containerd_answers() { [ -S "$SOCKET" ] && ctr --connect-timeout 3s -a "$SOCKET" version >/dev/null 2>&1; }

# with_containerd COMMAND runs what speaks to containerd, starting one for it
# where the supervisor kept it.
with_containerd() {
	have ctr || return 0
	own=''
	if ! containerd_answers; then
		have containerd && [ -d /var/lib/containerd ] || return 0
		containerd --address "$SOCKET" </dev/null >/dev/null 2>&1 &
		own=$!
		for _ in 1 2 3 4 5 6 7 8 9 10; do
			! containerd_answers || break
			sleep 1
		done
	fi
	"$1" || :
	[ -z "$own" ] || kill "$own"
}

# end_tasks gives our containers ten seconds to end by themselves.
end_tasks() {
	set -- ctr -a "$SOCKET" -n "$NAMESPACE"
	for id in $("$@" tasks ls -q); do "$@" tasks kill -s TERM "$id" || :; done
	for _ in 1 2 3 4 5 6 7 8 9 10; do
		"$@" tasks ls | grep -q RUNNING || break
		sleep 1
	done
	for id in $("$@" tasks ls -q); do "$@" tasks rm -f "$id" || :; done
} >/dev/null 2>&1

empty_namespace() {
	ctr -a "$SOCKET" namespaces ls -q | grep -qx "$NAMESPACE" || return 0
	set -- ctr -a "$SOCKET" -n "$NAMESPACE"
	end_tasks
	for id in $("$@" containers ls -q); do "$@" containers rm "$id" || :; done
	for id in $("$@" leases ls -q); do "$@" leases rm "$id" || :; done
	for id in $("$@" images ls -q); do "$@" images rm "$id" || :; done
	# A snapshot goes only after its children: as many passes as layers.
	for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do
		left=$("$@" snapshots ls | awk 'NR > 1 { print $1 }')
		[ -n "$left" ] || break
		for id in $left; do "$@" snapshots rm "$id" || :; done
	done
	for id in $("$@" content ls -q); do "$@" content rm "$id" || :; done
	ctr -a "$SOCKET" namespaces rm "$NAMESPACE"
} >/dev/null 2>&1

# remove_networks sweeps up what an agent that could not run has left.
remove_networks() {
	if have ip; then
		for link in /sys/class/net/rg-*; do
			[ ! -e "$link" ] || ip link del "${link##*/}" 2>/dev/null || :
		done
	fi
	if have nft; then
		nft list tables 2>/dev/null | awk '$3 ~ /^remotegpu/ { print $2, $3 }' | while read -r family table; do
			nft delete table "$family" "$table" || :
		done
	fi
}

main() {
	umask 022
	parse "$@"
	check_machine
	STAGE='' LIB_IS_NEW=no DATA_IS_NEW=no STARTED=no
	trap cleanup EXIT
	trap 'exit 130' HUP INT TERM
	settle
	case $MODE in
	uninstall | stop)
		"$MODE"
		return
		;;
	esac
	say "$OS_NAME on $ARCH, control plane $URL"
	check_token
	check_space $SPACE_PROGRAMS "$LIB"
	joined || check_space $SPACE_DATA "$DATA_DIR" " or choose another folder with --data-dir"
	begin_stage
	install_tools
	download
	join
	install_runtime
	place
	start
	wait_connected
	summary
}

main "$@"
