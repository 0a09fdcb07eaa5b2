package account

import (
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/remotegpu/remotegpu/control/audit"
	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/protocol"
)

// Revoked is the channel on which the id of a token, key or user is notified whose
// rights are less than they were: whoever keeps connections open ends theirs.
const Revoked = "rights_revoked"

// Service does everything with accounts.
type Service struct {
	pool    *pg.Pool
	guesses *guesses
	bearers *pg.Shared[string, auth.Caller] // by the hash of a secret: programs ask many things at once with one token
}

// New returns the service on pool.
func New(pool *pg.Pool) *Service {
	s := &Service{pool: pool, guesses: newGuesses()}
	s.bearers = pg.NewShared(s.bearer)
	return s
}

// Bootstrap makes the first platform admin when there is no user yet, and what
// with makes in the same transaction, and reports whether it did. Of servers that
// begin at once one does; the others wait for it.
func (s *Service) Bootstrap(ctx context.Context, email, password string, with func(tx pg.Tx, admin User) error) (made bool, err error) {
	if there, err := anyUser(ctx, s.pool); there || err != nil {
		return false, err
	}
	u, hash := User{ID: protocol.NewID(protocol.PrefixUser), Email: email, Name: "Admin", Admin: true}, hashPassword(password)
	err = pg.InTx(ctx, s.pool, func(tx pg.Tx) error {
		if err := lockBootstrap(ctx, tx); err != nil {
			return err
		}
		there, err := anyUser(ctx, tx)
		if made = !there; there || err != nil {
			return err
		}
		if err := createUser(ctx, tx, auth.System("bootstrap"), u, hash); err != nil {
			return err
		}
		return with(tx, u)
	})
	return made && err == nil, err
}

// CreateUser makes a user with a password.
func (s *Service) CreateUser(ctx context.Context, c auth.Caller, u User, password string) (User, error) {
	if err := c.Require(auth.UserManage, ""); err != nil {
		return User{}, err
	}
	if err := validEmail(u.Email); err != nil {
		return User{}, err
	}
	if err := validPassword(password); err != nil {
		return User{}, err
	}
	u.ID, u.CreatedAt = protocol.NewID(protocol.PrefixUser), time.Now()
	if u.Name == "" {
		u.Name, _, _ = strings.Cut(u.Email, "@")
	}
	hash := hashPassword(password)
	err := pg.InTx(ctx, s.pool, func(tx pg.Tx) error { return createUser(ctx, tx, c, u, hash) })
	if pg.IsUnique(err, "users_email") {
		return User{}, errs.Ef(errs.Conflict, "There is a user with the address %s already.", u.Email)
	}
	return u, err
}

func createUser(ctx context.Context, tx pg.Tx, c auth.Caller, u User, passwordHash string) error {
	if err := insertUser(ctx, tx, u, passwordHash); err != nil {
		return err
	}
	return audit.Record(ctx, tx, c, auth.UserManage, u.ID, "", map[string]any{"created": u.Email, "admin": u.Admin})
}

// Users lists all users.
func (s *Service) Users(ctx context.Context, c auth.Caller) ([]User, error) {
	if err := c.Require(auth.UserManage, ""); err != nil {
		return nil, err
	}
	return listUsers(ctx, s.pool)
}

// SetDisabled turns a user off, which ends their sessions, or on again.
func (s *Service) SetDisabled(ctx context.Context, c auth.Caller, user string, disabled bool) error {
	if err := c.Require(auth.UserManage, ""); err != nil {
		return err
	}
	if user == c.ID {
		return errs.E(errs.Invalid, "You cannot disable yourself; let another platform admin do it.")
	}
	return pg.InTx(ctx, s.pool, func(tx pg.Tx) error {
		if _, err := userByID(ctx, tx, user); err != nil {
			return noUser(err)
		}
		if err := setDisabled(ctx, tx, user, disabled); err != nil {
			return err
		}
		if err := audit.Record(ctx, tx, c, auth.UserManage, user, "", map[string]any{"disabled": disabled}); err != nil {
			return err
		}
		return pg.Notify(ctx, tx, Revoked, user)
	})
}

// Login checks a password and opens a session.
func (s *Service) Login(ctx context.Context, c auth.Caller, email, password string) (secret string, u User, err error) {
	u, checked, err := s.checkPassword(ctx, c.Remote, email, password)
	if err != nil {
		return "", User{}, err
	}
	secret, hash := newSecret(sessionPrefix)
	err = pg.InTx(ctx, s.pool, func(tx pg.Tx) error {
		if err := insertSession(ctx, tx, hash, u.ID, checked); pg.IsNone(err) {
			return errWrongPassword // it was changed meanwhile
		} else if err != nil {
			return err
		}
		c.ID = u.ID
		return audit.Record(ctx, tx, c, auth.SessionCreate, u.ID, "", nil)
	})
	return secret, u, err
}

// Logout ends the caller's session, and with it every app that was opened with
// it. With an API token there is none to end.
func (s *Service) Logout(ctx context.Context, c auth.Caller) error {
	if err := c.Require(auth.SessionDelete, ""); err != nil {
		return err
	}
	if c.Login == nil {
		return errs.E(errs.Invalid, "You did not log in with a password; an API token is revoked with: remotegpu token rm")
	}
	return pg.InTx(ctx, s.pool, func(tx pg.Tx) error {
		if err := deleteSession(ctx, tx, c.Login); err != nil {
			return err
		}
		if err := audit.Record(ctx, tx, c, auth.SessionDelete, c.ID, "", nil); err != nil {
			return err
		}
		return pg.Notify(ctx, tx, Revoked, c.ID)
	})
}

