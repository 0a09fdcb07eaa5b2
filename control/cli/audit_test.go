package cli

import (
	"encoding/json"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// sql changes the database behind the server's back.
func (w *world) sql(line string) {
	w.t.Helper()
	conn, err := pgx.Connect(w.t.Context(), w.database)
	w.must(err)
	defer conn.Close(w.t.Context())
	_, err = conn.Exec(w.t.Context(), line)
	w.must(err)
}

// TestAuditVerify: what is said, and with which status, of a log that is whole,
// cut off and damaged.
func TestAuditVerify(t *testing.T) {
	w := newWorld(t)
	type result struct {
		Entries      int64
		Head, Damage string
		Expected     *bool
	}
	verify := func(args ...string) (r result, out string, code int) {
		out, code = w.run(append([]string{"-o", "json", "audit", "verify"}, args...)...)
		_ = json.NewDecoder(strings.NewReader(out)).Decode(&r)
		return r, out, code
	}
	var r result
	for deadline := time.Now().Add(time.Minute); r.Entries < 4; time.Sleep(100 * time.Millisecond) { // sealed within seconds
		var out string
		var code int
		if r, out, code = verify(); code != 0 || time.Now().After(deadline) {
			t.Fatalf("%d %s", code, out)
		}
	}
	if again, out, code := verify("--expect", r.Head); code != 0 || again.Expected == nil || !*again.Expected {
		t.Errorf("%d %s", code, out)
	}
	if out, code := w.run("audit", "verify"); code != 0 || !strings.Contains(out, r.Head) || !strings.Contains(out, "ENTRIES") {
		t.Errorf("%d %s", code, out)
	}
	if out, code := w.run("audit", "verify", "--expect", "none"); code != 1 || !strings.Contains(out, "hexadecimal") {
		t.Errorf("%d %s", code, out)
	}
	w.sql("delete from audit_entries where seal >= " + strconv.FormatInt(r.Entries, 10))
	if _, out, code := verify(); code != 0 {
		t.Errorf("%d %s", code, out)
	}
	if cut, out, code := verify("--expect", r.Head); code != 1 || cut.Expected == nil || *cut.Expected || !strings.Contains(out, "no entry has the hash "+r.Head) {
		t.Errorf("%d %s", code, out)
	}
	w.sql("update audit_entries set actor = 'usr_x' where seal = 2")
	if bad, out, code := verify(); code != 1 || bad.Entries != 1 || bad.Damage == "" || !strings.Contains(out, "the audit log is damaged: entry") {
		t.Errorf("%d %s", code, out)
	}
}

// TestPassword: the login that changes it stays, others do not.
func TestPassword(t *testing.T) {
	w := newWorld(t)
	const first, second = "correct horse", "battery staple"
	_, err := w.makeUser("ann@example.org", first)
	w.must(err)
	mine, err := w.loginAs("ann@example.org", first)
	w.must(err)
	other, err := w.loginAs("ann@example.org", first)
	w.must(err)
	a := &app{profile: w.config, errOut: os.Stderr}
	w.must(a.remember(t.Context(), mine))
	stdin := os.Stdin
	defer func() { os.Stdin = stdin }()
	for _, c := range []struct {
		old  string
		code int
		says string
	}{{"wrong", 1, "is wrong"}, {first, 0, "other logins have ended"}} {
		r, in, err := os.Pipe()
		w.must(err)
		_, err = in.WriteString(c.old + "\n" + second + "\n")
		w.must(err)
		in.Close()
		os.Stdin = r
		if out, code := w.run("password"); code != c.code || !strings.Contains(out, c.says) {
			t.Errorf("%d %s", code, out)
		}
		r.Close()
	}
	if out, code := w.run("key", "ls"); code != 0 {
		t.Errorf("the login that changed it: %s", out)
	}
	if err := other.call(t.Context(), http.MethodGet, "/api/v1/account", nil, nil); err == nil {
		t.Error("another login goes on")
	}
	if _, err := w.loginAs("ann@example.org", second); err != nil {
		t.Error(err)
	}
}

func (w *world) makeUser(email, password string) (row userRow, err error) {
	err = w.client.call(w.t.Context(), http.MethodPost, "/api/v1/users", map[string]string{"email": email, "password": password}, &row)
	return row, err
}

func (w *world) loginAs(email, password string) (*client, error) {
	c, err := newClient(w.client.profile)
	w.must(err)
	var out struct{ Token string }
	err = c.call(w.t.Context(), http.MethodPost, "/api/v1/login", map[string]string{"email": email, "password": password}, &out)
	c.Token = out.Token
	return c, err
}
