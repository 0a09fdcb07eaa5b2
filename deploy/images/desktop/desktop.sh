#!/bin/sh
# Starts the desktop: create an environment from this image with the command
# 'desktop'. Password and certificate are new at every start; only root, which
# is who RemoteGPU's agent reads as, can read them.
set -eu
umask 077
mkdir -p /run/desktop
cd /run/desktop
rm -f credentials
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=$(hostname)" \
	-keyout key.pem -out cert.pem 2>/dev/null
xrdp-keygen xrdp /run/desktop/rsakeys.ini >/dev/null # of RDP's own security, which is off; xrdp wants the file
password=$(openssl rand -hex 24)
echo "user:$password" | chpasswd
printf 'user\n%s\n' "$password" >credentials.new
mv credentials.new credentials
umask 022

[ -s /etc/machine-id ] || dbus-uuidgen >/etc/machine-id
rm -rf /run/xrdp /tmp/.X11-unix /tmp/.X*-lock
install -d -m 1777 /tmp/.X11-unix
install -d /run/xrdp /run/user
install -d -m 3777 -g xrdp /run/xrdp/sockdir
install -d -m 700 -o user -g user /run/user/1000

xrdp-sesman --nodaemon &
exec xrdp --nodaemon
