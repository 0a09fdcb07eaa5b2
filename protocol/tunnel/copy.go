package tunnel

import (
	"io"
	"sync"
)

// copyBufs are what io.Copy works with on a Conn: twice its own 32 KiB, which
// halves the messages and the system calls.
var copyBufs = sync.Pool{New: func() any { return new([bufSize]byte) }}

// plainReader and plainWriter hide ReadFrom and WriteTo, so that io.CopyBuffer
// uses the buffer.
type plainReader struct{ io.Reader }

type plainWriter struct{ io.Writer }

// ReadFrom writes all of r; io.Copy calls it.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) {
	buf := copyBufs.Get().(*[bufSize]byte)
	defer copyBufs.Put(buf)
	return io.CopyBuffer(plainWriter{c}, plainReader{r}, buf[:])
}

// WriteTo reads all of the stream into w; io.Copy calls it.
func (c *Conn) WriteTo(w io.Writer) (int64, error) {
	buf := copyBufs.Get().(*[bufSize]byte)
	defer copyBufs.Put(buf)
	return io.CopyBuffer(plainWriter{w}, plainReader{c}, buf[:])
}
