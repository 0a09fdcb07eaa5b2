package tunnel

import (
	"io"
	"sync"
)

// chunk is what io.Copy moves at a time over a Conn: with the WebSocket's
// header it fills four TLS records, and not a bit of a fifth.
const chunk = bufSize - 14

var chunks = sync.Pool{New: func() any { return new([chunk]byte) }}

// wholeReader reads whole messages: a record of TLS, which is what a Read
// yields, is a quarter of one, and each would be a write of its own.
type wholeReader struct{ c *Conn }

func (r wholeReader) Read(p []byte) (int, error) { return r.c.take(p, true) }

// plainReader and plainWriter hide ReadFrom and WriteTo, so that io.CopyBuffer
// uses the buffer.
type plainReader struct{ io.Reader }

type plainWriter struct{ io.Writer }

// ReadFrom writes all of r; io.Copy calls it.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) {
	buf := chunks.Get().(*[chunk]byte)
	defer chunks.Put(buf)
	return io.CopyBuffer(plainWriter{c}, plainReader{r}, buf[:])
}

// WriteTo reads all of the stream into w; io.Copy calls it.
func (c *Conn) WriteTo(w io.Writer) (int64, error) {
	buf := chunks.Get().(*[chunk]byte)
	defer chunks.Put(buf)
	return io.CopyBuffer(plainWriter{w}, wholeReader{c}, buf[:])
}

// Splice copies both ways until one side has ended, however, and closes both:
// for protocols that know no half of an end.
func Splice(a, b *Conn) {
	defer a.Close()
	defer b.Close()
	go func() {
		_, _ = io.Copy(a, b) // however it ended, it is over
		a.Close()
		b.Close()
	}()
	_, _ = io.Copy(b, a) // as above
}
