package host

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/remotegpu/remotegpu/control/audit"
	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/web"
	"github.com/remotegpu/remotegpu/protocol"
)

// Changed is the channel on which the id of a host is notified whose capacity
// or state has changed.
const Changed = "host_changed"

// Dropped is the channel on which the id of a host is notified that may no
// longer have any connection.
const Dropped = "host_dropped"

// Config is what the module needs from others.
type Config struct {
	Keys           [][]byte                  // public keys that sign desired documents, newest first
	Registry       string                    // host:port of the image registry
	InstallCommand func(token string) string // the line for people
	// Replica is where a host is that is heard here; nil: nowhere that has an end.
	Replica func(host string) string
}

// Service does everything with hosts.
type Service struct {
	pool *pg.Pool
	cfg  Config
	log  *slog.Logger

	roster *roster
}

// New returns the service on pool.
func New(pool *pg.Pool, cfg Config, log *slog.Logger) *Service {
	return &Service{pool: pool, cfg: cfg, log: log, roster: newRoster(pool, log)}
}

func (s *Service) replica(host string) string {
	if s.cfg.Replica == nil {
		return ""
	}
	return s.cfg.Replica(host)
}

// Follow keeps what lists show up to date until ctx ends: in every replica.
func (s *Service) Follow(ctx context.Context) error {
	go s.roster.ahead(ctx)
	return s.roster.feed.Run(ctx)
}

// List returns hosts by name, while Follow runs.
func (s *Service) List(ctx context.Context, c auth.Caller, f Filter) (web.Encoded[web.List[Host]], error) {
	if err := c.Require(auth.HostList, ""); err != nil {
		return nil, err
	}
	return s.roster.get(ctx, f)
}

// Find returns a host given by name or id.
func (s *Service) Find(ctx context.Context, c auth.Caller, nameOrID string) (Host, error) {
	if err := c.Require(auth.HostList, ""); err != nil {
		return Host{}, err
	}
	h, err := find(ctx, s.pool, nameOrID)
	return h, noHost(err, nameOrID)
}

// Events returns what happened on a host after the event with id after, oldest
// first, at most 500.
func (s *Service) Events(ctx context.Context, c auth.Caller, nameOrID string, after int64) ([]Event, error) {
	h, err := s.Find(ctx, c, nameOrID)
	if err != nil {
		return nil, err
	}
	all, err := events(ctx, s.pool, h.ID, after)
	for i := range all {
		all[i].Message = strings.ReplaceAll(all[i].Message, "{control}/", s.cfg.Registry+"/") // as people call it
	}
	return all, err
}

// Change is what people may change of a host; nil leaves it.
type Change struct {
	Name   *string            `json:"name,omitempty"`
	Labels *map[string]string `json:"labels,omitempty"`
	Tags   *[]string          `json:"tags,omitempty"`
	Groups *[]string          `json:"groups,omitempty"`
}

// Update changes a host's name, labels, tags and groups.
func (s *Service) Update(ctx context.Context, c auth.Caller, nameOrID string, ch Change) (Host, error) {
	if err := c.Require(auth.HostManage, ""); err != nil {
		return Host{}, err
	}
	if ch.Name != nil {
		if err := validName(*ch.Name); err != nil {
			return Host{}, err
		}
	}
	if ch.Labels != nil {
		if err := validLabels(*ch.Labels); err != nil {
			return Host{}, err
		}
	}
	var id string
	err := pg.InTx(ctx, s.pool, func(tx pg.Tx) (err error) {
		if id, _, err = lockState(ctx, tx, nameOrID); err != nil {
			return noHost(err, nameOrID)
		}
		_, err = tx.Exec(ctx, `update hosts set name = coalesce($2, name), labels = coalesce($3, labels),
			tags = coalesce($4, tags), groups = coalesce($5, groups) where id = $1`, id, ch.Name, ch.Labels, ch.Tags, ch.Groups)
		if err != nil {
			return err
		}
		if err := audit.Record(ctx, tx, c, auth.HostManage, id, "", ch); err != nil {
			return err
		}
		return pg.Notify(ctx, tx, Changed, id)
	})
	if pg.IsUnique(err, "hosts_name_key") {
		return Host{}, errs.Ef(errs.Conflict, "There is a host %s already; choose another name.", *ch.Name)
	} else if err != nil {
		return Host{}, err
	}
	return s.Find(ctx, c, id)
}

