package rdp

import (
	"encoding/asn1"
	"fmt"
	"net/http"

	"github.com/remotegpu/remotegpu/protocol"
)

// RDCleanPath is how a browser hands the first steps of RDP to somebody else:
// one DER message each way, then the bytes inside of TLS. The format is that of
// Devolutions' ironrdp-rdcleanpath, version 1.
const cleanPathVersion = 3389 + 1

// Codes of a cleanPathError.
const (
	cleanPathGeneral     = 1
	cleanPathNegotiation = 2 // the server's Confirm says why
)

// maxCleanPath is how long a request may be.
const maxCleanPath = 16 << 10

// cleanPath is a message. Which fields are there depends on the way it goes.
type cleanPath struct {
	Version      int            `asn1:"explicit,tag:0"`
	Error        cleanPathError `asn1:"explicit,optional,tag:1"`
	Destination  string         `asn1:"explicit,optional,tag:2,utf8"`
	ProxyAuth    string         `asn1:"explicit,optional,tag:3,utf8"`
	ServerAuth   string         `asn1:"explicit,optional,tag:4,utf8"`
	Blob         string         `asn1:"explicit,optional,tag:5,utf8"`
	X224         []byte         `asn1:"explicit,optional,tag:6"`
	Certificates [][]byte       `asn1:"explicit,optional,tag:7"`
	ServerAddr   string         `asn1:"explicit,optional,tag:9,utf8"`
}

type cleanPathError struct {
	Code   int `asn1:"explicit,tag:0"`
	Status int `asn1:"explicit,optional,tag:1"` // HTTP
}

// cleanPathLength returns how long the message is that begins with p, or 0
// when p is too short to tell.
func cleanPathLength(p []byte) (int, error) {
	switch {
	case len(p) < 4:
		return 0, nil
	case p[0] != 0x30: // SEQUENCE
	case p[1] < 0x80:
		return 2 + int(p[1]), nil
	case p[1] == 0x81:
		return 3 + int(p[2]), nil
	case p[1] == 0x82:
		if n := 4 + int(p[2])<<8 + int(p[3]); n <= maxCleanPath {
			return n, nil
		}
	}
	return 0, fmt.Errorf("no RDCleanPath request of up to %d bytes", maxCleanPath)
}

// parseCleanPath reads a request: a token and an X.224 Connection Request.
func parseCleanPath(p []byte) (token string, negotiation []byte, err error) {
	var m cleanPath
	rest, err := asn1.Unmarshal(p, &m)
	switch {
	case err != nil:
		return "", nil, fmt.Errorf("read RDCleanPath request: %w", err)
	case len(rest) > 0, m.Version != cleanPathVersion, len(m.X224) == 0, len(m.X224) > protocol.MaxNegotiation:
		return "", nil, fmt.Errorf("RDCleanPath request of version %d with %d bytes of X.224", m.Version, len(m.X224))
	}
	return m.ProxyAuth, m.X224, nil
}

// answer is the message that a reply of the agent becomes.
func answer(r *protocol.RDPReply, server string) ([]byte, error) {
	if len(r.Certificates) == 0 {
		return asn1.Marshal(cleanPath{Version: cleanPathVersion, Error: cleanPathError{Code: cleanPathNegotiation}, X224: r.Confirm})
	}
	return asn1.Marshal(cleanPath{Version: cleanPathVersion, X224: r.Confirm, Certificates: r.Certificates, ServerAddr: server})
}

// refuse is the message that says no, with an HTTP status as the reason.
func refuse(status int) ([]byte, error) {
	if status == 0 {
		status = http.StatusInternalServerError
	}
	return asn1.Marshal(cleanPath{Version: cleanPathVersion, Error: cleanPathError{Code: cleanPathGeneral, Status: status}})
}
