//go:build !unix

package pg

import (
	"context"
	"errors"
	"log/slog"
)

// Private is a PostgreSQL server of our own, which Windows has not.
type Private struct{}

func StartPrivate(context.Context, string, *slog.Logger) (*Private, error) {
	return nil, errors.New("the server brings no PostgreSQL of its own here: give --database-url")
}

func (p *Private) URL() string { return "" }

func (p *Private) Close() {}
