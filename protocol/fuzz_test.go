package protocol

import (
	"bytes"
	"os"
	"reflect"
	"strings"
	"testing"
)

// fuzzDocument feeds any bytes to the decoder of T. What it accepts must be
// valid, and encode to something that means the same.
func fuzzDocument[T any](f *testing.F) {
	for _, v := range vectors() {
		if reflect.TypeOf(v.doc) != reflect.TypeFor[*T]() {
			continue
		}
		data, err := os.ReadFile("testdata/v1/" + v.name + ".cbor")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte{0xa0})
	f.Fuzz(func(t *testing.T, data []byte) {
		doc := new(T)
		if err := Unmarshal(data, doc); err != nil {
			return
		}
		if v, ok := any(doc).(validator); ok {
			if err := v.Validate(); err != nil {
				t.Fatalf("Unmarshal accepted what Validate does not: %v", err)
			}
		}
		once, err := Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		again := new(T)
		if err := Unmarshal(once, again); err != nil {
			t.Fatalf("what was encoded cannot be decoded: %v", err)
		}
		twice, err := Marshal(again)
		if err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%x becomes %x (%v)", once, twice, err)
		}
	})
}

func FuzzDesired(f *testing.F)        { fuzzDocument[Desired](f) }
func FuzzHello(f *testing.F)          { fuzzDocument[Hello](f) }
func FuzzPresence(f *testing.F)       { fuzzDocument[Presence](f) }
func FuzzStatus(f *testing.F)         { fuzzDocument[Status](f) }
func FuzzTelemetryBatch(f *testing.F) { fuzzDocument[TelemetryBatch](f) }
func FuzzAck(f *testing.F)            { fuzzDocument[Ack](f) }
func FuzzDial(f *testing.F)           { fuzzDocument[Dial](f) }
func FuzzStreamHeader(f *testing.F)   { fuzzDocument[StreamHeader](f) }
func FuzzStreamReply(f *testing.F)    { fuzzDocument[StreamReply](f) }
func FuzzSessionOpen(f *testing.F)    { fuzzDocument[SessionOpen](f) }
func FuzzSessionExit(f *testing.F)    { fuzzDocument[SessionExit](f) }
func FuzzWindowSize(f *testing.F)     { fuzzDocument[WindowSize](f) }

// FuzzVerify: nothing but the golden document itself may be accepted.
func FuzzVerify(f *testing.F) {
	good, err := os.ReadFile("testdata/v1/signed-desired.cbor")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[1:])
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := Verify(data, testHost, pinned); err == nil && !bytes.Equal(data, good) {
			t.Fatalf("accepted %x", data)
		}
	})
}

func FuzzSplitHostTopic(f *testing.F) {
	f.Add("rg/v1/hosts/host_0123456789abcdefghjk/status")
	f.Add("rg/v1/hosts//status")
	f.Fuzz(func(t *testing.T, full string) {
		host, topic, ok := SplitHostTopic(full)
		if !ok {
			if host != "" || topic != "" {
				t.Fatalf("%q: %q, %q without ok", full, host, topic)
			}
			return
		}
		if HostTopic(host, topic) != full || host == "" || strings.ContainsAny(host+topic, "/") {
			t.Fatalf("%q splits into %q, %q", full, host, topic)
		}
	})
}

func FuzzCut(f *testing.F) {
	f.Add("a\x00b\xff")
	f.Fuzz(func(t *testing.T, text string) {
		data, err := Marshal(&StreamReply{Version: 1, Message: Cut(text)})
		if err != nil {
			t.Fatal(err)
		}
		if err := Unmarshal(data, new(StreamReply)); err != nil {
			t.Fatal(err)
		}
	})
}
