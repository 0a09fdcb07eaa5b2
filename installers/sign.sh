#!/bin/sh
# Lays out programs as the server hands them out, and signs them:
#
#   installers/sign.sh DIR linux-amd64=FOLDER [windows-amd64=FOLDER …]
#
# DIR gets linux-amd64/…, SHA256SUMS over all of them and over an SBOM that is
# there, SHA256SUMS.sig (ECDSA
# P-256 over SHA-256, which any openssl checks) and release.pub. The key is the
# PEM, or the file with it, in RELEASE_KEY; without one a key of this checkout is
# made once, in run/release.key, for development. Nothing that is right already
# is written again, so a server that serves DIR may go on.
set -eu

dir=$1
shift
mkdir -p "$dir"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' HUP INT TERM
umask 077

key=$work/key
case ${RELEASE_KEY:-} in
'')
	key=$(dirname "$0")/../run/release.key
	if [ ! -e "$key" ]; then
		mkdir -p "$(dirname "$key")"
		openssl ecparam -name prime256v1 -genkey -noout -out "$key.new"
		mv "$key.new" "$key"
	fi
	;;
-----BEGIN*) printf '%s\n' "$RELEASE_KEY" >"$key" ;;
*) key=$RELEASE_KEY ;;
esac
openssl ec -in "$key" -pubout -out "$work/release.pub" 2>/dev/null || {
	echo "sign.sh: $key is no EC private key in PEM: make one with 'openssl ecparam -name prime256v1 -genkey -noout'" >&2
	exit 1
}
umask 022

# put SOURCE TARGET replaces TARGET in one step where it differs.
put() {
	! cmp -s "$1" "$2" || return 0
	cp "$1" "$2.new"
	chmod "$3" "$2.new"
	mv -f "$2.new" "$2"
}

for part; do
	mkdir -p "$dir/${part%%=*}"
	for program in remotegpu remotegpu.exe remotegpu-agent remotegpu-helper remotegpu-nvml; do
		[ ! -e "${part#*=}/$program" ] || put "${part#*=}/$program" "$dir/${part%%=*}/$program" 755
	done
done
(cd "$dir" && sha256sum [a-z]*-*/remotegpu* && { [ ! -e sbom.cdx.json ] || sha256sum sbom.cdx.json; }) >"$work/sums"
if ! cmp -s "$work/sums" "$dir/SHA256SUMS" || ! cmp -s "$work/release.pub" "$dir/release.pub"; then
	openssl dgst -sha256 -sign "$key" -out "$work/sig" "$work/sums"
	openssl dgst -sha256 -verify "$work/release.pub" -signature "$work/sig" "$work/sums" >/dev/null
	put "$work/release.pub" "$dir/release.pub" 644
	put "$work/sums" "$dir/SHA256SUMS" 644
	put "$work/sig" "$dir/SHA256SUMS.sig" 644
fi
