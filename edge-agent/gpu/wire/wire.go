// Package wire is what the agent and its NVML child say to each other.
//
// It owns the two documents and their framing on the child's stdin and stdout:
// four bytes of length (big endian), then CBOR. It does no process handling.
// Its invariant: whatever the other side writes, a read returns a document
// within its limits or an error, and holds no more than MaxFrame bytes.
//
//	agent                                child
//	  | Request{ID, Op} ------------------>|
//	  |<------------- Reply{the same ID} --|
package wire

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/remotegpu/remotegpu/protocol"
)

// MaxFrame is the largest document in bytes.
const MaxFrame = 256 << 10

// MaxGPUs is how many GPUs a reply may name.
const MaxGPUs = 64

// Operations of the child.
const (
	OpInventory = "inventory" // Reply.Driver and Reply.GPUs
	OpSample    = "sample"    // Reply.Samples
	OpCDI       = "cdi"       // writes Request.CDIFile
)

// Request asks the child for one thing.
type Request struct {
	ID      uint64 `cbor:"1,keyasint"`
	Op      string `cbor:"2,keyasint"`
	CDIFile string `cbor:"3,keyasint,omitempty"` // absolute path of the specification to write, for OpCDI
	Hook    string `cbor:"4,keyasint,omitempty"` // absolute path of the hook program that it names, for OpCDI
}

// Reply is the answer to the request of the same ID.
type Reply struct {
	ID      uint64         `cbor:"1,keyasint"`
	Error   string         `cbor:"2,keyasint,omitempty"` // one sentence for a person; empty: it worked
	Driver  Driver         `cbor:"3,keyasint"`
	GPUs    []protocol.GPU `cbor:"4,keyasint,omitempty"`
	Samples []Sample       `cbor:"5,keyasint,omitempty"`
}

// Driver is the NVIDIA driver.
type Driver struct {
	Version string `cbor:"1,keyasint,omitempty"` // "570.124.06"
	CUDA    string `cbor:"2,keyasint,omitempty"` // highest CUDA version that it serves, "12.8"
}

// Sample is one GPU at one moment. Zero where the device does not tell.
type Sample struct {
	Usage       protocol.GPUUsage `cbor:"1,keyasint"`
	Fan         float32           `cbor:"2,keyasint,omitempty"` // percent
	ClockSM     float32           `cbor:"3,keyasint,omitempty"` // MHz
	ClockMemory float32           `cbor:"4,keyasint,omitempty"` // MHz
}

// Validate checks the request's limits.
func (r *Request) Validate() error {
	if len(r.Op) > protocol.MaxLabel || len(r.CDIFile) > protocol.MaxText || len(r.Hook) > protocol.MaxText {
		return fmt.Errorf("request %d is over its limits", r.ID)
	}
	return nil
}

// Validate checks the reply's limits.
func (r *Reply) Validate() error {
	if len(r.GPUs) > MaxGPUs || len(r.Samples) > MaxGPUs || len(r.Error) > protocol.MaxText {
		return fmt.Errorf("reply %d is over its limits", r.ID)
	}
	inventory := protocol.Inventory{GPUs: r.GPUs, Driver: r.Driver.Version, CUDA: r.Driver.CUDA}
	if err := inventory.Validate(); err != nil {
		return err
	}
	for _, s := range r.Samples {
		if err := s.Usage.Validate(); err != nil {
			return err
		}
	}
	return nil
}

// Write writes one document with a single Write.
func Write(w io.Writer, v any) error {
	body, err := protocol.Marshal(v)
	if err != nil {
		return err
	}
	if len(body) > MaxFrame {
		return fmt.Errorf("document of %d bytes is over the limit of %d", len(body), MaxFrame)
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
	return err
}

// Read reads one document into v. At the end between two documents the error
// is io.EOF, inside one io.ErrUnexpectedEOF.
func Read(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > MaxFrame {
		return fmt.Errorf("document of %d bytes is over the limit of %d", n, MaxFrame)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	return protocol.Unmarshal(body, v)
}
