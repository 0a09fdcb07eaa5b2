#!/bin/sh
# Run by build.sh with the finished root as $1.
set -eu
ln -sf python3 "$1/usr/bin/python"
ln -sf vim.tiny "$1/usr/bin/vim"
cat >"$1/root/.bashrc" <<'BASHRC'
PS1='\u@\h:\w\$ '
alias ls='ls --color=auto' ll='ls -l'
BASHRC
