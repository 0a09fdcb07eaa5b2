package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/remotegpu/protocol"
)

func sample() *Reply {
	return &Reply{
		ID:      7,
		Driver:  Driver{Version: "570.1", CUDA: "12.8"},
		GPUs:    []protocol.GPU{{UUID: "GPU-1", Links: []uint32{0, 18}, Healthy: true}},
		Samples: []Sample{{Usage: protocol.GPUUsage{UUID: "GPU-1", Utilisation: 12.5}, Fan: 30}},
	}
}

func TestRoundTrip(t *testing.T) {
	var buf bytes.Buffer
	request := &Request{ID: 1, Op: OpCDI, CDIFile: "/run/x.json", Hook: "/bin/hook"}
	if err := errors.Join(Write(&buf, request), Write(&buf, sample())); err != nil {
		t.Fatal(err)
	}
	var gotRequest Request
	var gotReply Reply
	if err := errors.Join(Read(&buf, &gotRequest), Read(&buf, &gotReply)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(request, &gotRequest); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(sample(), &gotReply); diff != "" {
		t.Error(diff)
	}
	if err := Read(&buf, &gotReply); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

func TestReadRefuses(t *testing.T) {
	frame := func(v any) []byte {
		var buf bytes.Buffer
		if err := Write(&buf, v); err != nil {
			t.Fatal(err)
		}
		return buf.Bytes()
	}
	many := sample()
	many.Samples = make([]Sample, MaxGPUs+1)
	long := sample()
	long.Error = strings.Repeat("x", protocol.MaxText+1)
	nameless := sample()
	nameless.Samples[0].Usage.UUID = ""
	for name, data := range map[string][]byte{
		"length over the limit": binary.BigEndian.AppendUint32(nil, MaxFrame+1),
		"cut in the length":     {0, 0},
		"cut in the body":       frame(sample())[:20],
		"cut before the body":   frame(sample())[:4],
		"empty body":            {0, 0, 0, 0},
		"no CBOR":               {0, 0, 0, 1, 0xff},
		"too many samples":      frame(many),
		"too long an error":     frame(long),
		"sample without UUID":   frame(nameless),
	} {
		var reply Reply
		if err := Read(bytes.NewReader(data), &reply); err == nil || err == io.EOF {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWriteRefusesWhatReadWould(t *testing.T) {
	if err := Write(io.Discard, &Reply{Error: strings.Repeat("x", MaxFrame)}); err == nil {
		t.Error("a document over the limit was written")
	}
}

func FuzzRead(f *testing.F) {
	var buf bytes.Buffer
	if err := Write(&buf, sample()); err != nil {
		f.Fatal(err)
	}
	f.Add(buf.Bytes())
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0, 0, 0, 1, 0xa0})
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		for {
			var reply Reply
			if err := Read(r, &reply); err != nil {
				break
			}
			if err := reply.Validate(); err != nil {
				t.Fatalf("Read returned what is over its limits: %v", err)
			}
			if err := Write(io.Discard, &reply); err != nil {
				t.Fatalf("what was read cannot be written: %v", err)
			}
		}
		var request Request
		_ = Read(bytes.NewReader(data), &request)
	})
}
