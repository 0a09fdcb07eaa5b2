package main

import (
	"bufio"

	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/scrollback"
)

// skipped is shown to who could not keep up: what it had begun is broken off
// (CAN) and the terminal's modes are the normal ones again (DECSTR).
const skipped = "\x18\x1b[!p\x1b[0m\r\n[remotegpu: output was skipped]\r\n"

// show brings the scrollback, and then what comes, to somebody who is not the
// owner. It waits for nobody else, and nobody for it.
func (h *held) show(v *viewer) {
	go func() {
		<-v.pipe.Done()
		h.lock.Lock()
		defer h.lock.Unlock()
		if h.viewers[v.client] == v {
			delete(h.viewers, v.client)
		}
		h.moved.Broadcast()
	}()
	h.lock.Lock()
	pos := h.screen.Start()
	h.lock.Unlock()
	var filter scrollback.Filter
	buf := make([]byte, 16<<10)
	for {
		n, next, jumped, last := h.wait(v, pos, buf)
		if n == 0 {
			if last != nil {
				_, _ = v.pipe.Write(last) // it may be gone
				_ = v.pipe.CloseWrite()
			}
			return
		}
		var out []byte
		if pos = next; jumped {
			filter, out = scrollback.Filter{}, append(out, skipped...)
		}
		if _, err := v.pipe.Write(stdoutFrame(filter.Append(out, buf[:n]))); err != nil {
			return
		}
	}
}

// wait returns output from pos on; none: there will be no more, and last is
// the exit frame, or the viewer has left.
func (h *held) wait(v *viewer, pos uint64, buf []byte) (n int, next uint64, jumped bool, last []byte) {
	h.lock.Lock()
	defer h.lock.Unlock()
	for pos == h.screen.End() && h.last == nil && h.viewers[v.client] == v {
		h.moved.Wait()
	}
	if h.viewers[v.client] != v {
		return 0, pos, false, nil
	}
	n, next, jumped = h.screen.Read(pos, buf)
	return n, next, jumped, h.last
}

// listen does what somebody who is not the owner may do: type, if anything.
func (h *held) listen(v *viewer) {
	in := protocol.NewFrameReader(bufio.NewReaderSize(v.pipe, 16<<10))
	for {
		kind, payload, err := in.Next()
		if err != nil {
			return
		}
		if kind == protocol.FrameStdin && v.mode == protocol.ModeWrite {
			h.input(payload)
		}
	}
}
