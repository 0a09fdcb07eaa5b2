# shellcheck shell=sh
umask 077
for program in jupyter-lab jupyter-notebook jupyter-server ''; do
	command -v "$program" >/dev/null 2>&1 && break
done
[ -n "$program" ] || exit 3
dir=$(mktemp -d /tmp/jupyter-XXXXXXXX) || exit 1
root=/gemini/code
[ -w "$root" ] || root=$HOME
set -- --no-browser
for class in NotebookApp ServerApp; do
	set -- "$@" "--$class.sock=$dir/socket" "--$class.sock_mode=0600" "--$class.token=" "--$class.password=" \
		"--$class.base_url=@BASE@" "--$class.allow_remote_access=True" "--$class.allow_root=True" "--$class.trust_xheaders=True"
done
set -- "$@" "--NotebookApp.notebook_dir=$root" "--ServerApp.root_dir=$root" --NotebookApp.quit_button=False --ServerApp.quit_button=False
export JUPYTER_RUNTIME_DIR="$dir/run"
# The extension that keeps what cells print while no page is open; without it Jupyter starts all the same, and its log says so.
mkdir -p "$dir/lib" "$dir/etc/jupyter_server_config.d" "$dir/etc/jupyter_notebook_config.d"
cat >"$dir/lib/remotegpu_jupyter.py" <<'END_OF_EXTENSION'
@EXTENSION@
END_OF_EXTENSION
echo '{"ServerApp": {"jpserver_extensions": {"remotegpu_jupyter": true}}}' >"$dir/etc/jupyter_server_config.d/remotegpu.json"
echo '{"NotebookApp": {"nbserver_extensions": {"remotegpu_jupyter": true}}}' >"$dir/etc/jupyter_notebook_config.d/remotegpu.json"
export PYTHONPATH="$dir/lib${PYTHONPATH:+:$PYTHONPATH}" JUPYTER_CONFIG_PATH="$dir/etc${JUPYTER_CONFIG_PATH:+:$JUPYTER_CONFIG_PATH}"
detach=$(command -v setsid || command -v nohup)
cd "$root" || exit 1
$detach "$program" "$@" >"$dir/log" 2>&1 </dev/null &
echo "$dir"
