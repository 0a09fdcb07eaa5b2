package rdp

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

// server is an RDP server up to TLS; after that the test is what it says.
type server struct {
	confirm []byte
	cert    tls.Certificate
	version uint16 // of TLS, as it was agreed
	conn    *tls.Conn
}

func newServer(t *testing.T, confirm []byte) *server {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "desk"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &server{confirm: confirm, cert: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}}
}

// open is Open with this server at the other end.
func (s *server) open(t *testing.T, req protocol.RDPRequest) (*Session, protocol.RDPReply, error) {
	t.Helper()
	near, far := net.Pipe()
	t.Cleanup(func() { near.Close(); far.Close() })
	ready := make(chan error, 1)
	go func() {
		if _, err := readTPKT(far, protocol.MaxNegotiation); err != nil {
			ready <- err
			return
		}
		if _, err := far.Write(s.confirm); err != nil {
			ready <- err
			return
		}
		conn := tls.Server(far, &tls.Config{Certificates: []tls.Certificate{s.cert}, SessionTicketsDisabled: true})
		err := conn.Handshake()
		s.conn, s.version = conn, conn.ConnectionState().Version
		ready <- err
	}()
	session, reply, err := Open(near, req)
	if session == nil {
		near.Close()
	}
	<-ready
	return session, reply, err
}

// confirm is a Connection Confirm that chooses protocols.
func confirm(kind byte, protocols uint32) []byte {
	p := slices.Clone(aConfirm)
	p[11] = kind
	binary.LittleEndian.PutUint32(p[15:], protocols)
	return p
}

func TestOpen(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		confirm []byte
		session bool
		xrdp    bool
		tls     uint16
		err     bool
	}{
		{"chooses TLS", confirm(typeResponse, protocolTLS), true, true, tls.VersionTLS13, false},
		{"chooses CredSSP", confirm(typeResponse, protocolHybrid), true, false, tls.VersionTLS12, false},
		{"wants CredSSP", confirm(typeFailure, 5), false, false, 0, false},
		{"knows no TLS", []byte{3, 0, 0, 11, 6, 0xd0, 0, 0, 0x12, 0x34, 0}, false, false, 0, false},
		{"is no RDP server", []byte("SSH-2.0-OpenSSH_9.2\r\n"), false, false, 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, c.confirm)
			session, reply, err := s.open(t, protocol.RDPRequest{Negotiation: aRequest})
			if (err != nil) != c.err || (session != nil) != c.session {
				t.Fatalf("session %v, %v", session != nil, err)
			}
			if err == nil && !bytes.Equal(reply.Confirm, c.confirm) {
				t.Errorf("confirm % x", reply.Confirm)
			}
			if !c.session {
				if len(reply.Certificates) != 0 {
					t.Error("certificates of a server that refuses")
				}
				return
			}
			if len(reply.Certificates) != 1 || !bytes.Equal(reply.Certificates[0], s.cert.Certificate[0]) {
				t.Error("not the server's certificate")
			}
			if session.xrdp != c.xrdp || s.version != c.tls {
				t.Errorf("xrdp %v, TLS %#x", session.xrdp, s.version)
			}
		})
	}
}

func TestOpenWantsARequest(t *testing.T) {
	t.Parallel()
	near, _ := net.Pipe()
	for _, p := range [][]byte{nil, aConfirm, aRequest[:18], append(slices.Clone(aRequest), 0), []byte("GET / HTTP/1.1")} {
		if _, _, err := Open(near, protocol.RDPRequest{Negotiation: p}); !errors.Is(err, errUnreadable) {
			t.Errorf("% x: %v", p, err)
		}
	}
}

// desk is a Session that serves, with both ends in the test's hands.
type desk struct {
	t      *testing.T
	client net.Conn // the client's end
	server *tls.Conn
	ended  chan error
}

type stream struct{ net.Conn }

func (s stream) CloseWithError(error) { s.Close() }

