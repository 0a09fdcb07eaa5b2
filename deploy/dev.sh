# shellcheck shell=bash disable=SC2034
# What up.sh and down.sh share: where things are, and how the server is found.

RG_HTTPS_PORT=${RG_HTTPS_PORT:-8443}
RG_SSH_PORT=${RG_SSH_PORT:-2222}
RG_MQTT_PORT=${RG_MQTT_PORT:-8883}
RG_HOST=${RG_HOST:-localhost} # the name by which hosts and people reach this machine

RUN=$(mkdir -p "${RG_RUN:-run}" && cd "${RG_RUN:-run}" && pwd)
BIN=$PWD/bin
URL=https://$RG_HOST:$RG_HTTPS_PORT
PID_FILE=$RUN/server.pid
SERVER_LOG=$RUN/server.log
AGENT=/usr/local/bin/remotegpu-agent
AGENT_INSTALLER=/usr/local/lib/remotegpu/install.sh

# The CLI of this server, whatever the user has logged in to.
export REMOTEGPU_CONFIG=$RUN/cli.json
rg() { "$BIN/remotegpu" "$@"; }

# Nothing here goes through a proxy.
export no_proxy="${no_proxy:+$no_proxy,}$RG_HOST,localhost,127.0.0.1"
export NO_PROXY=$no_proxy

step() { printf '\033[1m==>\033[0m %s\n' "$*"; }

die() {
	printf 'make: %s\n' "$*" >&2
	exit 1
}

# server_pid prints the pid of this folder's server while it runs.
server_pid() {
	local pid exe
	pid=$(cat "$PID_FILE" 2>/dev/null) || return 1
	exe=$(readlink "/proc/$pid/exe" 2>/dev/null) || return 1
	[ "${exe% (deleted)}" = "$BIN/remotegpu" ] || return 1
	echo "$pid"
}

# stop_pid ends a process, after 30 s by force.
stop_pid() {
	kill -TERM "$1" 2>/dev/null || return 0
	for _ in $(seq 300); do
		kill -0 "$1" 2>/dev/null && [ "$(awk '{ print $3 }' "/proc/$1/stat" 2>/dev/null)" != Z ] || return 0
		sleep 0.1
	done
	kill -KILL "$1" 2>/dev/null || true
}

# joined_here says whether this machine's agent belongs to this server.
joined_here() { [ "$(cat /etc/remotegpu/server 2>/dev/null)" = "$URL" ]; }
