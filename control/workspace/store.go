package workspace

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/pg"
)

const columns = "w.id, w.name, w.created_at"

func insert(ctx context.Context, db pg.DB, w Workspace) error {
	_, err := db.Exec(ctx, "insert into workspaces (id, name, created_at) values ($1, $2, $3)", w.ID, w.Name, w.CreatedAt)
	return err
}

func find(ctx context.Context, db pg.DB, nameOrID string) (Workspace, error) {
	rows, err := db.Query(ctx, "select "+columns+" from workspaces w where w.id = $1 or w.name = $1", nameOrID)
	if err != nil {
		return Workspace{}, err
	}
	return pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[Workspace])
}

// list returns all workspaces, or those of one user when user is not empty.
func list(ctx context.Context, db pg.DB, user string) ([]Workspace, error) {
	rows, err := db.Query(ctx, "select "+columns+` from workspaces w
		where $1 = '' or exists (select from workspace_members m where m.workspace_id = w.id and m.user_id = $1)
		order by w.name`, user)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[Workspace])
}

func members(ctx context.Context, db pg.DB, ws string) ([]Membership, error) {
	rows, err := db.Query(ctx, `select m.user_id, u.email, m.role, m.added_at
		from workspace_members m join users u on u.id = m.user_id where m.workspace_id = $1 order by lower(u.email)`, ws)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[Membership])
}

// lock makes changes of one workspace's members wait for each other.
func lock(ctx context.Context, tx pg.Tx, ws string) error {
	_, err := tx.Exec(ctx, "select from workspaces where id = $1 for update", ws)
	return err
}

func userByEmail(ctx context.Context, db pg.DB, email string) (id string, err error) {
	err = db.QueryRow(ctx, "select id from users where lower(email) = lower($1) or id = $1", email).Scan(&id)
	return id, err
}

func setMember(ctx context.Context, db pg.DB, ws, user string, role auth.Role) error {
	_, err := db.Exec(ctx, `insert into workspace_members (workspace_id, user_id, role) values ($1, $2, $3)
		on conflict (workspace_id, user_id) do update set role = excluded.role`, ws, user, role)
	return err
}

func removeMember(ctx context.Context, db pg.DB, ws, user string) (bool, error) {
	tag, err := db.Exec(ctx, "delete from workspace_members where workspace_id = $1 and user_id = $2", ws, user)
	return tag.RowsAffected() > 0, err
}

func roleOf(ctx context.Context, db pg.DB, ws, user string) (role auth.Role, err error) {
	err = db.QueryRow(ctx, "select role from workspace_members where workspace_id = $1 and user_id = $2", ws, user).Scan(&role)
	if pg.IsNone(err) {
		return "", nil
	}
	return role, err
}

func owners(ctx context.Context, db pg.DB, ws string) (n int, err error) {
	err = db.QueryRow(ctx, "select count(*) from workspace_members where workspace_id = $1 and role = 'owner'", ws).Scan(&n)
	return n, err
}
