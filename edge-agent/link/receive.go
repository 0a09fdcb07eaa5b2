package link

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"github.com/remotegpu/remotegpu/edge-agent/state"
	"github.com/remotegpu/remotegpu/protocol"
)

// mergeFor is how long refusals of one kind are counted into one event.
const mergeFor = time.Minute

// receive takes one message. It works in the client's own goroutine: what comes
// too fast waits in the network, not in memory.
func (l *Link) receive(pr paho.PublishReceived) (bool, error) {
	host, topic, ok := protocol.SplitHostTopic(pr.Packet.Topic)
	if !ok || host != l.host {
		return false, nil
	}
	switch topic {
	case protocol.TopicDesired:
		l.receiveDesired(pr.Packet.Payload)
	case protocol.TopicDial:
		l.receiveDial(pr.Packet.Payload)
	case protocol.TopicAck:
		l.receiveAck(pr.Packet.Payload)
	}
	return true, nil
}

// receiveDesired takes a document, or a reference to one: each is signed for its
// own purpose.
func (l *Link) receiveDesired(signed []byte) {
	l.obeying.Lock()
	defer l.obeying.Unlock()
	d, fresh, err := l.cfg.Store.AcceptDesired(signed)
	var refused *state.Refusal
	if errors.As(err, &refused) && refused.Kind == state.RefusedForged {
		if refErr := l.receiveReference(signed); refErr == nil {
			return
		} else if !errors.As(refErr, &refused) || refused.Kind != state.RefusedForged {
			err = refErr
		}
	}
	switch {
	case errors.As(err, &refused):
		l.refused.add(refusal{kind: refused.Kind, reason: "DesiredRefused", err: err})
	case err != nil:
		l.refused.add(refusal{kind: "store", severity: protocol.SeverityWarning, reason: "DesiredNotStored", err: err})
	case fresh:
		l.cfg.Log.Info("document accepted", "gen", d.Generation, "workloads", len(d.Workloads))
		l.cfg.Desired(d)
	}
	if err == nil {
		l.Changed() // who repeats a document has not heard that it is here
	}
}

func (l *Link) receiveDial(payload []byte) {
	var d protocol.Dial
	if err := protocol.Unmarshal(payload, &d); err != nil {
		l.refused.add(refusal{kind: "dial", reason: "DialRefused", err: err})
		return
	}
	if d.Expires != 0 {
		d.Expires += int64(l.cfg.Server.Offset() / time.Second)
	}
	l.cfg.Dial(d)
}

func (l *Link) receiveAck(payload []byte) {
	var a protocol.Ack
	if err := protocol.Unmarshal(payload, &a); err != nil {
		l.refused.add(refusal{kind: "ack", reason: "AckRefused", err: err})
		return
	}
	l.retry.told(time.Duration(a.Spread) * time.Second)
	if a.Event > 0 {
		l.cfg.Store.AckEvents(a.Event)
	}
	if a.Status > l.ackSeq.Load() {
		l.ackSeq.Store(a.Status)
		poke(l.acked)
	}
}

// refusal is a message that was not obeyed.
type refusal struct {
	kind     string // refusals of one kind are merged; from a fixed set
	severity string // empty: SeveritySecurity
	reason   string // of the event
	err      error
}

// refusals makes events of refused messages: the first of a kind at once, those
// of the minute after it together.
type refusals struct {
	emit  func(protocol.Event)
	after func()
	log   *slog.Logger

	mu   sync.Mutex // guards seen
	seen map[string]*tally
}

type tally struct {
	last  refusal
	since time.Time // of the last event
	more  int       // refused since, not told yet
}

func newRefusals(emit func(protocol.Event), after func(), log *slog.Logger) *refusals {
	return &refusals{emit: emit, after: after, log: log, seen: map[string]*tally{}}
}

func (r *refusals) add(f refusal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.seen[f.kind]
	if t == nil {
		t = &tally{}
		r.seen[f.kind] = t
	}
	t.last = f
	t.more++
	if time.Since(t.since) >= mergeFor {
		r.tell(t)
	}
}

// flush tells what was counted: what is old enough, or all.
func (r *refusals) flush(all bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range r.seen {
		if t.more > 0 && (all || time.Since(t.since) >= mergeFor) {
			r.tell(t)
		}
	}
}

func (r *refusals) tell(t *tally) {
	message := "A message was refused: " + t.last.err.Error() + "."
	if t.more > 1 {
		message = fmt.Sprintf("%d messages were refused, the last because: %v.", t.more, t.last.err)
	}
	severity := t.last.severity
	if severity == "" {
		severity = protocol.SeveritySecurity
		message += " The host goes on as before."
	}
	r.log.Warn("message refused", "reason", t.last.reason, "kind", t.last.kind, "count", t.more, "err", t.last.err)
	t.since, t.more = time.Now(), 0
	r.emit(protocol.Event{Severity: severity, Reason: t.last.reason, Message: message})
	r.after()
}
