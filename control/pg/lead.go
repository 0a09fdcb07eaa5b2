package pg

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	leadTry    = 500 * time.Millisecond // between tries to become the leader
	leadBeat   = time.Second            // between signs of life of the leader
	leadWithin = 2 * time.Second        // the database answers one, or the lead is over
	leadIdle   = 10 * time.Second       // the database ends the lead of one that is silent for so long

	// leadGrace is how long a successor waits, so that one who lost the lead has
	// noticed. One who is cut off notices after leadBeat and leadWithin, long
	// before leadIdle.
	leadGrace = time.Second
)

// Lead runs fn in one process at a time, of all that use the database and call
// it with the same name, until ctx ends: in whichever holds an advisory lock, on
// a connection of its own. The lock is lost with the connection, and with it
// fn's ctx ends; a leader that died, hangs or is cut off is succeeded within
// seconds. A database behind a pooler that changes connections between
// statements cannot do this.
func Lead(ctx context.Context, pool *Pool, name string, fn func(ctx context.Context) error) error {
	for ctx.Err() == nil {
		if err := leadOnce(ctx, pool, name, fn); err != nil && !errors.Is(err, errLeadLost) && ctx.Err() == nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(leadTry):
		}
	}
	return nil
}

// errLeadLost is every end of a lead that is not fn's.
var errLeadLost = errors.New("lead is lost")

func leadOnce(ctx context.Context, pool *Pool, name string, fn func(ctx context.Context) error) error {
	pooled, err := pool.Acquire(ctx)
	if err != nil {
		return errLeadLost
	}
	conn := pooled.Hijack() // the lock is the connection's: nobody else may have it
	defer func() {
		within, cancel := context.WithTimeout(context.WithoutCancel(ctx), leadWithin)
		defer cancel()
		conn.Close(within)
	}()
	if err := takeLead(ctx, conn, name); err != nil {
		return errLeadLost
	}
	leading, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() {
		defer stop()
		ended <- fn(leading)
	}()
	for leading.Err() == nil && isLeading(leading, conn) {
	}
	lost := leading.Err() == nil
	stop()
	if err := <-ended; !lost {
		return err
	}
	return errLeadLost
}

// takeLead waits until the lock is conn's.
func takeLead(ctx context.Context, conn *pgx.Conn, name string) error {
	if _, err := conn.Exec(ctx, fmt.Sprintf("set idle_session_timeout = %d", leadIdle.Milliseconds())); err != nil {
		return err
	}
	for waited := false; ; waited = true {
		got := false
		if err := answered(ctx, conn, "select pg_try_advisory_lock(hashtextextended('lead ' || $1, 0))", &got, name); err != nil {
			return err
		}
		pause := leadTry
		switch {
		case got && !waited:
			return nil
		case got:
			pause = leadGrace
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		if got {
			return nil
		}
	}
}

// isLeading waits for the next sign of life and reports whether the connection
// has it. An end that the database tells of is noticed at once.
func isLeading(ctx context.Context, conn *pgx.Conn) bool {
	quiet, cancel := context.WithTimeout(ctx, leadBeat)
	defer cancel()
	if _, err := conn.WaitForNotification(quiet); err != nil && conn.IsClosed() {
		return false
	}
	var one int
	return answered(ctx, conn, "select 1", &one) == nil
}

func answered(ctx context.Context, conn *pgx.Conn, sql string, to any, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, leadWithin)
	defer cancel()
	return conn.QueryRow(ctx, sql, args...).Scan(to)
}
