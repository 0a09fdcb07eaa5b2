package web

import (
	"bufio"
	"io"
	"reflect"
	"sync"

	"github.com/danielgtaylor/huma/v2"
)

// Encoded is a T that is JSON already, in pieces, for answers that are asked for
// often and seldom change.
type Encoded[T any] [][]byte

// Schema describes T.
func (Encoded[T]) Schema(r huma.Registry) *huma.Schema {
	return r.Schema(reflect.TypeFor[T](), true, "")
}

// write joins the pieces in a buffer that answers share: those of their own would
// keep the garbage collector busy.
func (e Encoded[T]) write(w io.Writer) error {
	buf := buffers.Get().(*bufio.Writer)
	defer func() {
		buf.Reset(nil)
		buffers.Put(buf)
	}()
	buf.Reset(w)
	for _, piece := range e {
		if _, err := buf.Write(piece); err != nil {
			return err
		}
	}
	return buf.Flush()
}

var buffers = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, 128<<10) }}

// answers writes values as JSON, and what is JSON as it is.
var answers = huma.Format{
	Marshal: func(w io.Writer, v any) error {
		if e, ready := v.(interface{ write(w io.Writer) error }); ready {
			return e.write(w)
		}
		return huma.DefaultJSONFormat.Marshal(w, v)
	},
	Unmarshal: huma.DefaultJSONFormat.Unmarshal,
}
