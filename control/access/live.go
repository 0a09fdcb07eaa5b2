package access

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/environment"
	"github.com/remotegpu/remotegpu/control/errs"
)

// uses are what people have open, so that it ends with their rights.
type uses struct {
	mu   sync.Mutex // guards open
	open map[*use]struct{}
}

// use is a connection to the gateway, or a stream to an environment.
type use struct {
	caller auth.Caller
	env    string                    // id of the environment that it leads to; empty: a connection
	may    func(c auth.Caller) error // what it needs; nil: a user who is there
	end    func(why error)
}

// add returns what takes it out again.
func (u *uses) add(one *use) (remove func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.open == nil {
		u.open = map[*use]struct{}{}
	}
	u.open[one] = struct{}{}
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		delete(u.open, one)
	}
}

// of returns what a user, token or key has open; an empty id stands for all.
func (u *uses) of(id string) (found []*use) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for one := range u.open {
		if id == "" || one.caller.ID == id || one.caller.Token == id || one.caller.Key == id {
			found = append(found, one)
		}
	}
	return found
}

// Watch ends what c has opened in another way than through here, when may says
// that they may not have it any more, until it is removed.
func (s *Service) Watch(c auth.Caller, may func(c auth.Caller) error, end func(why error)) (remove func()) {
	return s.uses.add(&use{caller: c, may: may, end: end})
}

var (
	errRevoked = errors.New("your rights here have ended")
	errDeleted = errors.New("the environment is being deleted")
)

// EndEnvironment ends what people have open in an environment, by id, that is
// being deleted.
func (s *Service) EndEnvironment(id string) {
	for _, one := range s.uses.of("") {
		if one.env == id {
			one.end(errDeleted)
		}
	}
}

// Recheck ends what a user, token or key, by id, may not have any more. An empty id
// stands for everybody.
func (s *Service) Recheck(id string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, one := range s.uses.of(id) {
		err := errRevoked // a token or key that is named was revoked
		if id == "" || one.caller.ID == id {
			err = s.mayStill(ctx, one.caller, one.may)
		}
		if isNo(err) {
			s.log.Info("access ends with its rights", "user", one.caller.ID, "err", err)
			one.end(errRevoked)
		}
	}
}

// isNo reports whether err says that somebody may not, and not that nobody
// could tell.
func isNo(err error) bool {
	kind := errs.KindOf(err)
	return err != nil && (errors.Is(err, errRevoked) || kind == errs.Denied || kind == errs.NotFound || kind == errs.Unauthenticated)
}

// mayStill asks with the rights of now.
func (s *Service) mayStill(ctx context.Context, c auth.Caller, may func(c auth.Caller) error) error {
	c, err := s.fresh(ctx, c)
	if err != nil || may == nil {
		return err
	}
	return may(c)
}

// needs returns what a stream to env asks of its caller; the host itself is an
// environment without a workspace.
func needs(env environment.Environment) func(c auth.Caller) error {
	return func(c auth.Caller) error {
		if env.Workspace == "" {
			return c.Require(auth.HostAccess, "")
		}
		return c.Require(auth.EnvironmentAccess, env.Workspace)
	}
}

// fresh returns c with the rights of now.
func (s *Service) fresh(ctx context.Context, c auth.Caller) (auth.Caller, error) {
	if s.cfg.Now == nil {
		return c, nil
	}
	return s.cfg.Now(ctx, c)
}
