package app

import (
	"os/exec"
	"testing"
)

// TestJupyterExtension runs the tests of jupyter.py's rules; TestJupyter in e2e
// has it in a Jupyter.
func TestJupyterExtension(t *testing.T) {
	if out, err := exec.CommandContext(t.Context(), "python3", "testdata/jupyter_test.py").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