func newDesk(t *testing.T, req protocol.RDPRequest, login Login) *desk {
	t.Helper()
	s := newServer(t, confirm(typeResponse, protocolTLS))
	req.Negotiation = aRequest
	session, _, err := s.open(t, req)
	if err != nil {
		t.Fatal(err)
	}
	session.LogIn(login)
	near, far := net.Pipe()
	d := &desk{t: t, client: near, server: s.conn, ended: make(chan error, 1)}
	t.Cleanup(func() { near.Close() })
	go func() {
		d.ended <- session.Serve(stream{far})
		far.Close()
		s.conn.Close()
	}()
	for _, c := range []net.Conn{near, s.conn} {
		_ = c.SetDeadline(time.Now().Add(20 * time.Second)) // ends a test that waits for what does not come
	}
	return d
}

// up sends what the client says and returns what the server hears.
func (d *desk) up(p []byte) []byte { return d.pass(d.client, d.server, p) }

// down is up in the other direction.
func (d *desk) down(p []byte) []byte { return d.pass(d.server, d.client, p) }

func (d *desk) pass(from, to net.Conn, p []byte) []byte {
	d.t.Helper()
	sent := make(chan error, 1)
	go func() {
		_, err := from.Write(p)
		sent <- err
	}()
	got := d.read(to)
	if err := <-sent; err != nil {
		d.t.Fatal(err)
	}
	return got
}

func (d *desk) read(from net.Conn) []byte {
	d.t.Helper()
	got, err := readTPKT(from, 1<<16-1)
	if err != nil {
		d.t.Fatal(err)
	}
	return got
}

// connect goes through MCS; the channels are main 1003, drdynvc 1004 and the
// clipboard's 1005.
func (d *desk) connect() (initial []byte) {
	d.t.Helper()
	initial = d.up(anInitial())
	if got := d.down(aResponse()); !bytes.Equal(got, aResponse()) {
		d.t.Fatalf("the response was changed: % x", got)
	}
	return initial
}

func TestLayoutCredentialsAndXrdp(t *testing.T) {
	t.Parallel()
	d := newDesk(t, protocol.RDPRequest{Clipboard: protocol.ClipboardBoth, Layout: 0x407}, Login{"user", "geheim"})
	initial := d.connect()
	core := initial[bytes.Index(initial, clientKey)+len(clientKey)+2:]
	if got := binary.LittleEndian.Uint32(core[coreLayout:]); got != 0x407 {
		t.Errorf("layout %#x", got)
	}
	if build, depth := binary.LittleEndian.Uint32(core[coreBuild:]), core[coreHighColor]; build != build11 || depth != trueColor {
		t.Errorf("build %d, depth %d", build, depth)
	}
	if !bytes.Contains(initial, []byte(clipboardChannel)) {
		t.Error("the clipboard is hidden")
	}
	m, ok := parseMessage(d.up(message{sendRequest, 7, 1003, anInfo()}.unit()))
	if !ok || !bytes.Contains(m.data, append(encode("user"), 0, 0)) || !bytes.Contains(m.data, append(encode("geheim"), 0, 0)) || bytes.Contains(m.data, encode("pw")) {
		t.Errorf("info % x", m.data)
	}
	if !bytes.HasSuffix(m.data, []byte("rest")) || binary.LittleEndian.Uint32(m.data[infoFlagsAt:])&infoAutologon == 0 {
		t.Errorf("info % x", m.data)
	}
	demand := message{sendIndication, 1002, 1003, []byte{10, 0, 0x11, 0, 0xea, 3, 0xea, 3, 1, 0}}.unit()
	if got := d.down(demand); !bytes.Equal(got, demand) {
		t.Errorf("demand % x", got)
	}
	m, _ = parseMessage(d.down(message{sendIndication, 1002, 1003, []byte{6, 0, 0x16, 0, 0xea, 3}}.unit()))
	if want := []byte{13, 0, 0x16, 0, 0xea, 3, 0xea, 3, 1, 0, 1, 0, 0}; !bytes.Equal(m.data, want) {
		t.Errorf("deactivate % x, want % x", m.data, want)
	}
}

