// Package web is how modules offer HTTP routes.
//
// It owns the API document, authentication of requests, the mapping of error
// kinds to statuses and request ids; what a route does stands in the api.go of
// its module. Its invariant: a route exists only through Register or Raw, with
// the action of package auth that it needs, so the role × action × route test
// sees every one.
package web

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
)

// API collects the routes of all modules.
type API struct {
	mux    *http.ServeMux
	huma   huma.API
	log    *slog.Logger
	routes []Route
	raw    map[string]bool // by pattern
}

// Route is one way in.
type Route struct {
	Method  string
	Path    string // with {parameters}
	Action  auth.Action
	Summary string // one line for the API document
	Status  int    // of success; 0: 200, or 204 when the answer is None
}

// None is the answer of a route that has nothing to say.
type None struct{}

// List is the answer of a route that lists things.
type List[T any] struct {
	Items []T `json:"items"`
}

// Items makes a List that is never null in JSON.
func Items[T any](items []T) List[T] {
	if items == nil {
		items = []T{}
	}
	return List[T]{items}
}

// New returns an API without routes but its own document at
// /api/openapi.json.
func New(version string, log *slog.Logger) *API {
	cfg := huma.DefaultConfig("RemoteGPU", version)
	cfg.OpenAPIPath = "/api/openapi"
	cfg.DocsPath = ""
	cfg.SchemasPath = ""
	cfg.CreateHooks = nil // no $schema links in answers
	cfg.Formats = map[string]huma.Format{"application/json": answers, "json": answers}
	cfg.Components.Schemas = huma.NewMapRegistry("#/components/schemas/", schemaName)
	cfg.Components.SecuritySchemes = map[string]*huma.SecurityScheme{"token": {Type: "http", Scheme: "bearer"}}
	mux := http.NewServeMux()
	return &API{mux: mux, huma: humago.New(mux, cfg), log: log, raw: map[string]bool{}}
}

// Register adds a route whose input and answer are JSON: I is a huma input
// (path, query and Body fields), O the answer's body.
func Register[I, O any](a *API, r Route, fn func(ctx context.Context, c auth.Caller, in *I) (O, error)) {
	type output struct{ Body O }
	var zero O
	if _, none := any(zero).(None); none && r.Status == 0 {
		r.Status = http.StatusNoContent
	}
	if r.Status == 0 {
		r.Status = http.StatusOK
	}
	a.add(r)
	op := huma.Operation{
		OperationID: operationID(r), Method: r.Method, Path: r.Path, Summary: r.Summary, DefaultStatus: r.Status,
		Tags: []string{strings.Split(string(r.Action), ".")[0]}, MaxBodyBytes: 1 << 20,
		Extensions: map[string]any{"x-action": string(r.Action)},
	}
	if auth.Rules[r.Action].Scope != auth.ScopePublic {
		op.Security = []map[string][]string{{"token": {}}}
	}
	if r.Status == http.StatusNoContent {
		huma.Register(a.huma, op, func(ctx context.Context, in *I) (*struct{}, error) {
			_, err := a.call(ctx, r, func(c auth.Caller) (any, error) { return fn(ctx, c, in) })
			return nil, err
		})
		return
	}
	huma.Register(a.huma, op, func(ctx context.Context, in *I) (*output, error) {
		out, err := a.call(ctx, r, func(c auth.Caller) (any, error) { return fn(ctx, c, in) })
		if err != nil {
			return nil, err
		}
		return &output{out.(O)}, nil
	})
}

// call checks that the caller may come in at all, runs fn and turns its error
// into a problem document. What the caller may do to whose things is the
// operation's own first question.
func (a *API) call(ctx context.Context, r Route, fn func(auth.Caller) (any, error)) (any, error) {
	c := auth.From(ctx)
	rule := auth.Rules[r.Action]
	if rule.Scope != auth.ScopeWorkspace {
		if err := c.Require(r.Action, ""); err != nil {
			return nil, a.problem(ctx, err)
		}
	} else if c.Kind == auth.KindNobody {
		return nil, a.problem(ctx, c.Require(r.Action, ""))
	}
	out, err := fn(c)
	if err != nil {
		return nil, a.problem(ctx, err)
	}
	return out, nil
}

// Raw adds a route that is no JSON: a download, a WebSocket, a page. The
// handler does its own authorising for r.Action. What it serves may last, so it
// ends when the server stops; a Register route is let finish.
func (a *API) Raw(r Route, h http.Handler) {
	a.add(r)
	pattern := r.Path
	if r.Method != "" {
		pattern = r.Method + " " + r.Path
	}
	a.raw[pattern] = true
	a.mux.Handle(pattern, h)
}

// Routes returns all routes, for the test that compares them with the table.
func (a *API) Routes() []Route { return slices.Clone(a.routes) }

func (a *API) add(r Route) {
	if _, known := auth.Rules[r.Action]; !known {
		panic("route " + r.Path + " has action " + string(r.Action) + ", which is not in auth.Rules")
	}
	a.routes = append(a.routes, r)
}

// operationID makes "createEnvironment"-like names from method and path.
func operationID(r Route) string {
	words := []string{strings.ToLower(r.Method)}
	for part := range strings.SplitSeq(strings.TrimPrefix(r.Path, "/api/v1/"), "/") {
		words = append(words, strings.Trim(part, "{}"))
	}
	return strings.Join(words, "-")
}

var statuses = map[errs.Kind]int{
	errs.Internal:        http.StatusInternalServerError,
	errs.Invalid:         http.StatusUnprocessableEntity,
	errs.Unauthenticated: http.StatusUnauthorized,
	errs.Denied:          http.StatusForbidden,
	errs.NotFound:        http.StatusNotFound,
	errs.Conflict:        http.StatusConflict,
	errs.Unavailable:     http.StatusServiceUnavailable,
}

// Status is the HTTP status that an error stands for, for Raw routes whose
// answer is no HTTP.
func Status(err error) int { return statuses[errs.KindOf(pg.Meaning(err))] }

// problem makes the answer of a Register route that has failed.
func (a *API) problem(ctx context.Context, err error) error {
	kind, text := a.judge(RequestID(ctx), err)
	return huma.NewError(statuses[kind], text)
}

// judge returns what an error means and what a person may know of it.
func (a *API) judge(req string, err error) (errs.Kind, string) {
	meant := pg.Meaning(err)
	kind, text := errs.KindOf(meant), errs.Text(meant)
	if kind == errs.Internal && errors.Is(err, context.Canceled) {
		return errs.Unavailable, "The server is stopping; try again in a moment."
	}
	if errs.KindOf(err) == errs.Internal && kind != errs.Invalid {
		a.log.Error("request failed", "req", req, "err", err)
	}
	if kind == errs.Internal {
		text = "Internal error. The server's log tells more under request " + req + "."
	}
	return kind, text
}
