package app

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/ticket"
)

// columns of an app in select lists over environments e, workspaces w and, when
// somebody has said something of it, apps a.
const columns = `e.id as environment_id, e.name as environment_name, w.id as workspace_id, w.name as workspace_name,
	coalesce(a.name, '') as name, coalesce(a.port, 0) as port, coalesce(a.socket, '') as socket, coalesce(a.base_path, false) as base_path,
	coalesce(a.visibility, '') as visibility, coalesce(a.users, '{}') as users, coalesce(a.owner_id, '') as owner_id,
	coalesce(a.created_at, e.created_at) as created_at,
	array(select u.email from users u where u.id = any(a.users) order by lower(u.email)) as emails
	from environments e join workspaces w on w.id = e.workspace_id `

// find returns the apps that a reference may mean: with a label one for each
// environment whose id begins like that.
func find(ctx context.Context, db pg.DB, r ref) ([]App, error) {
	port, _ := portOf(r.app)
	const mine = "left join apps a on a.environment_id = e.id and (a.name = $1 or a.port = $2 and $2 > 0) where e.want <> 'deleted' and "
	switch {
	case r.id != "":
		return query(ctx, db, mine+"e.id = $3", r.app, port, r.id)
	case r.label != "":
		return query(ctx, db, mine+"left(e.id, 14) = $3", r.app, port, "env_"+r.key)
	}
	return query(ctx, db, mine+"w.name = $3 and e.name = $4", r.app, port, r.workspace, r.env)
}

func list(ctx context.Context, db pg.DB, workspace string) ([]App, error) {
	return query(ctx, db, "join apps a on a.environment_id = e.id where w.id = $1 order by e.name, a.name", workspace)
}

func get(ctx context.Context, db pg.DB, env, name string) (App, error) {
	all, err := query(ctx, db, "join apps a on a.environment_id = e.id where e.id = $1 and a.name = $2", env, name)
	if err == nil && len(all) == 0 {
		err = pgx.ErrNoRows
	}
	if err != nil {
		return App{}, err
	}
	return all[0], nil
}

func query(ctx context.Context, db pg.DB, rest string, args ...any) ([]App, error) {
	rows, err := db.Query(ctx, "select "+columns+rest, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[App])
}

// put writes an app anew; who exposed it first stays its owner.
func put(ctx context.Context, db pg.DB, a App) error {
	_, err := db.Exec(ctx, `insert into apps (environment_id, name, port, socket, base_path, visibility, users, owner_id)
		values ($1, $2, $3, $4, $5, $6, $7, $8)
		on conflict (environment_id, name) do update set port = excluded.port, socket = excluded.socket, base_path = excluded.base_path,
		visibility = excluded.visibility, users = excluded.users`,
		a.Environment, a.Name, a.Port, a.Socket, a.BasePath, a.Visibility, a.UserIDs, a.Owner)
	return err
}

func setSocket(ctx context.Context, db pg.DB, env, name, socket string) error {
	_, err := db.Exec(ctx, "update apps set socket = $3 where environment_id = $1 and name = $2", env, name, socket)
	return err
}

func remove(ctx context.Context, db pg.DB, env, name string) (bool, error) {
	tag, err := db.Exec(ctx, "delete from apps where environment_id = $1 and name = $2", env, name)
	return tag.RowsAffected() > 0, err
}

// userIDs returns the ids of the users with these addresses, and the first
// address that is nobody's.
func userIDs(ctx context.Context, db pg.DB, emails []string) (ids []string, unknown string, err error) {
	for _, email := range emails {
		var id string
		err := db.QueryRow(ctx, "select id from users where lower(email) = lower($1)", email).Scan(&id)
		if pg.IsNone(err) {
			return nil, email, nil
		}
		if err != nil {
			return nil, "", err
		}
		ids = append(ids, id)
	}
	return ids, "", nil
}

// Kinds of ticket.
const (
	passLogin  = "app login"  // on the server's own origin: opens apps without another login
	passTicket = "app ticket" // used once, within seconds: becomes a cookie on the app's origin
	passCookie = "app cookie" // on the app's origin: opens the app
)

// lives of tickets, in seconds.
var lives = map[string]int{passLogin: loginLife, passTicket: ticketLife, passCookie: cookieLife}

// pass is what somebody may show instead of logging in: with an environment
// for one app of it, without for all of the user's.
type pass = ticket.Ticket[forApp]

type forApp struct {
	App   string `json:"app,omitempty"`
	State string `json:"state,omitempty"` // of a ticket: which browser may use it; empty: the first
}

func (s *Service) issue(ctx context.Context, kind string, p pass) (secret string, err error) {
	p.Kind = kind
	secret, _, err = ticket.Issue(ctx, s.pool, p, time.Duration(lives[kind])*time.Second)
	return secret, err
}
