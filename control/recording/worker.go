package recording

import (
	"context"
	"time"
)

const (
	lookEvery   = time.Minute
	silentAfter = 2 * time.Minute // a server that lives touches its recordings every partEvery
)

// Run ends recordings whose server died and deletes what has expired, until
// ctx ends. Several servers may do so at once.
func (s *Service) Run(ctx context.Context) error {
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	for {
		s.tidy(ctx, silentAfter)
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

func (s *Service) tidy(ctx context.Context, silent time.Duration) {
	cut, err := orphans(ctx, s.pool, silent)
	for _, id := range cut {
		if err := s.finish(ctx, id, true); err != nil {
			s.log.Warn("recording not finished; it is tried again", "recording", id, "err", err)
		}
	}
	old, err2 := expired(ctx, s.pool)
	for _, id := range old {
		s.forget(ctx, id)
	}
	for _, err := range []error{err, err2} {
		if err != nil && ctx.Err() == nil {
			s.log.Warn("recordings not looked through", "err", err)
		}
	}
}

// forget deletes the file and then the row, so that no file is left that
// nobody knows.
func (s *Service) forget(ctx context.Context, id string) {
	err := s.remove(ctx, castKey(id))
	if err == nil {
		err = s.removeParts(ctx, id)
	}
	if err == nil {
		err = remove(ctx, s.pool, id)
	}
	if err != nil {
		s.log.Warn("recording not deleted; it is tried again", "recording", id, "err", err)
	}
}
