package protocol

import (
	"bytes"
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"
	"unicode/utf16"
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
func FuzzReference(f *testing.F)      { fuzzDocument[Reference](f) }
func FuzzHello(f *testing.F)          { fuzzDocument[Hello](f) }
func FuzzPresence(f *testing.F)       { fuzzDocument[Presence](f) }
func FuzzStatus(f *testing.F)         { fuzzDocument[Status](f) }
func FuzzTelemetryBatch(f *testing.F) { fuzzDocument[TelemetryBatch](f) }
func FuzzAck(f *testing.F)            { fuzzDocument[Ack](f) }
func FuzzDial(f *testing.F)           { fuzzDocument[Dial](f) }
func FuzzStreamHeader(f *testing.F)   { fuzzDocument[StreamHeader](f) }
func FuzzStreamReply(f *testing.F)    { fuzzDocument[StreamReply](f) }
func FuzzAttach(f *testing.F)         { fuzzDocument[Attach](f) }
func FuzzSessionQuery(f *testing.F)   { fuzzDocument[SessionQuery](f) }
func FuzzSessionList(f *testing.F)    { fuzzDocument[SessionList](f) }
func FuzzAccepted(f *testing.F)       { fuzzDocument[Accepted](f) }
func FuzzSessionOpen(f *testing.F)    { fuzzDocument[SessionOpen](f) }
func FuzzSessionExit(f *testing.F)    { fuzzDocument[SessionExit](f) }
func FuzzWindowSize(f *testing.F)     { fuzzDocument[WindowSize](f) }

// fuzzEnrolment feeds any JSON to the decoder of T, as both ends of an enrolment
// decode it. What is valid must be so after another turn, and mean the same.
func fuzzEnrolment[T any](f *testing.F, name string) {
	good, err := os.ReadFile("testdata/v1/" + name + ".json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"public_key":null,"keys":[null],"inventory":{"gpus":[{"power_limit":1e38}]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		doc, again := new(T), new(T)
		if json.Unmarshal(data, doc) != nil {
			return
		}
		if v, ok := any(doc).(validator); ok && v.Validate() != nil {
			return
		}
		once, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(once, again); err != nil {
			t.Fatalf("what was encoded cannot be decoded: %v", err)
		}
		if v, ok := any(again).(validator); ok && v.Validate() != nil {
			t.Fatalf("%s was valid and is not any more: %v", once, v.Validate())
		}
		if twice, err := json.Marshal(again); err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%s becomes %s (%v)", once, twice, err)
		}
		e, ok := any(doc).(*Enroll)
		if !ok {
			return
		}
		// Later the same inventory comes with a hello.
		inventory, err := Marshal(&e.Inventory)
		if err != nil || Unmarshal(inventory, new(Inventory)) != nil {
			t.Fatalf("inventory %+v does not travel by CBOR: %v", e.Inventory, err)
		}
	})
}

func FuzzEnroll(f *testing.F)   { fuzzEnrolment[Enroll](f, "enroll") }
func FuzzEnrolled(f *testing.F) { fuzzEnrolment[Enrolled](f, "enrolled") }

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

// FuzzVerifyReference: nothing but the golden reference itself may be accepted.
func FuzzVerifyReference(f *testing.F) {
	good, err := os.ReadFile("testdata/v1/signed-reference.cbor")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[1:])
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := VerifyReference(data, testHost, pinned); err == nil && !bytes.Equal(data, good) {
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

// FuzzFrameTap: a tap sees what a reader reads, however the bytes come.
func FuzzFrameTap(f *testing.F) {
	f.Add([]byte{6, 0, 0, 0, 2, 'h', 'i', 8, 0, 0, 0, 0, 6, 0, 0, 0, 1, 'x'}, uint8(3))
	f.Add([]byte{6, 0, 1, 0, 1, 'h'}, uint8(1))
	f.Fuzz(func(t *testing.T, data []byte, step uint8) {
		var want, got, frame []byte
		frames := NewFrameReader(bytes.NewReader(data))
		for {
			kind, payload, err := frames.Next()
			if err != nil {
				break
			}
			want = append(append(append(want, byte(kind)), payload...), '|')
		}
		tap := FrameTap{See: func(kind FrameType, piece []byte, last bool) {
			if frame = append(frame, piece...); last {
				got = append(append(append(got, byte(kind)), frame...), '|')
				frame = frame[:0]
			}
		}}
		for rest := data; len(rest) > 0; {
			n := min(int(step)+1, len(rest))
			tap.Take(rest[:n])
			rest = rest[n:]
			if step%2 == 0 { // another one goes on
				next := FrameTap{See: tap.See}
				next.StandAt(tap.Place())
				tap = next
			}
		}
		if !bytes.Equal(want, got) {
			t.Errorf("read %q, seen %q", want, got)
		}
	})
}

// FuzzFramePlace: no place that was kept somewhere makes a tap fail.
func FuzzFramePlace(f *testing.F) {
	f.Add([]byte{6, 0, 0, 0, 9}, 3, []byte("abcdef"))
	f.Add([]byte{6, 0, 0, 0, 9, 9}, -1, []byte("abc"))
	f.Fuzz(func(t *testing.T, head []byte, left int, data []byte) {
		seen := 0
		tap := FrameTap{See: func(_ FrameType, piece []byte, _ bool) { seen += len(piece) }}
		tap.StandAt(FramePlace{Head: head, Left: left})
		tap.Take(data)
		if seen > len(data) {
			t.Errorf("%d bytes of %d were seen", seen, len(data))
		}
	})
}

// FuzzDesktopLogin: what is accepted fits into a unit of RDP.
func FuzzDesktopLogin(f *testing.F) {
	f.Add("user\npassword\n")
	f.Add("\n\n")
	f.Add("user\n" + strings.Repeat("\U0001f511", 128) + "\n")
	f.Fuzz(func(t *testing.T, file string) {
		user, password, err := ParseDesktopLogin(file)
		for _, text := range []string{user, password} {
			if len(utf16.Encode([]rune(text))) > MaxDesktopText || strings.Contains(text, "\n") || err != nil && text != "" {
				t.Errorf("%q, %v", text, err)
			}
		}
	})
}
