#!/usr/bin/env bash
# 'make up': a server with everything embedded, this machine as its first host by
# the real install line, the starter image, a first environment, a shell in it.
# Running it again repairs what is missing and takes seconds.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=deploy/dev.sh
. deploy/dev.sh

ENV_NAME=${RG_ENV:-demo}
ENV_OPTIONS=${RG_ENV_OPTIONS:-} # more options of 'env create'
STARTER=library/starter:latest

[ "$(id -u)" = 0 ] || die "this machine becomes a host, which needs root: run 'sudo make up'."

listen() { case $RG_HOST in localhost | 127.*) echo "127.0.0.1:$1" ;; *) echo ":$1" ;; esac; }

# free_ports ends it where somebody else listens, maybe a server that would be taken for ours.
free_ports() {
	local port
	for port in "$RG_HTTPS_PORT" "$RG_SSH_PORT" "$RG_MQTT_PORT"; do
		! (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null ||
			die "port $port of this machine is in use (see ss -ltnp): end what listens there, or choose others with RG_HTTPS_PORT, RG_SSH_PORT and RG_MQTT_PORT."
	done
}

start_server() {
	local pid command
	command="$BIN/remotegpu server --data-dir $RUN/server --downloads $RUN/dl --url $URL --listen $(listen "$RG_HTTPS_PORT")"
	command+=" --ssh-listen $(listen "$RG_SSH_PORT") --mqtt-listen $(listen "$RG_MQTT_PORT")"
	if pid=$(server_pid); then
		if [ "$(cat "$RUN/server.command" 2>/dev/null)" = "$command" ] && [ "$(readlink "/proc/$pid/exe")" = "$BIN/remotegpu" ]; then return; fi
		step "restarting the server: it was built or configured anew"
		stop_pid "$pid"
	else
		free_ports
		step "starting the server at $URL"
	fi
	# shellcheck disable=SC2086 # a list of words without blanks
	setsid $command >>"$SERVER_LOG" 2>&1 </dev/null &
	echo $! >"$PID_FILE"
	echo "$command" >"$RUN/server.command"
}

wait_ready() {
	for _ in $(seq 600); do
		server_pid >/dev/null || server_failed "the server ended at once"
		! curl -fsSk -m 2 -o /dev/null "$URL/readyz" 2>/dev/null || return 0
		sleep 0.1
	done
	server_failed "the server is not ready after a minute"
}

server_failed() {
	tail -n 5 "$SERVER_LOG" >&2
	die "$1: the last lines of $SERVER_LOG are above."
}

login() {
	local first=$RUN/server/first-login.json
	curl -fsSk -o "$RUN/ca.pem" "$URL/ca.pem"
	[ -s "$RUN/token" ] && rg host ls >/dev/null 2>&1 && return
	[ -s "$first" ] || die "$first is not there, so the first login is unknown; a server that was never used can start anew after 'make down; rm -r $RUN/server $(database_elsewhere)'."
	RG_USER=$(json "$first" email)
	RG_PASSWORD=$(json "$first" password)
	step "logging in as $RG_USER"
	printf '%s\n' "$RG_PASSWORD" | rg login "$URL" --ca "$RUN/ca.pem" --email "$RG_USER" --password-stdin >/dev/null
	(umask 077 && rg token create make-up >"$RUN/token")
}

# database_elsewhere prints where the database is when its user cannot reach $RUN.
database_elsewhere() { sed -n 's/.*"msg":"database lives elsewhere[^"]*","dir":"\([^"]*\)".*/\1/p' "$SERVER_LOG" | tail -n 1; }

# json FILE KEY prints the first text under KEY; our files hold no quotes in them.
json() { sed -n "s/.*\"$2\": *\"\([^\"]*\)\".*/\1/p" "$1" | head -n 1; }

ssh_key() {
	mkdir -p "$RUN/ssh"
	if [ ! -e "$RUN/ssh/id_ed25519" ]; then
		ssh-keygen -q -t ed25519 -N '' -C make-up -f "$RUN/ssh/id_ed25519"
	fi
	local print
	print=$(ssh-keygen -lf "$RUN/ssh/id_ed25519.pub" | awk '{ print $2 }')
	rg key ls | grep -qF "$print" || rg key add "$RUN/ssh/id_ed25519.pub" 2>/dev/null
	ssh-keyscan -p "$RG_SSH_PORT" "$RG_HOST" 2>/dev/null >"$RUN/ssh/known_hosts"
	[ -s "$RUN/ssh/known_hosts" ] || die "the SSH gateway does not answer at $RG_HOST:$RG_SSH_PORT: see $SERVER_LOG."
}

gpu_source() {
	if [ -n "${RG_GPU_SOURCE:-}" ]; then echo "$RG_GPU_SOURCE"; elif [ -e /dev/nvidiactl ]; then echo auto; else echo sim:2xH100; fi
}

join_host() {
	if joined_here && ! cmp -s "$RUN/ca.pem" /etc/remotegpu/ca.pem; then
		step "this machine was a host of an earlier server at $URL: leaving that one first"
		sh "$AGENT_INSTALLER" --uninstall
	fi
	if joined_here && agent_current && "$AGENT" status >/dev/null 2>&1; then return; fi
	if joined_here; then
		step "starting this machine's agent"
		sh "$AGENT_INSTALLER" --upgrade | sed 's/^/    /'
		return
	fi
	step "joining this machine as a host, by the line that every host gets"
	local line
	line=$(rg host join)
	if ! command -v sudo >/dev/null; then line=${line//| sudo sh/| sh}; fi
	line+=" --gpu-source $(gpu_source)"
	echo "    $line"
	sh -c "$line" | sed 's/^/    /'
	joined_here || die "this machine did not join: see the lines above."
}

agent_current() { cmp -s "$AGENT" "$BIN/remotegpu-agent" && cmp -s /usr/local/lib/remotegpu/remotegpu-helper "$BIN/remotegpu-helper"; }

push_starter() {
	local image
	step "starter image"
	image=$(GO=${GO:-go} deploy/images/build.sh starter "$RUN/images")
	mkdir -p "$RUN/certs"
	cp "$RUN/ca.pem" "$RUN/certs/ca.crt"
	skopeo copy -q --dest-creds "token:$(cat "$RUN/token")" --dest-cert-dir "$RUN/certs" "oci:$image:latest" "docker://$RG_HOST:$RG_HTTPS_PORT/$STARTER" ||
		die "the starter image could not be pushed to $RG_HOST:$RG_HTTPS_PORT."
}

SSH=(ssh -p "$RG_SSH_PORT" -i "$RUN/ssh/id_ed25519" -o "UserKnownHostsFile=$RUN/ssh/known_hosts" -o IdentitiesOnly=yes -o ConnectTimeout=20)

first_environment() {
	if ! rg env show "$ENV_NAME" >/dev/null 2>&1; then
		step "creating environment $ENV_NAME"
		# shellcheck disable=SC2086 # a list of options
		rg env create "$ENV_NAME" $ENV_OPTIONS
	elif ! rg env show "$ENV_NAME" | grep -q '"phase": "running"'; then
		step "starting environment $ENV_NAME"
		rg env start "$ENV_NAME"
	fi
	local said
	for _ in $(seq 30); do
		# shellcheck disable=SC2016 # the environment's shell expands
		said=$("${SSH[@]}" -o BatchMode=yes "$ENV_NAME@$RG_HOST" 'echo shell in $(hostname) as $(id -un)' 2>&1) && break
		sleep 1
	done
	case $said in
	"shell in "*) step "$said" ;;
	*) die "no shell in $ENV_NAME: $said" ;;
	esac
}

