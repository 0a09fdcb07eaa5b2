#!/bin/sh
# remote-dev-server.sh run PROJECT: starts the backend, which outlives this, and
# shows what it logs, the join link first.
set -eu
[ "$1" = run ] || exit 2
ide=$(cd "$(dirname "$0")/.." && pwd)
status=$ide/status-$(echo "$2" | tr / _)
rm -f "$status"
: >"$ide/log"
setsid nohup /usr/bin/python3 "$ide/bin/backend.py" "$ide" "$status" >"$ide/log" 2>&1 </dev/null &
exec tail -f "$ide/log"
