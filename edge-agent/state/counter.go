package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

const (
	// maxEvents bounds the events that wait for an acknowledgement.
	maxEvents = 512
	// maxCounter is what no counter reaches in the life of a host; beyond it,
	// they could wrap around.
	maxCounter = 1 << 62
	// seqBlock is how many status numbers one write of state.json reserves.
	seqBlock = 256
)

// counters is state.json.
//
// Counters start at the control plane's time in Unix milliseconds, by CountFrom,
// and grow by one: should the file be lost, or the host's clock go back, the next
// start is beyond all that was used before.
type counters struct {
	Host       string           `json:"host,omitempty"`       // whose generation it is
	Generation uint64           `json:"generation,omitempty"` // highest that was obeyed; nothing below is
	Digest     []byte           `json:"digest,omitempty"`     // of that document
	Epoch      uint64           `json:"epoch"`                // last used
	StatusSeq  uint64           `json:"status_seq"`           // all up to it may be used
	EventSeq   uint64           `json:"event_seq"`            // last used
	Events     []protocol.Event `json:"events,omitempty"`     // not acknowledged, oldest first

	statusUsed uint64 // ≤ StatusSeq
	loaded     uint64 // EventSeq of the file; what is above it was sent to nobody
	counting   bool   // CountFrom was called
}

// floor is obeyed.json: what counters says of generations, once more. Nothing else
// is in it and only a new document writes it, so that no old document is obeyed
// when state.json and desired.cose are both lost.
type floor struct {
	Host       string `json:"host"`
	Generation uint64 `json:"generation"`
	Digest     []byte `json:"digest"`
}

// bind says whose generation is counted; a new host begins anew.
func (c *counters) bind(host string) {
	if c.Host != host {
		c.Host, c.Generation, c.Digest = host, 0, nil
	}
}

func (s *Store) loadCounters(aside func(name string, cause error) error) error {
	raw, ok, err := read(s.dir, counterFile)
	if errors.Is(err, errUnreadable) {
		return err
	}
	if ok && err == nil {
		err = json.Unmarshal(raw, &s.counters)
	}
	c := &s.counters
	if err == nil && max(c.Epoch, c.StatusSeq, c.EventSeq, c.Generation) > maxCounter {
		err = errors.New("a counter is beyond what can be counted to")
	}
	if err != nil {
		*c = counters{}
		if err := aside(counterFile, err); err != nil {
			return err
		}
	}
	c.statusUsed, c.loaded = c.StatusSeq, c.EventSeq
	return nil
}

// loadFloor lifts the generation to that of obeyed.json.
func (s *Store) loadFloor(aside func(name string, cause error) error) error {
	raw, ok, err := read(s.dir, floorFile)
	if errors.Is(err, errUnreadable) || !ok {
		return err
	}
	var f floor
	if err == nil {
		err = json.Unmarshal(raw, &f)
	}
	if err == nil && f.Generation > maxCounter {
		err = errors.New("its generation is beyond what can be counted to")
	}
	if err != nil {
		return aside(floorFile, err)
	}
	s.floor = raw
	if c := &s.counters; c.Host == "" || c.Host == f.Host && c.Generation < f.Generation {
		c.Host, c.Generation, c.Digest = f.Host, f.Generation, f.Digest
	}
	return nil
}

// saveFloor writes obeyed.json where it differs.
func (s *Store) saveFloor() error {
	c := &s.counters
	raw, err := json.Marshal(floor{Host: c.Host, Generation: c.Generation, Digest: c.Digest})
	if err != nil || bytes.Equal(raw, s.floor) {
		return err
	}
	if err := replace(s.dir, floorFile, raw); err != nil {
		return err
	}
	s.floor = raw
	return nil
}

// CountFrom lifts the counters to now, the control plane's time, once in the life
// of a Store and before anything is sent: what state.json has lost was used
// before now. The host's own clock will not do: it may be wrong today and right
// tomorrow.
func (s *Store) CountFrom(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, start := &s.counters, uint64(max(now.UnixMilli(), 1))
	if c.counting {
		return
	}
	c.counting = true
	c.Epoch = max(c.Epoch, start)
	if c.StatusSeq < start {
		c.StatusSeq, c.statusUsed = start, start
	}
	if c.loaded < start {
		for i := range c.Events {
			if c.Events[i].Seq > c.loaded {
				c.Events[i].Seq += start - c.loaded
			}
		}
		c.EventSeq += start - c.loaded
	}
	s.save()
}

// save writes state.json and obeyed.json. A failure is an event once, and tried again with the
// next change: counters are safe without it by CountFrom.
func (s *Store) save() {
	raw, err := json.Marshal(&s.counters)
	if err == nil {
		err = replace(s.dir, counterFile, raw)
	}
	if err == nil {
		err = s.saveFloor()
	}
	switch {
	case err != nil && !s.unsaved:
		s.unsaved = true
		s.counters.add(warning("StateNotSaved", fmt.Sprintf("The agent goes on, but cannot store its state: %v", err)))
	case err == nil && s.unsaved:
		s.unsaved = false
		s.append(protocol.Event{At: time.Now().UnixMilli(), Severity: protocol.SeverityNormal, Reason: "StateSaved", Message: "The agent can store its state again."})
	}
}

func warning(reason, message string) protocol.Event {
	return protocol.Event{At: time.Now().UnixMilli(), Severity: protocol.SeverityWarning, Reason: reason, Message: message}
}

// NextEpoch returns the number of a new connection, higher than all before.
func (s *Store) NextEpoch() protocol.Epoch {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counters.Epoch++
	s.save()
	return s.counters.Epoch
}

// NextStatusSeq returns the number of a new status, higher than all before.
func (s *Store) NextStatusSeq() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &s.counters
	c.statusUsed++
	if c.statusUsed > c.StatusSeq {
		c.StatusSeq += seqBlock
		s.save()
	}
	return c.statusUsed
}

// Append stores an event until it is acknowledged and gives it its Seq and, if
// it has none, its time.
func (s *Store) Append(e protocol.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.append(e)
}

func (s *Store) append(e protocol.Event) {
	s.counters.add(e)
	s.save()
}

func (c *counters) add(e protocol.Event) {
	c.EventSeq++
	e.Seq = c.EventSeq
	if e.At == 0 {
		e.At = time.Now().UnixMilli()
	}
	e.Message = protocol.Cut(e.Message) // it may quote what a registry or a program says
	c.Events = append(c.Events, e)
	if len(c.Events) > maxEvents {
		c.Events = slices.Delete(c.Events, c.leastWorth(), c.leastWorth()+1)
	}
}

// leastWorth is the index of the event to give up: the oldest normal one, else
// the oldest.
func (c *counters) leastWorth() int {
	return max(0, slices.IndexFunc(c.Events, func(e protocol.Event) bool { return e.Severity == protocol.SeverityNormal }))
}

// Events returns the oldest events that are not acknowledged, at most n.
func (s *Store) Events(n int) []protocol.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.counters.Events[:min(n, len(s.counters.Events))])
}

// AckEvents drops the events up to seq.
func (s *Store) AckEvents(seq uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.counters.Events)
	s.counters.Events = slices.DeleteFunc(s.counters.Events, func(e protocol.Event) bool { return e.Seq <= seq })
	if len(s.counters.Events) != n {
		s.save()
	}
}
