#!/bin/sh
# What xrdp-sesman starts in a new X session, as the user.
XDG_RUNTIME_DIR=/run/user/$(id -u)
export LANG="${LANG:-C.UTF-8}" XDG_RUNTIME_DIR
[ ! -r "$HOME/.xsession" ] || exec sh "$HOME/.xsession"
xsetroot -solid '#2d3440'
tint2 >/dev/null 2>&1 &
xterm -fa 'DejaVu Sans Mono' -fs 11 -geometry 90x28+40+40 &
exec dbus-launch --exit-with-session openbox
