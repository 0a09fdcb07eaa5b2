#!/bin/sh
# Builds an image from Debian packages, with no registry in between:
#
#   deploy/images/build.sh RECIPE DIR
#
# RECIPE is a folder here with a file 'packages' (one name a line) and, if it
# needs one, 'customize.sh', run in the finished root as $1. The result is an OCI
# image layout in DIR, in a folder named after what went in: while nothing of
# that changes, a second build takes no time. The last line printed is its path.
set -eu

recipe=$1
mkdir -p "$2"
out=$(cd "$2" && pwd)
cd "$(dirname "$0")"
release=bookworm
mirror=${RG_DEBIAN_MIRROR:-}
go=${GO:-go}

key=$(cat build.sh oci/main.go "$recipe"/* | sha256sum | cut -c 1-16)
image=$out/$recipe-$release-$key
if [ -e "$image/index.json" ]; then
	echo "$image"
	exit
fi

# Texts that nobody reads in a container; copyright files stay.
# shellcheck disable=SC2016 # mmdebstrap's shell expands $1
set -- --variant=minbase --skip=output/mknod \
	--include="$(grep -v '^#' "$recipe/packages" | paste -sd, -)" \
	--aptopt='APT::Install-Recommends "false"' \
	--dpkgopt=force-unsafe-io \
	--dpkgopt='path-exclude=/usr/share/doc/*' \
	--dpkgopt='path-include=/usr/share/doc/*/copyright' \
	--dpkgopt='path-exclude=/usr/share/man/*' \
	--dpkgopt='path-exclude=/usr/share/info/*' \
	--dpkgopt='path-exclude=/usr/share/locale/*' \
	--dpkgopt='path-exclude=*.js.map' \
	--dpkgopt='path-exclude=/usr/lib/*/perl/*/CORE/*.h' \
	--customize-hook='rm -rf "$1"/var/cache/ldconfig/* "$1"/var/log/* "$1"/var/lib/dpkg/*-old "$1"/etc/machine-id "$1"/etc/hostname "$1"/etc/resolv.conf'
if [ -e "$recipe/customize.sh" ]; then
	set -- "$@" --customize-hook="sh $PWD/$recipe/customize.sh \"\$1\""
fi

work=$(mktemp -d "$out/.new.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' HUP INT TERM
$go build -o "$work/oci" ./oci
SOURCE_DATE_EPOCH=1700000000 mmdebstrap "$@" "$release" "$work/root.tar" ${mirror:+"$mirror"} 2>"$work/log" >&2 || {
	cat "$work/log" >&2
	echo "build.sh: mmdebstrap could not build $recipe: is the Debian mirror reachable? (RG_DEBIAN_MIRROR chooses another)" >&2
	exit 1
}
"$work/oci" -dir "$work/image" -title "RemoteGPU $recipe" <"$work/root.tar"
rm -rf "$out/$recipe-$release-"*
mv "$work/image" "$image"
echo "$image"
