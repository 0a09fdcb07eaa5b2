// Package installers holds the scripts that put the agent on a host.
//
// It owns install.sh and how a release is signed; the server only fills in
// the script's three placeholders (@URL@, @CA_PEM@, @RELEASE_PUB@) and serves
// it. Its invariant: nothing that the script downloads is run before its
// checksum and the signature over the checksums have been checked.
package installers

import _ "embed"

// Script is install.sh with its placeholders not yet filled in.
//
//go:embed install.sh
var Script string
