package sshd

import (
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"
)

// TestKeepAlive: a client stays while it answers, if late, and is gone within a
// minute once it does not, or no more in time. Time is synctest's.
func TestKeepAlive(t *testing.T) {
	const long = 20 * time.Minute
	never := func(time.Duration) time.Duration { return -1 }
	for name, tt := range map[string]struct {
		late     func(now time.Duration) time.Duration // until it answers; negative: it does not
		from, to time.Duration                         // when the connection ends
	}{
		"answers":          {func(time.Duration) time.Duration { return 0 }, long, long},
		"answers late":     {func(time.Duration) time.Duration { return answerAfter - time.Second }, long, long},
		"answers too late": {func(time.Duration) time.Duration { return answerAfter + time.Second }, answerAfter, answerAfter},
		"never answers":    {never, answerAfter, answerAfter},
		"goes away": {func(now time.Duration) time.Duration {
			if now < long/2 {
				return 0
			}
			return -1
		}, long/2 + answerAfter, long/2 + answerAfter + keepalive},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				near, far := net.Pipe()
				var client sync.WaitGroup
				client.Go(func() { answer(t, buffered(near), func() time.Duration { return tt.late(time.Since(began)) }) })
				cfg := ServerConfig()
				cfg.NoClientAuth = true
				cfg.AddHostKey(hostKey(t))
				c, err := Accept(buffered(far), cfg)
				if err != nil {
					t.Fatal(err)
				}
				time.AfterFunc(long, func() { c.Close() })
				Serve(t.Context(), c, Config{}) // until it ends
				if end := time.Since(began); end < tt.from || end > tt.to {
					t.Errorf("ended after %v, want %v to %v", end, tt.from, tt.to)
				}
				client.Wait()
			})
		})
	}
}

// answer is a client that answers questions as late says.
func answer(t *testing.T, line net.Conn, late func() time.Duration) {
	c, _, asked, err := ssh.NewClientConn(line, "", &ssh.ClientConfig{HostKeyCallback: ssh.InsecureIgnoreHostKey()})
	if err != nil {
		t.Error(err)
		line.Close()
		return
	}
	for r := range asked {
		if wait := late(); wait >= 0 {
			time.Sleep(wait)
			_ = r.Reply(false, nil) // as OpenSSH's; the server may have closed meanwhile
		}
	}
	c.Close()
}

// buffered makes writing to c not wait for the reader, for both ends of SSH
// begin by writing.
func buffered(c net.Conn) net.Conn {
	b := &pumped{Conn: c, out: make(chan []byte, 64), over: make(chan struct{})}
	go func() {
		defer close(b.over)
		for p := range b.out {
			if _, err := c.Write(p); err != nil {
				return
			}
		}
	}()
	return b
}

type pumped struct {
	net.Conn
	out  chan []byte
	over chan struct{}
}

func (b *pumped) Write(p []byte) (int, error) {
	select {
	case b.out <- append([]byte(nil), p...):
		return len(p), nil
	case <-b.over:
		return 0, net.ErrClosed
	}
}

func (b *pumped) Close() error {
	err := b.Conn.Close()
	select { // wakes the pump
	case b.out <- nil:
	case <-b.over:
	}
	return err
}