const sweepEvery = time.Hour

// Sweep removes sessions that have expired, until ctx ends.
func (s *Service) Sweep(ctx context.Context, log *slog.Logger) error {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		if err := deleteOldSessions(ctx, s.pool); err != nil && ctx.Err() == nil {
			log.Warn("old sessions not removed; it is tried again", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// CheckPassword returns the user whose address and password these are; guesses
// says how often that may be tried.
func (s *Service) CheckPassword(ctx context.Context, remote, email, password string) (User, error) {
	u, _, err := s.checkPassword(ctx, remote, email, password)
	return u, err
}

var errWrongPassword = errs.E(errs.Unauthenticated, "E-mail address or password is wrong.")

// checkPassword is CheckPassword and returns the hash that was right.
func (s *Service) checkPassword(ctx context.Context, remote, email, password string) (u User, hash string, err error) {
	from := newOrigin(remote, email)
	if !s.guesses.password(from) {
		return User{}, "", errs.E(errs.Unavailable, tooMany)
	}
	u, hash, err = userByEmail(ctx, s.pool, email)
	if err != nil && !pg.IsNone(err) {
		return User{}, "", fmt.Errorf("find user: %w", err)
	}
	release, err := s.guesses.turn(ctx, from)
	if err != nil {
		return User{}, "", err
	}
	right := checkPassword(hash, password) && !u.Disabled
	release(right)
	if !right {
		return User{}, "", errWrongPassword
	}
	if isOld(hash) {
		fresh := hashPassword(password)
		if err := rehashPassword(ctx, s.pool, u.ID, hash, fresh); !pg.IsNone(err) { // else another one was quicker
			return u, fresh, err
		}
	}
	return u, hash, nil
}

// BySecret returns the caller behind an API token or session secret that was
// shown from an address.
func (s *Service) BySecret(ctx context.Context, remote, secret string) (auth.Caller, error) {
	if !strings.HasPrefix(secret, tokenPrefix) && !strings.HasPrefix(secret, sessionPrefix) {
		return auth.Caller{}, errs.E(errs.Unauthenticated, "This is not an API token of RemoteGPU (they start with rgt_).")
	}
	hash := hashSecret(secret)
	from := newOrigin(remote, hex.EncodeToString(hash))
	if !s.guesses.token(from) {
		return auth.Caller{}, errs.E(errs.Unavailable, "Too many wrong tokens from your address; wait a minute, and then look which program there has an old one.")
	}
	c, err := s.bearers.Get(ctx, string(hash))
	if pg.IsNone(err) {
		s.guesses.wrong(from)
		return auth.Caller{}, errs.E(errs.Unauthenticated, "The token is unknown, expired or revoked; log in again with remotegpu login.")
	} else if err != nil {
		return auth.Caller{}, fmt.Errorf("find token: %w", err)
	}
	s.guesses.setRight(from)
	if c.Roles = maps.Clone(c.Roles); c.Token == "" { // others have the same at this moment
		c.Login = hash
	}
	return c, nil
}

// bearer looks up the caller behind the hash of a token's secret.
func (s *Service) bearer(ctx context.Context, hash string) (auth.Caller, error) {
	u, token, err := userBySecret(ctx, s.pool, []byte(hash))
	if err != nil {
		return auth.Caller{}, err
	}
	return s.caller(ctx, u, token)
}

// ByKey returns the caller behind an SSH key, by fingerprint.
func (s *Service) ByKey(ctx context.Context, key ssh.PublicKey) (auth.Caller, error) {
	u, id, err := userByFingerprint(ctx, s.pool, ssh.FingerprintSHA256(key))
	if pg.IsNone(err) {
		return auth.Caller{}, errs.E(errs.Unauthenticated, "This SSH key is not registered; add it with: remotegpu key add FILE.pub")
	} else if err != nil {
		return auth.Caller{}, fmt.Errorf("find key: %w", err)
	}
	c, err := s.caller(ctx, u, "")
	c.Key = id
	return c, err
}

// ByUser returns the caller that a user is, after CheckPassword.
func (s *Service) ByUser(ctx context.Context, u User) (auth.Caller, error) {
	return s.caller(ctx, u, "")
}

// Now returns c with the rights of now, for what was begun in a user's name: as
// long as they may log in, and the session, API token or key that they showed counts.
func (s *Service) Now(ctx context.Context, c auth.Caller) (auth.Caller, error) {
	if c.Kind != auth.KindUser {
		return c, nil
	}
	u, err := userNow(ctx, s.pool, c)
	if pg.IsNone(err) {
		return auth.Caller{}, errs.E(errs.Unauthenticated, "Your login has ended; log in again with remotegpu login.")
	} else if err != nil {
		return auth.Caller{}, fmt.Errorf("find user: %w", err)
	}
	now, err := s.caller(ctx, u, c.Token)
	now.Login, now.Key, now.Remote = c.Login, c.Key, c.Remote
	return now, err
}

func (s *Service) caller(ctx context.Context, u User, token string) (auth.Caller, error) {
	roles, err := rolesOf(ctx, s.pool, u.ID)
	if err != nil {
		return auth.Caller{}, err
	}
	return auth.Caller{Kind: auth.KindUser, ID: u.ID, Name: u.Email, Admin: u.Admin, Roles: roles, Token: token}, nil
}

func noUser(err error) error {
	if pg.IsNone(err) {
		return errs.E(errs.NotFound, "There is no such user.")
	}
	return err
}
