package rdp

import (
	"bytes"
	"encoding/asn1"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/protocol"
)

// aRequest is what iron-remote-desktop-rdp 0.7.0 sends, made by hand: version,
// destination, token, X.224 Connection Request.
func aRequest(t testing.TB) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll("30 2e a0 04 02 02 0d 3e a2 03 0c 01 78 a3 0a 0c 08 72 67 64 5f 54 4f 4b 45 a6 15 04 13 03 00 00 13 0e e0 00 00 00 00 00 01 00 08 00 03 00 00 00", " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRequest(t *testing.T) {
	t.Parallel()
	b := aRequest(t)
	n, err := cleanPathLength(b)
	if err != nil || n != len(b) {
		t.Fatalf("length %d of %d, %v", n, len(b), err)
	}
	token, negotiation, err := parseCleanPath(b)
	if err != nil || token != "rgd_TOKE" || len(negotiation) != 19 || negotiation[5] != 0xe0 {
		t.Errorf("%q, % x, %v", token, negotiation, err)
	}
	for name, bad := range map[string][]byte{
		"empty": {}, "cut": b[:len(b)-1], "more": append(bytes.Clone(b), 0), "another version": bytes.Replace(b, []byte{0x0d, 0x3e}, []byte{0x0d, 0x3f}, 1),
		"no X.224": {0x30, 6, 0xa0, 4, 2, 2, 0x0d, 0x3e}, "text": []byte("GET / HTTP/1.1\r\n"),
	} {
		if _, _, err := parseCleanPath(bad); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	for name, bad := range map[string][]byte{"too long": {0x30, 0x82, 0xff, 0xff}, "three bytes of length": {0x30, 0x83, 0, 0}, "text": []byte("GET ")} {
		if n, err := cleanPathLength(bad); err == nil {
			t.Errorf("%s has length %d", name, n)
		}
	}
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	confirm := []byte{3, 0, 0, 11, 6, 0xd0, 0, 0, 0x12, 0x34, 0}
	b, err := answer(&protocol.RDPReply{Confirm: confirm, Certificates: [][]byte{{0x30, 0}, {0x30, 1, 2}}}, "desk")
	if err != nil {
		t.Fatal(err)
	}
	// By hand, field by field: [0] version, [6] confirm, [7] two octet strings, [9] name.
	want := "302aa00402020d3ea60d040b0300000b06d00000123400" + "a70b300904023000" + "0403300102" + "a9060c046465736b"
	if got := hex.EncodeToString(b); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	var m cleanPath
	b, err = answer(&protocol.RDPReply{Confirm: confirm}, "desk")
	if _, parse := asn1.Unmarshal(b, &m); err != nil || parse != nil || m.Error.Code != cleanPathNegotiation || !bytes.Equal(m.X224, confirm) {
		t.Errorf("%+v, %v, %v", m, err, parse)
	}
	m = cleanPath{}
	b, err = refuse(403)
	if _, parse := asn1.Unmarshal(b, &m); err != nil || parse != nil || m.Error != (cleanPathError{cleanPathGeneral, 403}) || m.X224 != nil {
		t.Errorf("%+v, %v, %v", m, err, parse)
	}
}

func FuzzCleanPath(f *testing.F) {
	f.Add(aRequest(f))
	f.Add([]byte{0x30, 0x82, 1, 0, 0xa0, 4, 2, 2, 0x0d, 0x3e})
	f.Fuzz(func(t *testing.T, data []byte) {
		if n, err := cleanPathLength(data); err == nil && n > maxCleanPath {
			t.Fatalf("a request of %d bytes", n)
		}
		if _, negotiation, err := parseCleanPath(data); err == nil && (len(negotiation) == 0 || len(negotiation) > protocol.MaxNegotiation) {
			t.Fatalf("%d bytes of X.224", len(negotiation))
		}
	})
}
