#!/bin/bash
# What an editor that works over SSH feeds to bash on a machine that it reaches
# for the first time, and every time after: it installs its server when it is
# not there, starts it when it does not run, and says where it is. The order and
# the marks are those of VS Code's Remote-SSH; the words are our own.
#
# Before this come ID (of this try), COMMIT (which server) and LISTEN (port or
# socket).
set -u

fail() {
	echo "$ID: failed: $*"
	exit 1
}

# await FILE TEXT waits until the file is there and holds the text.
await() {
	for _ in $(seq 150); do
		grep -q -- "$2" "$1" 2>/dev/null && return
		sleep 0.1
	done
	fail "nothing in $1 says $2"
}

echo "$ID: running"
[ "$(uname -s)" = Linux ] || fail "this is $(uname -s)"
arch=$(uname -m)
case $arch in
x86_64) vscode_arch=x64 ;;
aarch64) vscode_arch=arm64 ;;
*) fail "no server for $arch" ;;
esac

umask 077
base=$HOME/.vscode-server
folder=$base/bin/$COMMIT
mkdir -p "$folder"
cd "$folder" || fail "cannot make $folder"
echo "Acquiring lock on $folder/lock"
exec 9>lock
flock 9 || fail "no lock"

local_download=0
if [ ! -x server ]; then
	echo "Installing to $folder..."
	echo "$ID%%1%%"
	echo "$ID:trigger_server_download"
	echo "artifact==server-linux-$vscode_arch=="
	echo "destFolder==$folder=="
	echo "$ID:trigger_server_download_end"
	await vscode-server.tar.gz.done sent
	rm vscode-server.tar.gz.done
	local_download=1
	echo "$ID%%2%%"
	tar -xzf vscode-server.tar.gz --strip-components 1 || fail "the server cannot be unpacked"
	rm vscode-server.tar.gz
	[ -x server ] || fail "there is no server in the archive"
fi

files=$base/.$COMMIT.$LISTEN
if ! kill -0 "$(cat "$files.pid" 2>/dev/null)" 2>/dev/null; then
	cat /proc/sys/kernel/random/uuid >"$files.token"
	case $LISTEN in
	port) at=0 ;;
	socket) at=/tmp/vscode-$COMMIT.sock ;;
	esac
	# It must not hold the lock, nor this shell's output, nor end with it.
	nohup setsid ./server "$at" "$files.token" "$COMMIT" >"$files.log" 2>&1 </dev/null 9>&- &
	echo $! >"$files.pid"
fi
await "$files.log" 'agent listening on'
flock -u 9

echo "$ID: start"
echo "listeningOn==$(sed -n 's/.*agent listening on //p' "$files.log")=="
echo "arch==$arch=="
echo "tmpDir==/tmp=="
echo "platform==linux=="
echo "didLocalDownload==$local_download=="
echo "connectionToken==$(cat "$files.token")=="
echo "serverPid==$(cat "$files.pid")=="
echo "SSH_AUTH_SOCK==${SSH_AUTH_SOCK-}=="
echo "$ID: end"
# The connection stays for what it forwards, until stdin ends.
