package transfer

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/pkg/sftp"
)

// Options are those of a client that a Place has: as many parts of a file on
// their way as a session's window holds, 2 MiB, or a long line would be idle.
// Larger parts would come back cut short from servers of usual limits.
var Options = []sftp.ClientOption{sftp.MaxConcurrentRequestsPerFile(64), sftp.UseConcurrentWrites(true), sftp.UseConcurrentReads(true)}

// readError is one of the source.
type readError struct{ error }

func (e *readError) Unwrap() error { return e.error }

// pour copies a file; size is what it is thought to have, -1: not known. An
// environment is asked for many parts at a time, or a long line would be idle
// while each is waited for.
func pour(ctx context.Context, out io.Writer, in io.Reader, size int64, count *atomic.Int64) (err error) {
	m := &meter{ctx: ctx, in: in, out: out, size: size, all: count}
	from, far := in.(*sftp.File)
	to, away := out.(*sftp.File)
	switch {
	case far && away:
		r, w := io.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, err := from.WriteTo(w)
			w.CloseWithError(err) // nil is its end
		}()
		m.in = r
		_, err = to.ReadFrom(m)
		r.CloseWithError(io.ErrClosedPipe)
		<-done
	case far:
		if _, err = from.WriteTo(m); err != nil && !m.failed {
			err = &readError{err}
		}
	case away:
		_, err = to.ReadFrom(m)
	default:
		_, err = io.Copy(struct{ io.Writer }{m}, in)
	}
	if err == nil && m.n < size {
		err = &readError{fmt.Errorf("it has become shorter: %d bytes of %d came; copy it again", m.n, size)}
	}
	return err
}

// meter counts what passes, and stops it when the copy is to end.
type meter struct {
	ctx    context.Context
	in     io.Reader
	out    io.Writer
	size   int64
	n      int64
	all    *atomic.Int64
	failed bool // out did
}

// Size tells sftp how many parts to have on their way.
func (m *meter) Size() int64 { return m.size }

func (m *meter) passed(n int) {
	m.n += int64(n)
	m.all.Add(int64(n))
}

func (m *meter) Read(p []byte) (int, error) {
	if err := m.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := m.in.Read(p)
	m.passed(n)
	if err != nil && err != io.EOF {
		err = &readError{err}
	}
	return n, err
}

func (m *meter) Write(p []byte) (int, error) {
	if err := m.ctx.Err(); err != nil {
		m.failed = true
		return 0, err
	}
	n, err := m.out.Write(p)
	m.passed(n)
	m.failed = m.failed || err != nil
	return n, err
}
