package app

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/remotegpu/remotegpu/control/account"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
)

// Changed is the channel on which the id of an environment is notified whose
// apps may be used by others than before.
const Changed = "apps_changed"

const lookEvery = 30 * time.Second

// live are the requests under way. A WebSocket may last for days: it ends when
// the right to it does.
type live struct {
	mu  sync.Mutex // guards all
	all map[*watched]struct{}
}

// watched is a request and how to ask again whether it is allowed.
type watched struct {
	cancel context.CancelFunc
	again  func() error
}

// add watches a request until the func that it returns is called.
func (l *live) add(w *watched) (done func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all[w] = struct{}{}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.all, w)
	}
}

func (l *live) check() {
	l.mu.Lock()
	all := make([]*watched, 0, len(l.all))
	for w := range l.all {
		all = append(all, w)
	}
	l.mu.Unlock()
	for _, w := range all {
		switch err := w.again(); errs.KindOf(err) {
		case errs.NotFound, errs.Unauthenticated, errs.Denied:
			w.cancel()
		}
	}
}

// again asks whether a request would still be let in.
func (s *Service) again(r *http.Request, a App) error {
	ctx, cancel := context.WithTimeout(r.Context(), 10*time.Second)
	defer cancel()
	now, err := s.lookUp(ctx, ref{id: a.Environment, app: a.Name})
	if err != nil {
		return err
	}
	c, _, err := s.who(r.WithContext(ctx), &now)
	if err == nil && !now.allows(c) {
		err = errUnknown
	}
	return err
}

// Run ends requests whose right has ended, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	news := make(chan struct{}, 1)
	tell := func(string) {
		select {
		case news <- struct{}{}:
		default: // who is told looks at everything
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return pg.Listen(ctx, s.pool, account.Revoked, tell) })
	g.Go(func() error { return pg.Listen(ctx, s.pool, Changed, tell) })
	g.Go(func() error {
		t := time.NewTicker(lookEvery)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-t.C:
			case <-news:
			}
			s.live.check()
		}
	})
	return g.Wait()
}

// counted counts what an answer has, also after its connection was taken over.
type counted struct {
	http.ResponseWriter
	visit visit
}

func (c *counted) Unwrap() http.ResponseWriter { return c.ResponseWriter }

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.visit.add(0, int64(n))
	return n, err
}

func (c *counted) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(c.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	return &countedConn{Conn: conn, visit: c.visit}, rw, nil
}

type countedConn struct {
	net.Conn
	visit visit
}

func (c *countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.visit.add(int64(n), 0)
	return n, err
}

func (c *countedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.visit.add(0, int64(n))
	return n, err
}

// CloseWrite lets the proxy pass a half-close on.
func (c *countedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Conn.Close()
}

type countingReader struct {
	io.Reader
	count func(int64)
}

func (c countingReader) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.count(int64(n))
	return n, err
}
