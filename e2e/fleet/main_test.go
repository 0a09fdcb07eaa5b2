package main

import (
	"strings"
	"testing"
	"time"
)

func TestCommandLine(t *testing.T) {
	s, err := parse([]string{"--token", "rgj_x", "--agents", "7", "--versions", "0.1.0,0.2.0", "--for", "2m", "--slow", "0.1", "--telemetry", "10s"})
	if err != nil || s.Agents != 7 || len(s.Versions) != 2 || s.until != 2*time.Minute || s.Slow != 0.1 || s.Telemetry != 10*time.Second || s.Together {
		t.Errorf("%+v, %v", s, err)
	}
	for want, args := range map[string][]string{
		"give --token": {},
		"is no flag":   {"--token", "rgj_x", "100"},
		"--agents":     {"--token", "rgj_x", "--agents", "0"},
		"--telemetry":  {"--token", "rgj_x", "--telemetry", "100ms"},
		"no such file": {"--token", "rgj_x", "--ca", "/nowhere/ca.pem"},
	} {
		if _, err := parse(args); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", args, err, want)
		}
	}
}
