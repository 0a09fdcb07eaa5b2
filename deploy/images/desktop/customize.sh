#!/bin/sh
# Run by build.sh with the finished root as $1.
set -eu
root=$1
recipe=$(dirname "$0")

install -m 755 "$recipe/desktop.sh" "$root/usr/local/bin/desktop"
install -m 755 "$recipe/session.sh" "$root/etc/xrdp/startwm.sh"
install -d "$root/etc/xdg/openbox" "$root/etc/xdg/tint2"
install -m 644 "$recipe/menu.xml" "$root/etc/xdg/openbox/menu.xml"
sed -i -e '/^launcher_item_app = /d' -e 's|^launcher_tooltip = .*|&\nlauncher_item_app = debian-xterm.desktop\nlauncher_item_app = firefox-esr.desktop|' "$root/etc/xdg/tint2/tint2rc"
ln -sf vim.tiny "$root/usr/bin/vim"

# Who works here; the container's root is theirs anyhow.
chroot "$root" useradd --create-home --shell /bin/bash --comment 'Desktop user' user
echo 'user ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/user"
chmod 440 "$root/etc/sudoers.d/user"

# No key and no password is in the image: both are made at every start.
rm -f "$root/etc/xrdp/key.pem" "$root/etc/xrdp/cert.pem"
ln -sf /run/desktop/rsakeys.ini "$root/etc/xrdp/rsakeys.ini"
rm -f "$root"/etc/ssl/private/*.key "$root/etc/ssl/certs/ssl-cert-snakeoil.pem"

# xrdp on the container's loopback alone, TLS alone, straight into Xorg.
sed -i \
	-e '0,/^port=/s|^port=.*|port=tcp://.:3389|' \
	-e 's|^security_layer=.*|security_layer=tls|' \
	-e 's|^certificate=.*|certificate=/run/desktop/cert.pem|' \
	-e 's|^key_file=.*|key_file=/run/desktop/key.pem|' \
	-e 's|^ssl_protocols=.*|ssl_protocols=TLSv1.2, TLSv1.3|' \
	-e 's|^#\{0,1\}autorun=.*|autorun=Xorg|' \
	-e 's|^max_bpp=.*|max_bpp=32|' \
	-e 's|^LogFile=.*|LogFile=/dev/stdout|' \
	-e 's|^LogLevel=.*|LogLevel=WARNING|' \
	-e 's|^EnableSyslog=.*|EnableSyslog=false|' \
	"$root/etc/xrdp/xrdp.ini"
sed -i \
	-e 's|^ListenAddress=.*|ListenAddress=127.0.0.1|' \
	-e 's|^AllowRootLogin=.*|AllowRootLogin=false|' \
	-e 's|^EnableUserWindowManager=.*|EnableUserWindowManager=true|' \
	-e 's|^FuseMountName=.*|FuseMountName=/tmp/.thinclient-%u|' \
	-e 's|^LogFile=.*|LogFile=/dev/stdout|' \
	-e 's|^EnableSyslog=.*|EnableSyslog=false|' \
	"$root/etc/xrdp/sesman.ini"
printf 'allowed_users=anybody\nneeds_root_rights=no\n' >"$root/etc/X11/Xwrapper.config"
