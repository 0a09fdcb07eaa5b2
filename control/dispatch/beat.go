package dispatch

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

// said is what a status says but for what changes all the time, as a digest: most
// statuses are heartbeats, and this is done for each.
func said(st *protocol.Status) (sum [sha256.Size]byte, err error) {
	text := make([]byte, 0, 1<<10)
	number := func(n uint64) { text = binary.BigEndian.AppendUint64(text, n) }
	word := func(s string) {
		number(uint64(len(s)))
		text = append(text, s...)
	}
	number(uint64(st.Epoch))
	number(st.Observed)
	number(st.Applied)
	word(st.Fault)
	number(uint64(len(st.Usage.GPUUsed)))
	for _, g := range st.Usage.GPUUsed {
		word(g.UUID)
		if g.Healthy {
			number(1)
		} else {
			number(0)
		}
	}
	if len(st.Workloads) > 0 {
		workloads, err := protocol.Marshal(st.Workloads)
		if err != nil {
			return sum, err
		}
		text = append(text, workloads...)
	}
	return sha256.Sum256(text), nil
}

// take lets a status wait: to be taken whole or, when it says nothing new, to be
// noted as a heartbeat.
func (l *lanes) take(host string, st *protocol.Status) {
	now, err := said(st)
	l.mu.Lock()
	defer l.mu.Unlock()
	ln := l.of(host)
	if ln.missed {
		ln.missed, ln.todo.touched = false, true
	}
	beat := err == nil && ln.said == now && len(st.Events) == 0 && ln.todo.empty() && !ln.busy && time.Since(ln.synced) < resync
	if beat {
		l.beats[host] = st
		return
	}
	delete(l.beats, host) // what is newer says that too
	if ln.todo.status == nil || !older(st, ln.todo.status) {
		ln.todo.status = st
	}
	l.enqueue(ln)
}

// taken notes what a status said that was taken whole.
func (l *lanes) taken(ln *lane, st *protocol.Status) {
	now, err := said(st)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		ln.said = now
	}
}

func (l *lanes) takeBeats() map[string]*protocol.Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.beats) == 0 {
		return nil
	}
	beats := l.beats
	l.beats = make(map[string]*protocol.Status, len(beats))
	return beats
}

// noteBeats notes heartbeats of many hosts in one statement and acknowledges
// them. Those of hosts that are not as they were are taken whole. When it fails
// nobody is acknowledged, and all say it again.
func (s *Service) noteBeats(ctx context.Context, beats map[string]*protocol.Status) {
	if len(beats) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, workTimeout)
	defer cancel()
	noted, err := s.cfg.Beats(ctx, beats)
	if err != nil {
		s.log.Error("note heartbeats", "err", err)
		return
	}
	for _, host := range noted {
		if err := s.acknowledge(host, beats[host].Seq, 0); err != nil {
			s.log.Error("ack", "host", host, "err", err)
		}
		delete(beats, host)
	}
	for host, st := range beats {
		s.lanes.change(host, func(t *todo) {
			if t.status == nil || !older(st, t.status) {
				t.status = st
			}
		})
	}
}
