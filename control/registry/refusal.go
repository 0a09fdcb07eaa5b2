package registry

import (
	"context"
	"io"
	"net/http"

	"github.com/distribution/distribution/v3/registry/api/errcode"

	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
)

// answer is a response in which a refusal says why. Distribution tells every
// client whom Authorized refuses that authentication is required; clients print
// that, so people with a good token would look for a better one.
type answer struct {
	http.ResponseWriter
	refused error // set once the request is refused
}

type answerKey struct{}

// refusing serves with h, which finds the answer in the request's context.
func refusing(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := &answer{ResponseWriter: w}
		h.ServeHTTP(a, r.WithContext(context.WithValue(r.Context(), answerKey{}, a)))
	})
}

// bounded refuses pushes, at any moment of them, for which the disk has no room: one
// upload may be without end, and those that are never finished stay for a week.
func (s *Service) bounded(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.cfg.Room != nil && (r.Method == http.MethodPost || r.Method == http.MethodPut || r.Method == http.MethodPatch) {
			r.Body = &boundedBody{ReadCloser: r.Body, room: func() error {
				err := s.cfg.Room(lookEvery)
				if a, ok := r.Context().Value(answerKey{}).(*answer); ok && err != nil && a.refused == nil {
					a.refused = err
				}
				return err
			}}
		}
		h.ServeHTTP(w, r)
	})
}

// lookEvery is after how many bytes the disk is looked at.
const lookEvery = 4 << 20

type boundedBody struct {
	io.ReadCloser
	room func() error
	left int // bytes until the next look
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		if err := b.room(); err != nil {
			return 0, err
		}
		b.left = lookEvery
	}
	n, err := b.ReadCloser.Read(p)
	b.left -= n
	return n, err
}

// WriteHeader sends the refusal, if there is one, in place of what follows.
func (a *answer) WriteHeader(status int) {
	if a.refused == nil {
		a.ResponseWriter.WriteHeader(status)
		return
	}
	errcode.ServeJSON(a.ResponseWriter, code(a.refused).WithMessage(errs.Text(a.refused))) // the client may be gone
}

func (a *answer) Write(b []byte) (int, error) {
	if a.refused != nil {
		return len(b), nil
	}
	return a.ResponseWriter.Write(b)
}

// code is what a kind of error is called by the OCI distribution specification.
// What is denied and what is not there look the same.
func code(err error) errcode.ErrorCode {
	switch errs.KindOf(err) {
	case errs.Unauthenticated:
		return errcode.ErrorCodeUnauthorized
	case errs.Denied, errs.NotFound:
		return errcode.ErrorCodeDenied
	case errs.Invalid:
		return errcode.ErrorCodeNameInvalid
	case errs.Unavailable:
		return errcode.ErrorCodeUnavailable
	}
	return errcode.ErrorCodeUnknown
}

// challenge is how distribution learns of a refusal.
type challenge struct{ error }

// SetHeaders keeps the refusal for the answer, and asks whom we do not know for
// a user name and a password.
func (c challenge) SetHeaders(r *http.Request, w http.ResponseWriter) {
	if a, ok := r.Context().Value(answerKey{}).(*answer); ok {
		a.refused = pg.Meaning(c.error)
	}
	if errs.KindOf(c.error) == errs.Unauthenticated {
		w.Header().Set("WWW-Authenticate", `Basic realm="RemoteGPU: any user name, an API token as password"`)
	}
}
