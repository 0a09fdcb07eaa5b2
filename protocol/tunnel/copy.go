package tunnel

import (
	"io"
	"sync"
)

// chunk is what io.Copy moves at a time over a Conn: with the WebSocket's
// header it fills four TLS records, and not a bit of a fifth.
const chunk = bufSize - 14

var chunks = sync.Pool{New: func() any { return new([chunk]byte) }}

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
	return io.CopyBuffer(plainWriter{w}, plainReader{c}, buf[:])
}
