// Package replica knows the servers that share one database.
//
// It owns their leases: each server has an id for as long as it runs, says
// every few seconds that it lives and where the others reach it, and is taken
// for dead by the database's clock when it does not. Which host is connected to
// which replica is host's business, the streams between them server's. Its
// invariant: an id is never used again.
package replica

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/protocol"
)

const (
	renewEvery = 2 * time.Second
	lease      = 10 * time.Second
	sweepEvery = 2 * time.Second
)

// Config is what a replica needs.
type Config struct {
	Address string // host:port where others bring it streams; empty: nowhere
	// Lost is called once for every replica that has died.
	Lost func(ctx context.Context, id string) error
}

// Service is one replica.
type Service struct {
	pool   *pg.Pool
	cfg    Config
	log    *slog.Logger
	id     string
	others atomic.Bool
}

// New takes a lease for a new replica; Run renews it.
func New(ctx context.Context, pool *pg.Pool, cfg Config, log *slog.Logger) (*Service, error) {
	s := &Service{pool: pool, cfg: cfg, log: log, id: protocol.NewID(protocol.PrefixReplica)}
	if err := s.renew(ctx); err != nil {
		return nil, fmt.Errorf("take lease of replica: %w", err)
	}
	return s, nil
}

// ID names this replica until its end.
func (s *Service) ID() string { return s.id }

// Others reports whether there were others a moment ago.
func (s *Service) Others() bool { return s.others.Load() }

// Run keeps the lease until ctx ends, and gives it back.
func (s *Service) Run(ctx context.Context) error {
	t := time.NewTicker(renewEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			if err := s.forget(last, s.id); err != nil {
				s.log.Warn("lease of this replica not given back; it ends by itself", "err", err)
			}
			return nil
		case <-t.C:
		}
		within, cancel := context.WithTimeout(ctx, lease/2)
		if err := s.renew(within); err != nil && ctx.Err() == nil {
			s.log.Warn("lease of this replica not renewed; it is tried again", "err", err)
		}
		cancel()
	}
}

func (s *Service) renew(ctx context.Context) error {
	var others bool
	err := s.pool.QueryRow(ctx, `with mine as (insert into replicas (id, address) values ($1, $2)
			on conflict (id) do update set seen_at = now())
		select exists (select from replicas where id <> $1 and seen_at > now() - $3::interval)`, s.id, s.cfg.Address, lease).Scan(&others)
	if err != nil {
		return err
	}
	if s.others.Swap(others) != others {
		s.log.Info("replicas of this control plane", "others", others)
	}
	return nil
}

func (s *Service) forget(ctx context.Context, id string) error {
	_, err := s.pool.Exec(ctx, "delete from replicas where id = $1", id)
	return err
}

// Address returns where a replica takes streams. It fails with a sentence when
// that one has ended, or takes none.
func (s *Service) Address(ctx context.Context, id string) (string, error) {
	var address string
	err := s.pool.QueryRow(ctx, "select address from replicas where id = $1 and seen_at > now() - $2::interval", id, lease).Scan(&address)
	switch {
	case pg.IsNone(err):
		return "", errs.E(errs.Unavailable, "The server that asked for this stream has ended.")
	case err != nil:
		return "", fmt.Errorf("look for replica: %w", err)
	case address == "":
		return "", errs.E(errs.Unavailable, "The server that asked for this stream takes none from others: start every server with --replica-listen.")
	}
	return address, nil
}

// Sweep says which replicas have died until ctx ends. It waits for a lease
// first: after an outage of the database all leases are over, and most renewed
// soon.
func (s *Service) Sweep(ctx context.Context) error {
	wait := lease
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		wait = sweepEvery
		if err := s.sweep(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("replicas not looked through; it is tried again", "err", err)
		}
	}
}

func (s *Service) sweep(ctx context.Context) error {
	rows, err := s.pool.Query(ctx, "select id from replicas where seen_at < now() - $1::interval", lease)
	if err != nil {
		return err
	}
	dead, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, id := range dead {
		s.log.Warn("a replica has died", "replica", id)
		if err := s.cfg.Lost(ctx, id); err != nil {
			return fmt.Errorf("settle what replica %s leaves: %w", id, err)
		}
		if err := s.forget(ctx, id); err != nil {
			return err
		}
	}
	return nil
}
