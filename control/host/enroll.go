package host

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/remotegpu/remotegpu/control/audit"
	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/protocol"
)

// Enroll makes a host of a machine that shows a join token and proves that it
// holds its key. A key that is a host already stays that host and uses nothing
// up.
func (s *Service) Enroll(ctx context.Context, c auth.Caller, e protocol.Enroll) (protocol.Enrolled, error) {
	if len(e.PublicKey) != ed25519.PublicKeySize || !ed25519.Verify(e.PublicKey, protocol.EnrollProof(e.Token, e.PublicKey), e.Proof) {
		return protocol.Enrolled{}, errs.E(errs.Invalid, "The machine did not prove that it holds its key; upgrade the agent and try again.")
	}
	if err := e.Inventory.Validate(); err != nil {
		return protocol.Enrolled{}, errs.E(errs.Invalid, "The machine's description is over its limits.", err)
	}
	out, err := s.enroll(ctx, c, e)
	for range 5 { // two that join at once may choose the same free name
		if !pg.IsUnique(err, "") {
			return out, err
		}
		out, err = s.enroll(ctx, c, e)
	}
	return out, err
}

func (s *Service) enroll(ctx context.Context, c auth.Caller, e protocol.Enroll) (out protocol.Enrolled, err error) {
	err = pg.InTx(ctx, s.pool, func(tx pg.Tx) error {
		var token JoinToken // of one who joins
		id, name, state, err := byKey(ctx, tx, e.PublicKey)
		switch {
		case pg.IsNone(err):
			if token, err = validToken(ctx, tx, e.Token); err == nil {
				id, name, state, err = join(ctx, tx, c, e, token)
			}
		case err == nil && state == Retired:
			err = errs.E(errs.Denied, "This host was retired. To join as a new one, uninstall the agent with --purge first.")
		}
		if err != nil {
			return err
		}
		out = protocol.Enrolled{Host: id, Name: name, Approved: state != Pending, Keys: s.cfg.Keys, Registry: s.cfg.Registry}
		if err := setInventory(ctx, tx, id, e.Inventory); err != nil || token.ID == "" {
			return err
		}
		return token.use(ctx, tx, e.Token)
	})
	return out, err
}

func join(ctx context.Context, tx pg.Tx, c auth.Caller, e protocol.Enroll, t JoinToken) (id, name string, state State, err error) {
	h := Host{Machine: Machine{ID: protocol.NewID(protocol.PrefixHost), State: Active, Labels: t.Labels, Address: c.Remote}}
	if t.Approval {
		h.State = Pending
	}
	if h.Name, err = freeName(ctx, tx, e.Name, e.Inventory.Hostname); err != nil {
		return "", "", "", err
	}
	if err := insert(ctx, tx, h, e.PublicKey); err != nil {
		return "", "", "", err
	}
	c.ID = h.ID
	if err := audit.Record(ctx, tx, c, auth.HostEnroll, h.ID, "", map[string]any{"name": h.Name, "token": t.ID}); err != nil {
		return "", "", "", err
	}
	if err := ownEvent(ctx, tx, h.ID, protocol.SeverityNormal, "Joined", "The host joined the fleet."); err != nil {
		return "", "", "", err
	}
	return h.ID, h.Name, h.State, pg.Notify(ctx, tx, Changed, h.ID)
}

// freeName returns the wished name, which must be free, or one like the
// hostname.
func freeName(ctx context.Context, tx pg.Tx, wished, hostname string) (string, error) {
	if wished != "" {
		if err := validName(wished); err != nil {
			return "", err
		}
		taken, err := nameTaken(ctx, tx, wished)
		if err == nil && taken {
			err = errs.Ef(errs.Conflict, "There is a host %s already; choose another name with --name.", wished)
		}
		return wished, err
	}
	base := strings.Trim(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '.' {
			return r
		}
		return '-'
	}, strings.ToLower(hostname)), "-.")
	if base = base[:min(len(base), 50)]; validName(base) != nil {
		base = "host"
	}
	if err := lockNames(ctx, tx, base); err != nil { // machines of one image join at once, and would all choose the same one
		return "", err
	}
	for n := 1; ; n++ {
		name := base
		if n > 1 {
			name = fmt.Sprintf("%s-%d", base, n)
		}
		if taken, err := nameTaken(ctx, tx, name); err != nil || !taken {
			return name, err
		}
	}
}

const (
	tokenLife   = 10 * time.Minute // longest that a host's token may live
	tokenLeeway = time.Minute
)

// Authenticate returns the host that signed token for audience.
func (s *Service) Authenticate(ctx context.Context, token, audience string) (auth.Caller, error) {
	var claims jwt.RegisteredClaims
	var name string
	var state State
	var broken error // of the database: says nothing about the token
	_, err := jwt.ParseWithClaims(token, &claims, func(*jwt.Token) (any, error) {
		key, n, st, err := keyOf(ctx, s.pool, claims.Subject)
		if err != nil && !pg.IsNone(err) {
			broken = fmt.Errorf("read the host's key: %w", err)
		}
		if err != nil {
			return nil, err
		}
		name, state = n, st
		return ed25519.PublicKey(key), nil
	}, jwt.WithValidMethods([]string{"EdDSA"}), jwt.WithAudience(audience), jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithLeeway(tokenLeeway))
	if broken != nil {
		return auth.Caller{}, broken
	}
	if err != nil {
		return auth.Caller{}, errs.E(errs.Unauthenticated, badToken(claims), err)
	}
	if claims.IssuedAt == nil || claims.ExpiresAt.Sub(claims.IssuedAt.Time) > tokenLife {
		return auth.Caller{}, errs.E(errs.Unauthenticated, "The host's token lives too long; upgrade the agent.")
	}
	switch state {
	case Retired:
		return auth.Caller{}, errs.E(errs.Denied, "This host was retired from the fleet; uninstall its agent.")
	case Pending:
		return auth.Caller{}, errs.Ef(errs.Denied, "This host waits for approval: remotegpu host approve %s", name)
	}
	return auth.Caller{Kind: auth.KindHost, ID: claims.Subject, Name: name}, nil
}

// Key returns the public key of the host that asks.
func (s *Service) Key(ctx context.Context, c auth.Caller) (ed25519.PublicKey, error) {
	if err := c.Require(auth.HostService, ""); err != nil {
		return nil, err
	}
	key, _, _, err := keyOf(ctx, s.pool, c.ID)
	return key, noHost(err, c.ID)
}

// badToken says what is wrong with a token that did not verify: mostly clocks.
func badToken(claims jwt.RegisteredClaims) string {
	if claims.IssuedAt != nil {
		if off := time.Until(claims.IssuedAt.Time); math.Abs(off.Minutes()) > 2 {
			return fmt.Sprintf("The host's clock is %s off; set it right (timedatectl set-ntp true).", off.Abs().Round(time.Minute))
		}
	}
	return "The host's token is not valid; if this goes on, join the host again."
}