// TestStandardServer: nothing is changed but what was asked for.
func TestStandardServer(t *testing.T) {
	t.Parallel()
	d := newDesk(t, protocol.RDPRequest{Clipboard: protocol.ClipboardBoth, Server: protocol.RDPServerStandard}, Login{})
	if got := d.connect(); !bytes.Equal(got, anInitial()) {
		t.Errorf("initial % x", got)
	}
	info := message{sendRequest, 7, 1003, anInfo()}.unit()
	if got := d.up(info); !bytes.Equal(got, info) {
		t.Errorf("info % x", got)
	}
}

func TestClipboardPolicies(t *testing.T) {
	t.Parallel()
	formats, data := clipMessage(clipFormats, 0), clipMessage(clipDataRequest, 0)
	for policy, want := range map[string]struct{ give, take bool }{ // by the client
		protocol.ClipboardBoth: {true, true}, protocol.ClipboardToHost: {true, false},
		protocol.ClipboardFromHost: {false, true}, protocol.ClipboardNone: {false, false}, "unknown": {false, false},
	} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t, protocol.RDPRequest{Clipboard: policy}, Login{})
			initial := d.connect()
			if hidden := bytes.Contains(initial, []byte(hiddenChannel)); hidden != (policy == protocol.ClipboardNone) {
				t.Errorf("hidden %v", hidden)
			}
			d.check("the client's formats", d.client, d.server, message{sendRequest, 7, 1005, formats}, want.give, clipFormatsResponse)
			d.check("the client's question", d.client, d.server, message{sendRequest, 7, 1005, data}, want.take, clipDataResponse)
			d.check("the server's formats", d.server, d.client, message{sendIndication, 1002, 1005, formats}, want.take, clipFormatsResponse)
			d.check("the server's question", d.server, d.client, message{sendIndication, 1002, 1005, data}, want.give, clipDataResponse)
			other := message{sendRequest, 7, 1004, formats}.unit()
			if got := d.up(other); !bytes.Equal(got, other) {
				t.Error("another channel is changed")
			}
		})
	}
}

// check sends m from one end: it arrives at the other or is answered.
func (d *desk) check(what string, from, to net.Conn, m message, passes bool, answer uint16) {
	d.t.Helper()
	if passes {
		if got := d.pass(from, to, m.unit()); !bytes.Equal(got, m.unit()) {
			d.t.Errorf("%s: % x", what, got)
		}
		return
	}
	got, ok := parseMessage(d.pass(from, from, m.unit()))
	if !ok || got.channel != m.channel || got.choice == m.choice || binary.LittleEndian.Uint16(got.data[chunkHead:]) != answer {
		d.t.Errorf("%s is answered with %+v", what, got)
	}
}

// TestClipboardInPieces: a message of several chunks passes or is dropped as a
// whole, and one that cannot be read is dropped.
func TestClipboardInPieces(t *testing.T) {
	t.Parallel()
	piece := func(flags uint32, p []byte) []byte {
		return append(binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, 3000), flags), p...)
	}
	for _, c := range []struct {
		name   string
		chunks [][]byte
		want   []bool
	}{
		{"data", [][]byte{piece(chunkFirst, []byte{5, 0, 1, 0, 0, 1, 0, 0}), piece(0, []byte("abc")), piece(chunkLast, []byte("d")), clipMessage(clipDataRequest, 0)}, []bool{false, false, false, true}},
		{"no secret", [][]byte{piece(chunkFirst, []byte{7, 0, 0, 0, 0, 1, 0, 0}), piece(chunkLast, []byte("abc"))}, []bool{true, true}},
		{"compressed", [][]byte{piece(chunkFirst|chunkLast|chunkCompressed, []byte{7, 0, 0, 0, 0, 0, 0, 0})}, []bool{false}},
		{"no beginning", [][]byte{piece(chunkLast, []byte{5, 0, 1, 0, 0, 0, 0, 0})}, []bool{false}},
		{"short", [][]byte{piece(chunkFirst|chunkLast, []byte{7}), {1, 2, 3}}, []bool{false, false}},
	} {
		d := toHost(protocol.ClipboardFromHost)
		for i, chunk := range c.chunks {
			if ok, _ := d.pass(chunk); ok != c.want[i] {
				t.Errorf("%s: chunk %d passes: %v", c.name, i, ok)
			}
		}
	}
}

