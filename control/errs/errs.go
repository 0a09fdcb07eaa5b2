// Package errs holds the meanings that an error can have in the control plane.
//
// It owns the kinds and the sentence a person sees; how a kind becomes an HTTP
// status or an SSH message stands where that protocol is spoken. Its
// invariant: only a text given to E or Ef ever reaches a person; every other
// error is Internal and shows nothing but a request id.
package errs

import (
	"errors"
	"fmt"
)

// Kind is what an error means to the caller.
type Kind int

// Kinds of error. The zero value is for what nobody foresaw.
const (
	Internal        Kind = iota
	Invalid              // the request itself is wrong
	Unauthenticated      // who are you?
	Denied               // we know you, and no
	NotFound             // or its existence is secret
	Conflict             // right request, wrong moment or state
	Unavailable          // a part that is needed is not there now; try again
)

type meant struct {
	kind Kind
	text string
	err  error
}

func (e *meant) Error() string {
	if e.err == nil {
		return e.text
	}
	return e.text + ": " + e.err.Error()
}

func (e *meant) Unwrap() error { return e.err }

// E returns an error of kind whose text is one sentence for a person: what
// happened and what to do next. cause, if any, goes to the log only.
func E(kind Kind, text string, cause ...error) error {
	return &meant{kind, text, errors.Join(cause...)}
}

// Ef is E with a formatted text.
func Ef(kind Kind, format string, args ...any) error {
	return &meant{kind: kind, text: fmt.Sprintf(format, args...)}
}

// KindOf returns the kind of the outermost error made by E, else Internal.
func KindOf(err error) Kind {
	if m, ok := errors.AsType[*meant](err); ok {
		return m.kind
	}
	return Internal
}

// Text returns the sentence for a person, else "Internal error".
func Text(err error) string {
	if m, ok := errors.AsType[*meant](err); ok {
		return m.text
	}
	return "Internal error"
}
