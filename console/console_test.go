package console

import (
	"os/exec"
	"testing"
)

// TestScripts runs the tests of terminal.js and player.js.
func TestScripts(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "node", "--test", "terminal.test.mjs", "player.test.mjs").CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
