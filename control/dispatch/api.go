package dispatch

import (
	"context"
	"net/http"
	"strconv"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/web"
)

// Routes adds the module's routes.
func (s *Service) Routes(api *web.API) {
	api.Raw(web.Route{Method: http.MethodGet, Path: "/api/v1/agent/desired/{generation}", Action: auth.HostService, Summary: "A host's own document, where it is too large for a message"},
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			generation, err := strconv.ParseUint(r.PathValue("generation"), 10, 63)
			if err != nil {
				generation = 0 // there is none
			}
			document, err := s.Document(r.Context(), auth.From(r.Context()), generation)
			if err != nil {
				api.Fail(w, r, err)
				return
			}
			w.Header().Set("Content-Type", `application/cose; cose-type="cose-sign1"`)
			w.Header().Set("Content-Length", strconv.Itoa(len(document)))
			_, _ = w.Write(document) // the peer may be gone
		}))
}

// Document returns the signed document of the host that asks, while generation
// is its newest.
func (s *Service) Document(ctx context.Context, c auth.Caller, generation uint64) ([]byte, error) {
	if err := c.Require(auth.HostService, ""); err != nil {
		return nil, err
	}
	var newest int64
	var document []byte
	err := s.pool.QueryRow(ctx, "select generation, document from desired_documents where host_id = $1", c.ID).Scan(&newest, &document)
	if err != nil && !pg.IsNone(err) {
		return nil, err
	}
	if uint64(newest) != generation || len(document) == 0 {
		return nil, errs.Ef(errs.Conflict, "This host's document has generation %d now, not %d; wait for the reference to it.", newest, generation)
	}
	return document, nil
}
