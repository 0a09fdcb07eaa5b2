package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

const (
	fetchWithin = 15 * time.Minute // 8 MiB on a line of 100 kbit/s
	tellAfter   = 3                // attempts in vain, then a person is told
)

// errSuperseded says that the control plane has a newer document by now; the
// reference to it is on its way.
var errSuperseded = errors.New("there is a newer document")

// errOther says that something else came than what was signed for.
var errOther = errors.New("another document came")

// wanted is a document that is to be fetched: the newest reference that came.
type wanted struct {
	ref   *protocol.Reference
	stop  context.CancelFunc // ends its fetching
	ended <-chan struct{}    // closed when nobody fetches it any more
}

// receiveReference starts to fetch what a signed reference names, instead of
// what an older one named. One that is being fetched already goes on.
func (l *Link) receiveReference(signed []byte) error {
	ref, fresh, err := l.cfg.Store.CheckReference(signed)
	if err != nil {
		return err
	}
	if !fresh {
		l.Changed() // who repeats a reference has not heard that the document is here
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if w := l.wanted; w != nil {
		if bytes.Equal(w.ref.Digest, ref.Digest) || w.ref.Generation > ref.Generation {
			return nil
		}
		w.stop()
	}
	ctx, stop := context.WithCancel(l.fetching)
	w := &wanted{ref, stop, ctx.Done()}
	l.wanted = w
	l.sessions.Go(func() {
		defer stop()
		l.fetchUntilThere(ctx, ref)
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.wanted == w {
			l.wanted = nil
		}
	})
	return nil
}

// fetchUntilThere tries until the document is here, a newer one is wanted, or
// the agent ends.
func (l *Link) fetchUntilThere(ctx context.Context, ref *protocol.Reference) {
	var pause retry
	for attempt := 1; ; attempt++ {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause.next(false)):
		}
		signed, err := l.fetch(ctx, ref)
		switch {
		case err == nil:
			l.receiveDesired(signed)
			return
		case ctx.Err() != nil, errors.Is(err, errSuperseded):
			return
		case attempt == tellAfter:
			l.cfg.Store.Append(protocol.Event{Severity: protocol.SeverityWarning, Reason: "DesiredNotFetched", Message: protocol.Cut(fmt.Sprintf(
				"What this host shall run is too large for a message and could not be fetched from %s. %s The host goes on as before and tries again.", l.cfg.Server, l.fetchSentence(err)))})
			l.Changed()
		}
		l.cfg.Log.Warn("document not fetched", "gen", ref.Generation, "attempt", attempt, "err", err)
	}
}

// fetch gets the document once. What comes must be what the reference says.
func (l *Link) fetch(ctx context.Context, ref *protocol.Reference) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchWithin)
	defer cancel()
	token, err := l.signer.Token(protocol.AudienceAPI)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, l.cfg.Server.URL("https", protocol.ReferencePath(ref.Generation)), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	client := *l.cfg.Server.HTTP()
	client.Timeout = 0 // ctx has one that suits the size
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	switch res.StatusCode {
	case http.StatusOK:
	case http.StatusConflict:
		return nil, errSuperseded
	default:
		return nil, &httpError{res.StatusCode}
	}
	signed, err := io.ReadAll(io.LimitReader(res.Body, int64(ref.Size)+1))
	if err != nil {
		return nil, fmt.Errorf("read document: %w", err)
	}
	if err := ref.Check(signed); err != nil {
		l.refused.add(refusal{kind: "digest", reason: "DesiredRefused", err: err})
		return nil, fmt.Errorf("%w: %w", errOther, err)
	}
	return signed, nil
}

// fetchSentence says for a person why the document did not come.
func (l *Link) fetchSentence(err error) string {
	var answer *httpError
	switch {
	case errors.As(err, &answer):
		return fmt.Sprintf("The server, or what stands in front of it, answered %d (%s).", answer.status, http.StatusText(answer.status))
	case errors.Is(err, errOther):
		return "What came is not what the control plane has signed for: see whether something on the way changes it."
	}
	return l.cfg.Server.Sentence(err)
}
