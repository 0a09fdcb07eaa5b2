package host

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/protocol"
)

// Seen is whether a host is there, by its newest connection.
type Seen struct {
	Host     string
	Replica  string // that has the connection; empty: none has
	Presence protocol.Presence
}

// Presences returns who is there, for integrations: some hosts, or all when ids is
// nil. Retired hosts are not.
func (s *Service) Presences(ctx context.Context, ids []string) ([]Seen, error) {
	sql, args := "select id, replica, epoch, online and state <> 'retired' from hosts", []any(nil)
	if ids != nil {
		sql, args = sql+" where id = any($1)", []any{ids}
	}
	rows, err := s.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, fmt.Errorf("read presences: %w", err)
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (Seen, error) {
		seen := Seen{Presence: protocol.Presence{Version: protocol.Version}}
		var epoch int64
		err := row.Scan(&seen.Host, &seen.Replica, &epoch, &seen.Presence.Online)
		seen.Presence.Epoch = uint64(epoch)
		return seen, err
	})
}

// Online reports whether a host is connected to any replica.
func (s *Service) Online(ctx context.Context, id string) (online bool, err error) {
	err = s.pool.QueryRow(ctx, "select online and state <> 'retired' from hosts where id = $1", id).Scan(&online)
	if pg.IsNone(err) {
		return false, nil
	}
	return online, err
}
