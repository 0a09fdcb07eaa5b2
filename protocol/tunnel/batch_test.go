package tunnel

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
)

// counter counts the writes that reach it, and fails them once broken.
type counter struct {
	net.Conn
	mu     sync.Mutex
	writes int
	bytes  []byte
	broken error
}

func (c *counter) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return 0, c.broken
	}
	c.writes++
	c.bytes = append(c.bytes, p...)
	return len(p), nil
}

func TestAMessageIsOneSystemCall(t *testing.T) {
	t.Parallel()
	near, far := pair(t)
	for _, c := range []*Conn{near, far} {
		under := c.ws.NetConn().(*tls.Conn).NetConn().(*batch)
		count := &counter{Conn: under.Conn}
		under.Conn = count
		for _, size := range []int{1, 100, batchLeast, chunk, 10 * bufSize} {
			before := count.writes
			if _, err := c.Write(make([]byte, size)); err != nil {
				t.Fatal(err)
			}
			if n, most := count.writes-before, 1+size/bufSize; n > most {
				t.Errorf("%d bytes: %d writes, at most %d", size, n, most)
			}
		}
		if under.held != nil || under.n != 0 {
			t.Errorf("%d bytes are held after the write", under.n)
		}
	}
}

func TestAMessageIsCopiedWhole(t *testing.T) {
	t.Parallel()
	near, far := pair(t)
	sizes := []int{1, chunk, 100, chunk / 2}
	go func() {
		for _, size := range sizes {
			far.Write(make([]byte, size))
		}
		far.CloseWrite()
	}()
	var got []int
	if _, err := near.WriteTo(writer(func(p []byte) { got = append(got, len(p)) })); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, sizes) {
		t.Errorf("messages of %v were written as %v", sizes, got)
	}
}

type writer func(p []byte)

func (w writer) Write(p []byte) (int, error) { w(p); return len(p), nil }

func TestABatchKeepsOrder(t *testing.T) {
	t.Parallel()
	under := &counter{}
	b := &batch{Conn: under}
	var want []byte
	write := func(n int) {
		part := bytes.Repeat([]byte{byte(len(want))}, n)
		want = append(want, part...)
		if got, err := b.Write(part); got != n || err != nil {
			t.Fatalf("Write of %d: %d, %v", n, got, err)
		}
	}
	write(3)
	b.hold()
	for _, n := range []int{0, 7, batchSize - 100, 200, batchSize + 1, 5, batchSize, 1} {
		write(n)
	}
	if err := b.flush(); err != nil {
		t.Fatal(err)
	}
	write(4)
	if !bytes.Equal(under.bytes, want) {
		t.Errorf("%d bytes came out of %d, not the same", len(under.bytes), len(want))
	}
}

func TestABrokenBatchStaysBroken(t *testing.T) {
	t.Parallel()
	cut := errors.New("cut")
	under := &counter{broken: cut}
	b := &batch{Conn: under}
	b.hold()
	if _, err := b.Write([]byte("lost")); err != nil {
		t.Fatal(err)
	}
	if err := b.flush(); !errors.Is(err, cut) {
		t.Errorf("flush: %v", err)
	}
	under.broken = nil // what follows a hole must not be sent
	if n, err := b.Write([]byte("more")); n != 0 || !errors.Is(err, cut) {
		t.Errorf("Write: %d, %v", n, err)
	}
	b.hold()
	if n, err := b.Write([]byte("more")); n != 0 || !errors.Is(err, cut) {
		t.Errorf("Write: %d, %v", n, err)
	}
	if err := b.flush(); !errors.Is(err, cut) || under.writes > 0 {
		t.Errorf("flush: %v, and %d writes", err, under.writes)
	}
}

// An alert of TLS may come beside a message.
func TestABatchIsWrittenBySeveral(t *testing.T) {
	t.Parallel()
	near, far := pair(t)
	under := near.ws.NetConn().(*tls.Conn).NetConn().(*batch)
	stop := make(chan struct{})
	var beside sync.WaitGroup
	beside.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				under.Write(nil)
			}
		}
	})
	data := bytes.Repeat([]byte("0123456789abcdef"), 256<<10)
	go func() {
		near.Write(data)
		near.CloseWrite()
	}()
	got, err := io.ReadAll(far)
	close(stop)
	beside.Wait()
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d of %d bytes, %v", len(got), len(data), err)
	}
}
