#!/usr/bin/env bash
# 'make down': stops what 'make up' started. Data, images, volumes and the host's
# membership stay; 'make up' goes on from there.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=deploy/dev.sh
. deploy/dev.sh

if joined_here; then
	step "stopping the agent and this machine's environments"
	sh "$AGENT_INSTALLER" --stop | sed 's/^/    /'
fi
if pid=$(server_pid); then
	step "stopping the server"
	stop_pid "$pid"
fi
rm -f "$PID_FILE"