// TestUnreadable ends the connection: a policy cannot be kept on what is not
// understood.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	for name, bytes := range map[string][]byte{"no MCS": {3, 0, 0, 9, 2, 0xf0, 0x80, 1, 2}, "no RDP": []byte("GET / HTTP/1.1\r\n")} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t, protocol.RDPRequest{Clipboard: protocol.ClipboardBoth}, Login{})
			go d.client.Write(bytes) //nolint:errcheck // it is not read to its end
			if err := <-d.ended; !errors.Is(err, errUnreadable) {
				t.Error(err)
			}
			if _, err := d.client.Read(make([]byte, 1)); err == nil {
				t.Error("the client hears more")
			}
		})
	}
}

// TestDisguisedClipboard: a client that words its units so that a server
// understands more than we do gets nothing past the policy.
func TestDisguisedClipboard(t *testing.T) {
	t.Parallel()
	whole := message{sendRequest, 7, 1005, clipMessage(clipFormats, 0)}.unit()
	changed := func(at int, b byte) []byte {
		p := slices.Clone(whole)
		p[at] = b
		return p
	}
	for name, unit := range map[string][]byte{
		"X.224 says more comes":   changed(tpktHead+2, 0),
		"more data than there is": changed(dataHead+7, 200),
		"as if from the server":   changed(dataHead, sendIndication),
	} {
		d := newDesk(t, protocol.RDPRequest{Clipboard: protocol.ClipboardFromHost}, Login{})
		d.connect()
		go d.client.Write(unit) //nolint:errcheck // it may not be read to its end
		if n, err := d.server.Read(make([]byte, 1)); err == nil {
			t.Errorf("%s: %d bytes pass", name, n)
		}
		if err := <-d.ended; !errors.Is(err, errUnreadable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	initial := anInitial()
	for name, p := range map[string][]byte{
		"two clipboards": bytes.Replace(initial, []byte("drdynvc\x00"), []byte(clipboardChannel), 1),
		"two keys":       append(slices.Clone(clientKey), initial...),
	} {
		if _, err := new(Session).connectInitial(p, false); !errors.Is(err, errUnreadable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCredSSPPasses: what comes before MCS goes through as it is.
func TestCredSSPPasses(t *testing.T) {
	t.Parallel()
	d := newDesk(t, protocol.RDPRequest{Clipboard: protocol.ClipboardBoth}, Login{})
	for _, p := range [][]byte{{0x30, 3, 1, 2, 3}, {0x30, 0x81, 2, 9, 9}} {
		go d.client.Write(p) //nolint:errcheck // what is read tells
		got := make([]byte, len(p))
		if _, err := io.ReadFull(d.server, got); err != nil || !bytes.Equal(got, p) {
			t.Fatalf("% x, %v", got, err)
		}
	}
	early := []byte{5, 0, 0, 0} // Early User Authorization Result: no unit of any kind
	go d.server.Write(early)    //nolint:errcheck // as above
	got := make([]byte, len(early))
	if _, err := io.ReadFull(d.client, got); err != nil || !bytes.Equal(got, early) {
		t.Fatalf("% x, %v", got, err)
	}
	d.connect()
}