write_env() {
	(
		umask 077
		cat >"$RUN/dev.env.new" <<-ENV
			RG_URL='$URL'
			RG_CA='$RUN/ca.pem'
			RG_TOKEN='$(cat "$RUN/token")'
			RG_USER='$(json "$RUN/server/first-login.json" email)'
			RG_PASSWORD='$(json "$RUN/server/first-login.json" password)'
			RG_SSH='$RG_HOST:$RG_SSH_PORT'
			RG_SSH_KEY='$RUN/ssh/id_ed25519'
			RG_SSH_KNOWN_HOSTS='$RUN/ssh/known_hosts'
			RG_MQTT='$RG_HOST:$RG_MQTT_PORT'
			RG_ENV='$ENV_NAME'
			RG_REGISTRY='$RG_HOST:$RG_HTTPS_PORT'
		ENV
	)
	mv "$RUN/dev.env.new" "$RUN/dev.env"
}

summary() {
	# shellcheck disable=SC1091 # written above
	. "$RUN/dev.env"
	cat <<-BOX

		  RemoteGPU runs. This machine is its first host$(case $(gpu_source) in sim:*) printf ' (its GPUs are simulated)' ;; esac).

		  console    $RG_URL     $RG_USER / $RG_PASSWORD
		  shell      ${SSH[*]} $ENV_NAME@$RG_HOST
		  or         REMOTEGPU_CONFIG=$REMOTEGPU_CONFIG bin/remotegpu ssh $ENV_NAME
		  more       bin/remotegpu --help; variables for scripts are in $RUN/dev.env
		  end        make down (nothing is lost)

	BOX
}

deploy/deps.sh up
step "building"
make --no-print-directory -s dl
start_server
wait_ready
login
ssh_key
join_host
push_starter
first_environment
write_env
summary
