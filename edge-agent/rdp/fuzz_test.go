package rdp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/remotegpu/remotegpu/protocol"
)

// Units as clients and servers send them.
var (
	aRequest = []byte{3, 0, 0, 19, 14, 0xe0, 0, 0, 0, 0, 0, 1, 0, 8, 0, 3, 0, 0, 0}
	aConfirm = []byte{3, 0, 0, 19, 14, 0xd0, 0, 0, 0x12, 0x34, 0, 2, 0, 8, 0, 1, 0, 0, 0}
)

// anInitial is an MCS Connect Initial with a core block and two channels.
func anInitial() []byte {
	core := make([]byte, 216)
	binary.LittleEndian.PutUint16(core, clientCore)
	binary.LittleEndian.PutUint16(core[2:], uint16(len(core)))
	core[coreLayout], core[coreLayout+1] = 9, 4
	nets := []byte{3, 0xc0, 32, 0, 2, 0, 0, 0}
	nets = append(nets, "drdynvc\x00\x00\x00\x00\x80cliprdr\x00\x00\x00\xa0\xc0"...)
	return wrapped(clientKey, append(core, nets...))
}

// aResponse is an MCS Connect Response that gives numbers to two channels.
func aResponse() []byte {
	return wrapped(serverKey, []byte{3, 0x0c, 12, 0, 0xeb, 3, 2, 0, 0xec, 3, 0xed, 3})
}

func wrapped(key, blocks []byte) []byte {
	p := []byte{3, 0, 0, 0, 2, 0xf0, 0x80, 0x7f, 0x65}
	p = append(putPERLength(append(p, key...), len(blocks)), blocks...)
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	return p
}

// anInfo is a Client Info with user "me", password "pw" and something after.
func anInfo() []byte {
	p := []byte{securityInfo, 0, 0, 0, 0, 0, 0, 0, infoUnicode, 0, 0, 0, 0, 0, 4, 0, 4, 0, 0, 0, 0, 0}
	return append(p, "\x00\x00m\x00e\x00\x00\x00p\x00w\x00\x00\x00\x00\x00\x00\x00rest"...)
}

func FuzzReadTPKT(f *testing.F) {
	f.Add(aRequest)
	f.Add(aConfirm)
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := readTPKT(bytes.NewReader(data), protocol.MaxNegotiation)
		if err != nil {
			return
		}
		if len(p) > protocol.MaxNegotiation || !bytes.HasPrefix(data, p) {
			t.Fatalf("%d bytes that are not those that came", len(p))
		}
		_ = checkRequest(p)
		chosen, err := selected(p)
		if err == nil && chosen != 0 && p[5]&0xf0 != codeConfirm {
			t.Fatal("a protocol from what is no confirm")
		}
		looksLikeXrdp(p, chosen)
	})
}

// FuzzFrames: units, put together, are what came, to the last whole one.
func FuzzFrames(f *testing.F) {
	f.Add(append(anInitial(), 0x30, 5, 1, 2, 3), false)
	f.Add(append([]byte{0x30, 3, 1, 2, 3}, anInitial()...), false)
	f.Add([]byte{0, 0x81, 3, 0, 2}, true)
	f.Fuzz(func(t *testing.T, data []byte, began bool) {
		in := newFrames(bytes.NewReader(data))
		in.began = began
		var got []byte
		for {
			unit, err := in.next()
			if err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, errUnreadable) {
					t.Fatal(err)
				}
				break
			}
			if len(unit) < 2 {
				t.Fatalf("unit of %d bytes", len(unit))
			}
			got = append(got, unit...)
		}
		if !bytes.HasPrefix(data, got) {
			t.Fatal("what passes is not what came")
		}
	})
}

func FuzzConnectInitial(f *testing.F) {
	f.Add(anInitial(), true, true)
	f.Add(aResponse(), false, true)
	f.Fuzz(func(t *testing.T, data []byte, hide, xrdp bool) {
		s := &Session{xrdp: xrdp, req: protocol.RDPRequest{Layout: 0x407}}
		before := len(data)
		at, err := s.connectInitial(data, hide)
		if len(data) != before {
			t.Fatal("the unit has another length")
		}
		if err == nil && hide && at >= 0 && bytes.Contains(data[at:], []byte(clipboardChannel+"\x00\x00\x00\xa0\xc0")) && bytes.Count(data, []byte("cliprdr")) == 1 {
			t.Fatal("the channel is not hidden")
		}
	})
}

func FuzzConnectResponse(f *testing.F) {
	f.Add(aResponse())
	f.Fuzz(func(t *testing.T, data []byte) {
		main, others, err := channelIDs(data)
		if err == nil && (main == 0 || len(others)*2 > len(data)) {
			t.Fatalf("channel %d, %d others from %d bytes", main, len(others), len(data))
		}
	})
}

func FuzzMessage(f *testing.F) {
	f.Add(message{sendRequest, 7, 1003, anInfo()}.unit())
	f.Add(message{sendIndication, 1002, 1005, clipMessage(clipFormats, 0)}.unit())
	f.Fuzz(func(t *testing.T, data []byte) {
		m, ok := parseMessage(data)
		if !ok || len(m.data) > 0x3fff {
			return
		}
		again, ok := parseMessage(m.unit())
		if !ok || again.channel != m.channel || again.sender != m.sender || !bytes.Equal(again.data, m.data) {
			t.Fatalf("%+v became %+v", m, again)
		}
	})
}

func FuzzClientInfo(f *testing.F) {
	f.Add(anInfo(), "user", "secret")
	f.Add(anInfo(), "", "")
	f.Fuzz(func(t *testing.T, data []byte, user, password string) {
		changed, ok := clientInfo(data, Login{user, password}, true)
		if !ok {
			if !bytes.Equal(changed, data) {
				t.Fatal("changed what is no info")
			}
			return
		}
		if len(encode(user)) > 1<<15 || len(encode(password)) > 1<<15 {
			return
		}
		again, ok := clientInfo(changed, Login{}, false)
		if !ok || !bytes.Equal(again, changed) {
			t.Fatal("what was made cannot be read")
		}
	})
}

// FuzzClipboard: whatever the chunks are, nothing is given against the policy.
func FuzzClipboard(f *testing.F) {
	f.Add(clipMessage(clipFormats, 0), clipMessage(clipDataResponse, clipOK))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		d := toHost(protocol.ClipboardFromHost)
		for _, chunk := range [][]byte{first, second} {
			ok, _ := d.pass(chunk)
			if !ok || len(chunk) < chunkHead+clipHead || binary.LittleEndian.Uint32(chunk[4:])&chunkFirst == 0 {
				continue
			}
			if gives[binary.LittleEndian.Uint16(chunk[chunkHead:])] {
				t.Fatalf("% x passes", chunk)
			}
		}
	})
}

func FuzzDeactivateAll(f *testing.F) {
	f.Add([]byte{6, 0, 0x16, 0, 0xea, 3})
	f.Fuzz(func(t *testing.T, data []byte) {
		s := share{id: 7}
		whole, changed := s.mend(data)
		if changed != (len(whole) != len(data)) || changed && int(binary.LittleEndian.Uint16(whole)) != len(whole) {
			t.Fatalf("% x became % x", data, whole)
		}
	})
}
