package link

import (
	"crypto/ed25519"
	"net/http"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/protocol"
)

// large is a document of more than a message may hold.
func (c *control) large(generation uint64) []byte {
	return c.sign(protocol.Desired{Generation: generation, Workloads: []protocol.Workload{{
		ID: "env_1", Name: "big", Want: protocol.WantStopped, Image: "busybox", Restart: protocol.RestartNever,
		Env: map[string]string{"TEXT": strings.Repeat("x", 2<<20)},
	}}})
}

// refer says that there is a document to fetch.
func (c *control) refer(ref *protocol.Reference) {
	c.t.Helper()
	c.say(protocol.TopicDesired, referBy(c.t, c.key, ref))
}

func referBy(t *testing.T, key ed25519.PrivateKey, ref *protocol.Reference) []byte {
	t.Helper()
	signed, err := protocol.SignReference(ref, key)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// answer lets hosts that ask for documents have fn's answer.
func (c *control) answer(fn http.HandlerFunc) { c.documents.Store(&fn) }

func (c *control) answerWith(document []byte) {
	c.answer(func(w http.ResponseWriter, _ *http.Request) { w.Write(document) })
}

// event waits for an event that says text.
func (c *control) event(severity, reason, text string) {
	c.t.Helper()
	next(c, protocol.TopicStatus, func(s *protocol.Status) bool {
		for _, e := range s.Events {
			if e.Severity == severity && e.Reason == reason && strings.Contains(e.Message, text) {
				return true
			}
		}
		return false
	})
}

func TestLargeDocument(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	dir := t.TempDir()
	h := newHost(t, c, dir)
	next[protocol.Status](c, protocol.TopicStatus, nil)
	document := c.large(3)
	c.answer(func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("generation") == "3" {
			w.Write(document)
		}
	})
	for range 5 { // as control does until it is acknowledged
		c.refer(protocol.Refer(testHost, 3, document))
	}
	if d := receive(t, h.desired, "document"); d.Generation != 3 || len(d.Workloads[0].Env["TEXT"]) != 2<<20 {
		t.Errorf("generation %d", d.Generation)
	}
	next(c, protocol.TopicStatus, func(s *protocol.Status) bool { return s.Observed == 3 })
	c.refer(protocol.Refer(testHost, 3, document))
	next[protocol.Status](c, protocol.TopicStatus, nil) // it says again that the document is here
	if n := c.asked.Load(); n != 1 {
		t.Errorf("fetched %d times", n)
	}
	c.say(protocol.TopicDesired, c.sign(protocol.Desired{Generation: 4})) // small again
	if d := receive(t, h.desired, "document"); d.Generation != 4 {
		t.Errorf("generation %d", d.Generation)
	}
	document = c.large(5)
	c.answerWith(document)
	c.refer(protocol.Refer(testHost, 5, document))
	receive(t, h.desired, "document")
	h.stop()
	newHost(t, c, dir)
	if hello := next[protocol.Hello](c, protocol.TopicHello, nil); hello.Observed != 5 || len(hello.Digest) != 32 {
		t.Errorf("hello after a restart: %+v", hello)
	}
}

