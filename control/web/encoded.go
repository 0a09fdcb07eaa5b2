package web

import (
	"io"
	"reflect"

	"github.com/danielgtaylor/huma/v2"
)

// Encoded is a T that is JSON already, for answers that are asked for often and
// seldom change.
type Encoded[T any] []byte

// Schema describes T.
func (Encoded[T]) Schema(r huma.Registry) *huma.Schema {
	return r.Schema(reflect.TypeFor[T](), true, "")
}

func (e Encoded[T]) json() []byte { return e }

// answers writes values as JSON, and what is JSON as it is.
var answers = huma.Format{
	Marshal: func(w io.Writer, v any) error {
		if e, ready := v.(interface{ json() []byte }); ready {
			_, err := w.Write(e.json())
			return err
		}
		return huma.DefaultJSONFormat.Marshal(w, v)
	},
	Unmarshal: huma.DefaultJSONFormat.Unmarshal,
}
