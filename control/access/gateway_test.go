package access

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/remotegpu/remotegpu/control/errs"
)

// TestTextAtTheTerminal: what goes wrong around a session has its sentence.
func TestTextAtTheTerminal(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("wait for the host to dial: %w", context.DeadlineExceeded), "did not answer in time"},
		{fmt.Errorf("wait for the host to dial: %w", context.Canceled), "is stopping"},
		{fmt.Errorf("write audit entry: %w", &pgconn.PgError{Code: "53100"}), "no room left"},
		{fmt.Errorf("find environment: %w", &pgconn.PgError{Code: "57P01"}), "database does not answer"},
		{errs.E(errs.Denied, "Not you."), "Not you."},
		{errors.New("a secret"), "Internal error"},
	} {
		if got := text(tt.err); !strings.Contains(got, tt.want) {
			t.Errorf("%v: %q lacks %q", tt.err, got, tt.want)
		}
	}
}
