package main

import (
	"os"
	"sync/atomic"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

// output is one stream from the program to the client.
type output struct {
	file  *os.File
	done  chan struct{} // closed at its end
	busy  atomic.Bool   // something that was read is on its way to the client
	moved atomic.Int64  // Unix nanoseconds of the last byte
}

// pump copies until the end. A client that does not read stops the copying,
// and so the program, as a full pipe would.
func (s *session) pump(f *os.File, kind protocol.FrameType) *output {
	o := &output{file: f, done: make(chan struct{})}
	go func() {
		defer close(o.done)
		buf := make([]byte, 32<<10)
		for {
			n, err := f.Read(buf)
			o.busy.Store(true)
			o.moved.Store(time.Now().UnixNano())
			if n > 0 && s.write(kind, buf[:n]) != nil {
				return
			}
			o.moved.Store(time.Now().UnixNano())
			o.busy.Store(false)
			if err != nil { // EOF, or EIO from a terminal that all have closed
				return
			}
		}
	}()
	return o
}

// drained reports whether nothing more is to be expected from the output of a
// program that has ended.
func (o *output) drained() bool {
	select {
	case <-o.done:
		return true
	default:
		return !o.busy.Load() && time.Since(time.Unix(0, o.moved.Load())) > drainQuiet
	}
}