func TestFetchIsTriedAgain(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	h := newHost(t, c, t.TempDir())
	next[protocol.Status](c, protocol.TopicStatus, nil)
	document := c.large(3)
	c.answer(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	c.refer(protocol.Refer(testHost, 3, document))
	c.event(protocol.SeverityWarning, "DesiredNotFetched", "answered 502 (Bad Gateway). The host goes on")
	c.answerWith(document)
	if d := receive(t, h.desired, "document"); d.Generation != 3 {
		t.Errorf("generation %d", d.Generation)
	}
}

// TestFetchedDocumentsAreChecked: whatever comes by HTTPS, only what was signed,
// for this host, newer than what is obeyed, and referred to, is obeyed.
func TestFetchedDocumentsAreChecked(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	h := newHost(t, c, t.TempDir())
	next[protocol.Status](c, protocol.TopicStatus, nil)
	c.say(protocol.TopicDesired, c.sign(protocol.Desired{Generation: 7}))
	receive(t, h.desired, "document")
	_, stranger, _ := ed25519.GenerateKey(nil)
	right := c.large(8)
	forged := signBy(t, stranger, protocol.Desired{Generation: 8})
	others := c.sign(protocol.Desired{Generation: 8, Host: protocol.NewID(protocol.PrefixHost)})
	older := c.sign(protocol.Desired{Generation: 6})
	for _, m := range []struct {
		text   string // in the event
		ref    *protocol.Reference
		answer http.HandlerFunc
	}{
		{"has the digest", protocol.Refer(testHost, 8, right), func(w http.ResponseWriter, _ *http.Request) { w.Write(c.large(9)) }},
		{"no pinned key", protocol.Refer(testHost, 10, forged), func(w http.ResponseWriter, _ *http.Request) { w.Write(forged) }},
		{"for another host", protocol.Refer(testHost, 11, others), func(w http.ResponseWriter, _ *http.Request) { w.Write(others) }},
		{"has generation 6", protocol.Refer(testHost, 12, older), func(w http.ResponseWriter, _ *http.Request) { w.Write(older) }},
	} {
		c.answer(m.answer)
		c.refer(m.ref)
		c.event(protocol.SeveritySecurity, "DesiredRefused", m.text)
	}
	left := make(chan struct{}, 100)
	c.answer(func(w http.ResponseWriter, _ *http.Request) { // an endless document
		for block := make([]byte, 1<<20); ; {
			if _, err := w.Write(block); err != nil {
				left <- struct{}{}
				return
			}
		}
	})
	c.refer(protocol.Refer(testHost, 13, right))
	receive(t, left, "end of the endless document")
	if d, _ := h.store.Desired(); d.Generation != 7 || len(h.desired) != 0 {
		t.Fatalf("obeys generation %d", d.Generation)
	}
	right = c.large(14)
	c.answerWith(right)
	c.refer(protocol.Refer(testHost, 14, right))
	if d := receive(t, h.desired, "document"); d.Generation != 14 {
		t.Errorf("obeys generation %d after the attack, want 14", d.Generation)
	}
}

// TestRefusedReferences: nothing is fetched for them.
func TestRefusedReferences(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	h := newHost(t, c, t.TempDir())
	next[protocol.Status](c, protocol.TopicStatus, nil)
	c.say(protocol.TopicDesired, c.sign(protocol.Desired{Generation: 7}))
	receive(t, h.desired, "document")
	_, stranger, _ := ed25519.GenerateKey(nil)
	document := c.large(8)
	for _, m := range []struct {
		text    string // in the event
		payload []byte
	}{
		{"no pinned key", referBy(t, stranger, protocol.Refer(testHost, 8, document))},
		{"for another host", referBy(t, c.key, protocol.Refer(protocol.NewID(protocol.PrefixHost), 8, document))},
		{"to generation 6", referBy(t, c.key, protocol.Refer(testHost, 6, document))},
		{"other content", referBy(t, c.key, protocol.Refer(testHost, 7, document))},
	} {
		c.say(protocol.TopicDesired, m.payload)
		c.event(protocol.SeveritySecurity, "DesiredRefused", m.text)
	}
	if n := c.asked.Load(); n != 0 {
		t.Errorf("asked %d times", n)
	}
}

// TestNewerReference: it ends the fetching of an older document, and one that
// the control plane no longer has is not asked for again.
func TestNewerReference(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	h := newHost(t, c, t.TempDir())
	next[protocol.Status](c, protocol.TopicStatus, nil)
	stuck, ended := make(chan struct{}, 1), make(chan struct{})
	c.answer(func(_ http.ResponseWriter, r *http.Request) {
		stuck <- struct{}{}
		<-r.Context().Done()
		close(ended)
	})
	c.refer(protocol.Refer(testHost, 3, c.large(3)))
	receive(t, stuck, "request")
	document := c.large(4)
	c.answerWith(document)
	c.refer(protocol.Refer(testHost, 4, document))
	if d := receive(t, h.desired, "document"); d.Generation != 4 {
		t.Errorf("generation %d", d.Generation)
	}
	receive(t, ended, "end of the older request")
	superseded := make(chan struct{}, 100)
	c.answer(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusConflict)
		superseded <- struct{}{}
	})
	c.refer(protocol.Refer(testHost, 5, c.large(5)))
	receive(t, superseded, "request")
	h.mu.Lock()
	fetching := h.wanted
	h.mu.Unlock()
	if fetching != nil {
		receive(t, fetching.ended, "end of fetching what there is no more")
	}
	if n := len(superseded); n != 0 {
		t.Errorf("asked %d times again", n)
	}
}
