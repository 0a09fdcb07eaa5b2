package workspace

import (
	"testing"

	"github.com/remotegpu/remotegpu/control/account"
	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// callers are the people of a small test world.
type callers struct{ admin, owner, member, stranger auth.Caller }

func setup(t *testing.T) (*Service, *pg.Pool, callers) {
	t.Helper()
	pool := pgtest.New(t)
	s, accounts := New(pool), account.New(pool)
	system := auth.System("test")
	users := map[string]account.User{}
	for _, name := range []string{"admin", "owner", "member", "stranger"} {
		u, err := accounts.CreateUser(t.Context(), system, account.User{Email: name + "@example.org", Admin: name == "admin"}, "correct horse")
		if err != nil {
			t.Fatal(err)
		}
		users[name] = u
	}
	if _, err := s.Create(t.Context(), system, "lab", "owner@example.org"); err != nil {
		t.Fatal(err)
	}
	if err := s.SetMember(t.Context(), system, "lab", "member@example.org", auth.Member); err != nil {
		t.Fatal(err)
	}
	caller := func(name string) auth.Caller {
		c, err := accounts.ByUser(t.Context(), users[name])
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	return s, pool, callers{caller("admin"), caller("owner"), caller("member"), caller("stranger")}
}

func wantKind(t *testing.T, err error, want errs.Kind) {
	t.Helper()
	if err == nil || errs.KindOf(err) != want {
		t.Errorf("got error %v of kind %d, want kind %d", err, errs.KindOf(err), want)
	}
}

func TestStrangersSeeNothing(t *testing.T) {
	t.Parallel()
	s, _, c := setup(t)
	_, err := s.Find(t.Context(), c.stranger, "lab")
	wantKind(t, err, errs.NotFound)
	_, missing := s.Find(t.Context(), c.stranger, "no-such")
	if errs.Text(err) != errs.Text(missing) {
		t.Errorf("a secret workspace answers %q, a missing one %q: they must not differ", errs.Text(err), errs.Text(missing))
	}
	all, err := s.List(t.Context(), c.stranger)
	if err != nil || len(all) != 0 {
		t.Errorf("List = %v, %v", all, err)
	}
	if all, _ := s.List(t.Context(), c.member); len(all) != 1 {
		t.Errorf("a member sees %v", all)
	}
}

func TestAWorkspaceKeepsAnOwner(t *testing.T) {
	t.Parallel()
	s, _, c := setup(t)
	ctx := t.Context()
	wantKind(t, s.RemoveMember(ctx, c.owner, "lab", "owner@example.org"), errs.Conflict)
	wantKind(t, s.SetMember(ctx, c.owner, "lab", "owner@example.org", auth.Viewer), errs.Conflict)
	if err := s.SetMember(ctx, c.owner, "lab", "member@example.org", auth.Owner); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveMember(ctx, c.owner, "lab", "owner@example.org"); err != nil {
		t.Errorf("with another owner there: %v", err)
	}
}

func TestOnlyOwnersMakeOwners(t *testing.T) {
	t.Parallel()
	s, _, c := setup(t)
	ctx := t.Context()
	wantKind(t, s.SetMember(ctx, c.member, "lab", "stranger@example.org", auth.Viewer), errs.Denied)
	admin := c.member
	admin.Roles = map[string]auth.Role{}
	for ws := range c.member.Roles {
		admin.Roles[ws] = auth.Admin
	}
	if err := s.SetMember(ctx, admin, "lab", "stranger@example.org", auth.Viewer); err != nil {
		t.Errorf("a workspace admin adds a viewer: %v", err)
	}
	wantKind(t, s.SetMember(ctx, admin, "lab", "stranger@example.org", auth.Owner), errs.Denied)
	wantKind(t, s.RemoveMember(ctx, admin, "lab", "owner@example.org"), errs.Denied)
}

func TestNames(t *testing.T) {
	t.Parallel()
	s, _, c := setup(t)
	for _, name := range []string{"", "Lab", "a b", "-a", "a-", "ä", "a/b"} {
		_, err := s.Create(t.Context(), c.admin, name, "owner@example.org")
		wantKind(t, err, errs.Invalid)
	}
	_, err := s.Create(t.Context(), c.admin, "lab", "owner@example.org")
	wantKind(t, err, errs.Conflict)
	_, err = s.Create(t.Context(), c.owner, "other", "owner@example.org")
	wantKind(t, err, errs.Denied)
}
