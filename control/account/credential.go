package account

import (
	"context"
	"time"

	"github.com/remotegpu/remotegpu/control/audit"
	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/protocol"
)

// Me returns the user who asks.
func (s *Service) Me(ctx context.Context, c auth.Caller) (User, error) {
	if err := c.Require(auth.AccountRead, ""); err != nil {
		return User{}, err
	}
	u, err := userByID(ctx, s.pool, c.ID)
	return u, noUser(err)
}

// ChangePassword sets the caller's password; the old one must be given. All
// sessions of the user end but the one that asks; API tokens and SSH keys stay.
func (s *Service) ChangePassword(ctx context.Context, c auth.Caller, old, fresh string) error {
	if err := c.Require(auth.AccountWrite, ""); err != nil {
		return err
	}
	if err := validPassword(fresh); err != nil {
		return err
	}
	if _, err := s.CheckPassword(ctx, c.Remote, c.Name, old); err != nil {
		return err
	}
	return pg.InTx(ctx, s.pool, func(tx pg.Tx) error {
		if err := setPassword(ctx, tx, c.ID, hashPassword(fresh)); err != nil {
			return err
		}
		ended, err := deleteOtherSessions(ctx, tx, c.ID, c.Login)
		if err != nil {
			return err
		}
		if err := audit.Record(ctx, tx, c, auth.AccountWrite, c.ID, "", map[string]any{"changed": "password", "sessions_ended": ended}); err != nil {
			return err
		}
		return pg.Notify(ctx, tx, Revoked, c.ID)
	})
}

// CreateToken makes an API token with the caller's own rights. The secret is
// returned here and never again. A life of 0 means for ever.
func (s *Service) CreateToken(ctx context.Context, c auth.Caller, name string, life time.Duration) (Token, string, error) {
	if err := c.Require(auth.AccountWrite, ""); err != nil {
		return Token{}, "", err
	}
	t := Token{ID: protocol.NewID(protocol.PrefixToken), Name: name, CreatedAt: time.Now()}
	if life > 0 {
		end := t.CreatedAt.Add(life)
		t.ExpiresAt = &end
	}
	secret, hash := newSecret(tokenPrefix)
	err := pg.InTx(ctx, s.pool, func(tx pg.Tx) error {
		if err := insertToken(ctx, tx, c.ID, t, hash); err != nil {
			return err
		}
		return audit.Record(ctx, tx, c, auth.AccountWrite, t.ID, "", map[string]any{"created": "token", "name": name})
	})
	return t, secret, err
}

// Tokens lists the caller's API tokens.
func (s *Service) Tokens(ctx context.Context, c auth.Caller) ([]Token, error) {
	if err := c.Require(auth.AccountRead, ""); err != nil {
		return nil, err
	}
	return listTokens(ctx, s.pool, c.ID)
}

// DeleteToken revokes one of the caller's API tokens.
func (s *Service) DeleteToken(ctx context.Context, c auth.Caller, id string) error {
	return s.deleteOwned(ctx, c, ownedTokens, id, "token")
}

// AddKey registers a public SSH key of the caller. Adding one's own key again
// returns it as it is.
func (s *Service) AddKey(ctx context.Context, c auth.Caller, name, line string) (Key, error) {
	if err := c.Require(auth.AccountWrite, ""); err != nil {
		return Key{}, err
	}
	normal, fingerprint, comment, err := parseKey(line)
	if err != nil {
		return Key{}, err
	}
	if name == "" {
		name = comment
	}
	k := Key{ID: protocol.NewID(protocol.PrefixKey), Name: name, Fingerprint: fingerprint, PublicKey: normal, CreatedAt: time.Now()}
	err = pg.InTx(ctx, s.pool, func(tx pg.Tx) error {
		if err := insertKey(ctx, tx, c.ID, k); err != nil {
			return err
		}
		return audit.Record(ctx, tx, c, auth.AccountWrite, k.ID, "", map[string]any{"created": "ssh key", "fingerprint": fingerprint})
	})
	if !pg.IsUnique(err, "ssh_keys_fingerprint") {
		return k, err
	}
	owner, have, err := keyOwner(ctx, s.pool, fingerprint)
	if err == nil && owner != c.ID {
		err = errs.E(errs.Conflict, "This key belongs to another user; make one of your own: ssh-keygen -t ed25519.")
	}
	return have, err
}

// Keys lists the caller's SSH keys.
func (s *Service) Keys(ctx context.Context, c auth.Caller) ([]Key, error) {
	if err := c.Require(auth.AccountRead, ""); err != nil {
		return nil, err
	}
	return listKeys(ctx, s.pool, c.ID)
}

// DeleteKey removes one of the caller's SSH keys.
func (s *Service) DeleteKey(ctx context.Context, c auth.Caller, id string) error {
	return s.deleteOwned(ctx, c, ownedKeys, id, "ssh key")
}

func (s *Service) deleteOwned(ctx context.Context, c auth.Caller, table ownedTable, id, what string) error {
	if err := c.Require(auth.AccountWrite, ""); err != nil {
		return err
	}
	return pg.InTx(ctx, s.pool, func(tx pg.Tx) error {
		there, err := deleteOwned(ctx, tx, table, c.ID, id)
		if err != nil {
			return err
		}
		if !there {
			return errs.Ef(errs.NotFound, "You have no %s %.60s.", what, id)
		}
		if err := audit.Record(ctx, tx, c, auth.AccountWrite, id, "", map[string]any{"deleted": what}); err != nil {
			return err
		}
		return pg.Notify(ctx, tx, Revoked, id)
	})
}
