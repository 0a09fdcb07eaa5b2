//go:build linux && cgo

package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/remotegpu/remotegpu/edge-agent/gpu/wire"
)

// serve answers requests one after the other. Reading goes on while the driver
// holds an answer up: when the agent is gone, exit ends the process in the
// middle of it.
func serve(in io.Reader, out io.Writer, answer func(*wire.Request) *wire.Reply, exit func(int)) error {
	requests := make(chan *wire.Request)
	var readErr error
	go func() {
		defer close(requests)
		for {
			r := new(wire.Request)
			err := wire.Read(in, r)
			if errors.Is(err, io.EOF) {
				exit(0)
				return
			}
			if err != nil {
				readErr = fmt.Errorf("read request: %w", err)
				return
			}
			requests <- r
		}
	}()
	for r := range requests {
		reply := answer(r)
		reply.ID = r.ID
		if err := wire.Write(out, reply); err != nil {
			return fmt.Errorf("write reply: %w", err)
		}
	}
	return readErr
}