// Move takes a host through its life: verb is one of approve, cordon,
// uncordon, drain, maintenance, activate, retire.
func (s *Service) Move(ctx context.Context, c auth.Caller, nameOrID, verb string) (Host, error) {
	if err := c.Require(auth.HostManage, ""); err != nil {
		return Host{}, err
	}
	var id string
	var next State
	err := pg.InTx(ctx, s.pool, func(tx pg.Tx) error {
		var now State
		var err error
		if id, now, err = lockState(ctx, tx, nameOrID); err != nil {
			return noHost(err, nameOrID)
		}
		if next, err = now.Next(verb); err != nil {
			return err
		}
		if err := setState(ctx, tx, id, next); err != nil {
			return err
		}
		if err := ownEvent(ctx, tx, id, protocol.SeverityNormal, "StateChanged", fmt.Sprintf("%s: %s by %s.", verb, next, c.Name)); err != nil {
			return err
		}
		if err := audit.Record(ctx, tx, c, auth.HostManage, id, "", map[string]any{"verb": verb, "from": now, "to": next}); err != nil {
			return err
		}
		if next == Retired {
			if err := pg.Notify(ctx, tx, Dropped, id); err != nil {
				return err
			}
		}
		return pg.Notify(ctx, tx, Changed, id)
	})
	if err != nil {
		return Host{}, err
	}
	return s.Find(ctx, c, id)
}

// Hello takes what an agent says at the start of a connection.
func (s *Service) Hello(ctx context.Context, id string, h protocol.Hello) error {
	digest, err := digestOf(h.Inventory)
	if err != nil {
		return err
	}
	known, cameOnline, err := helloAgain(ctx, s.pool, id, h, digest)
	switch {
	case err != nil:
		return fmt.Errorf("note hello: %w", err)
	case known && cameOnline:
		return s.announce(ctx, id, true)
	case known:
		return nil
	}
	return pg.InTx(ctx, s.pool, func(tx pg.Tx) error {
		if _, err := seen(ctx, tx, id, s.replica(id), h.Epoch); err != nil {
			return fmt.Errorf("note hello: %w", err)
		}
		if err := setInventory(ctx, tx, id, h.Inventory); err != nil {
			return fmt.Errorf("keep inventory: %w", err)
		}
		_, err := tx.Exec(ctx, "update hosts set agent = $2, boot_id = $3, clock_offset = $4 where id = $1", id, h.Agent, h.BootID, h.ClockOffset)
		if err != nil {
			return err
		}
		return pg.Notify(ctx, tx, Changed, id)
	})
}

// Presence takes birth and death of a connection. A death of an older
// connection than the present one means nothing.
func (s *Service) Presence(ctx context.Context, id string, p protocol.Presence) error {
	changed, err := false, error(nil)
	if p.Online {
		changed, err = seen(ctx, s.pool, id, s.replica(id), p.Epoch)
	} else {
		changed, err = died(ctx, s.pool, id, p.Epoch)
	}
	if err != nil {
		return fmt.Errorf("note presence: %w", err)
	}
	if !changed {
		return nil
	}
	return s.announce(ctx, id, p.Online)
}

// announce tells the rest of the control plane that a host came or went.
func (s *Service) announce(ctx context.Context, id string, online bool) error {
	reason, text := "Online", "The host is connected."
	if !online {
		reason, text = "Offline", "The host is not connected; what runs there goes on by itself."
	}
	if err := ownEvent(ctx, s.pool, id, protocol.SeverityNormal, reason, text); err != nil {
		return err
	}
	return pg.Notify(ctx, s.pool, Changed, id)
}

// Lost marks the hosts offline that a dead replica had, and that have not come
// back elsewhere.
func (s *Service) Lost(ctx context.Context, replica string) error {
	gone, err := lost(ctx, s.pool, replica)
	if err != nil {
		return fmt.Errorf("mark hosts of replica offline: %w", err)
	}
	s.announceAll(ctx, gone)
	return nil
}

func (s *Service) announceAll(ctx context.Context, gone []string) {
	for _, id := range gone {
		err := s.announce(ctx, id, false)
		if ctx.Err() != nil {
			return // we stop; who listens reads the API anew
		}
		if err != nil {
			s.log.Error("announce that a host is offline", "host", id, "err", err)
		}
	}
}

// keepEvents is how long people can look what happened.
const keepEvents = 90 * 24 * time.Hour

// Run marks silent hosts offline, and lets go of old events, until ctx ends: in
// one replica at a time.
func (s *Service) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.watchSilence(ctx) })
	g.Go(func() error { return pg.Prune(ctx, s.pool, "host_events", keepEvents, s.log) })
	return g.Wait()
}

func (s *Service) watchSilence(ctx context.Context) error {
	tick := time.NewTicker(offlineAfter / 6)
	defer tick.Stop()
	for {
		gone, err := silent(ctx, s.pool, offlineAfter)
		if err != nil && ctx.Err() == nil {
			s.log.Error("look for silent hosts", "err", err)
		}
		s.announceAll(ctx, gone)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func noHost(err error, name string) error {
	if pg.IsNone(err) {
		return errs.Ef(errs.NotFound, "There is no host %.80s; see remotegpu host ls.", name)
	}
	return err
}
