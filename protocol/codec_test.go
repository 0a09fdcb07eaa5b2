package protocol

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"io"
	"math"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func fromHex(t *testing.T, text string) []byte {
	t.Helper()
	data, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestUnmarshalRefuses(t *testing.T) {
	for name, data := range map[string][]byte{
		"nothing":                  {},
		"null":                     {0xf6},
		"an array":                 {0x80},
		"an empty map":             {0xa0},
		"a cut map":                fromHex(t, "a3 01 01 02"),
		"trailing bytes":           fromHex(t, "a2 01 01 02 01 00"),
		"a key twice":              fromHex(t, "a3 01 01 02 05 02 06"),
		"an indefinite map":        fromHex(t, "bf 01 01 02 05 ff"),
		"a tag":                    fromHex(t, "a2 01 01 02 c2 41 05"),
		"a tag around it all":      fromHex(t, "d9d9f7 a2 01 01 02 05"),
		"text for a number":        fromHex(t, "a2 01 01 02 61 35"),
		"a negative for unsigned":  fromHex(t, "a2 01 01 02 20"),
		"a number over 64 bits":    fromHex(t, "a2 01 01 02 c2 49 01 00 00 00 00 00 00 00 00"),
		"a counter over 63 bits":   fromHex(t, "a2 01 01 02 1b 80 00 00 00 00 00 00 00"),
		"another version":          fromHex(t, "a2 01 02 02 05"),
		"a reserved simple value":  fromHex(t, "a2 01 01 03 f8 10"),
		"17 levels in unknown key": append(fromHex(t, "a3 01 01 02 05 18 63"), bytes.Repeat([]byte{0x81}, 20)...),
	} {
		var p Presence
		if err := Unmarshal(data, &p); err == nil {
			t.Errorf("%s was read as %+v", name, p)
		}
	}
}

func TestUnmarshalRefusesBadText(t *testing.T) {
	var d Dial
	if err := Unmarshal(fromHex(t, "a2 01 01 02 62 c3 28"), &d); err == nil || !strings.Contains(err.Error(), "UTF-8") {
		t.Errorf("invalid UTF-8: %v", err)
	}
}

func TestUnmarshalIgnoresUnknownKeys(t *testing.T) {
	var p Presence
	// 1: 1, 2: 5, 3: true, 99: {"later": [1, 2.5]}, "x": null
	err := Unmarshal(fromHex(t, "a5 01 01 02 05 03 f5 18 63 a1 65 6c61746572 82 01 f9 4100 61 78 f6"), &p)
	if diff := cmp.Diff(Presence{Version: 1, Epoch: 5, Online: true}, p); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

func TestUnmarshalRefusesHugeDocuments(t *testing.T) {
	var s Status
	err := Unmarshal(make([]byte, MaxPayload+1), &s)
	if err == nil || !strings.Contains(err.Error(), "over the limit") {
		t.Error(err)
	}
	// 2^32 items promised in 9 bytes must cost no memory.
	if err := Unmarshal(fromHex(t, "a1 06 9b 00 00 00 01 00 00 00 00"), &s); err == nil {
		t.Error("an array of 2^32 items was read")
	}
}

func TestMarshalIsDeterministic(t *testing.T) {
	doc := fullDesired()
	doc.Workloads[0].Env = map[string]string{}
	for _, k := range strings.Split("q w e r t y u i o p a s d f g h j k l", " ") {
		doc.Workloads[0].Env[k] = k
	}
	first, err := Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		again, err := Marshal(doc)
		if err != nil || !bytes.Equal(first, again) {
			t.Fatal("the same document, other bytes", err)
		}
	}
}

func TestRoundTripKeepsTheDifferenceBetweenZeroAndNone(t *testing.T) {
	zero := 0
	for _, code := range []*int{nil, &zero} {
		in := &Status{Version: 1, Workloads: []WorkloadStatus{{ID: "a", ExitCode: code}}}
		data, err := Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		var out Status
		if err := Unmarshal(data, &out); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(in, &out); diff != "" {
			t.Error(diff)
		}
	}
}

func TestTelemetryKeepsNaN(t *testing.T) {
	in := &TelemetryBatch{Version: 1, First: 1, At: []int64{1}, Host: []Series{{MetricLoad1, []float32{float32(math.NaN())}}}}
	data, err := Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var out TelemetryBatch
	if err := Unmarshal(data, &out); err != nil || !math.IsNaN(float64(out.Host[0].Values[0])) {
		t.Error(err, out)
	}
}

// TestTelemetryIsSmall guards the reason for the columnar layout: one minute
// of 8 GPUs at 1 Hz, seven quantities each.
func TestTelemetryIsSmall(t *testing.T) {
	batch := &TelemetryBatch{Version: 1, First: 1}
	for i := range 60 {
		batch.At = append(batch.At, 1793491200000+int64(i)*1000)
	}
	for range 8 {
		g := GPUTelemetry{UUID: "GPU-5e1f2a3b-0000-4000-8000-000000000001"}
		for m := MetricGPUUtilisation; m <= MetricGPUClockMemory; m++ {
			values := make([]float32, 60)
			for i := range values {
				values[i] = float32(50 + i)
			}
			g.Series = append(g.Series, Series{m, values})
		}
		batch.GPUs = append(batch.GPUs, g)
	}
	data, err := Marshal(batch)
	if err != nil {
		t.Fatal(err)
	}
	if limit := 8 * 7 * 60 * 4; len(data) > limit {
		t.Errorf("%d bytes, at most %d", len(data), limit)
	}
}

func TestCut(t *testing.T) {
	for in, want := range map[string]string{
		"":                                   "",
		"plain":                              "plain",
		"a\x00b":                             "ab",
		"bad \xff byte":                      "bad ? byte",
		"a\x1b]0;b\x07c\u009bd\re\u202ef":    "a]0;bcdef",
		"two\nlines":                         "two lines",
		strings.Repeat("x", MaxText):         strings.Repeat("x", MaxText),
		strings.Repeat("x", MaxText+1):       strings.Repeat("x", MaxText-3) + "...",
		strings.Repeat("é", MaxText/2) + "x": strings.Repeat("é", MaxText/2-2) + "...",
	} {
		got := Cut(in)
		if got != want || len(got) > MaxText || !utf8.ValidString(got) {
			t.Errorf("Cut(%.20q) = %.20q (%d bytes), want %.20q (%d bytes)", in, got, len(got), want, len(want))
		}
	}
}

// TestEveryDocumentChecksItself: a type without Validate has no limits.
func TestEveryDocumentChecksItself(t *testing.T) {
	unchecked := map[string]bool{"WindowSize": true, "SessionExit": true} // numbers of 16 bits; within MaxFrame
	for _, d := range documents {
		name := reflect.TypeOf(d).Name()
		_, checks := reflect.New(reflect.TypeOf(d)).Interface().(validator)
		if checks == unchecked[name] {
			t.Errorf("%s: Validate is there: %v", name, checks)
		}
	}
}

// TestFrameReader: frames arrive as they were, larger than the reader's buffer
// and smaller, and a cut one is told from an end.
func TestFrameReader(t *testing.T) {
	sizes := []int{0, 1, 11, 12, 4096, 16, 40_000, MaxFrame, 3}
	var wire bytes.Buffer
	for i, n := range sizes {
		if err := WriteFrame(&wire, FrameType(i+1), bytes.Repeat([]byte{byte(i)}, n)); err != nil {
			t.Fatal(err)
		}
	}
	whole := wire.Bytes()
	for _, r := range []io.Reader{bytes.NewReader(whole), bufio.NewReaderSize(bytes.NewReader(whole), 16), bufio.NewReaderSize(bytes.NewReader(whole), 32<<10)} {
		frames := NewFrameReader(r)
		for i, n := range sizes {
			kind, payload, err := frames.Next()
			if err != nil || kind != FrameType(i+1) || !bytes.Equal(payload, bytes.Repeat([]byte{byte(i)}, n)) {
				t.Fatalf("%T: frame %d is of type %d and %d bytes, want %d: %v", r, i, kind, len(payload), n, err)
			}
		}
		if _, _, err := frames.Next(); err != io.EOF {
			t.Errorf("%T: after the last frame %v", r, err)
		}
	}
	for cut := 1; cut < 16; cut++ { // of a frame of 11 bytes
		var one bytes.Buffer
		_ = WriteFrame(&one, FrameStdin, make([]byte, 11))
		_, _, err := NewFrameReader(bufio.NewReader(bytes.NewReader(one.Bytes()[:cut]))).Next()
		if err != io.ErrUnexpectedEOF {
			t.Errorf("%d bytes of a frame: %v", cut, err)
		}
	}
}
