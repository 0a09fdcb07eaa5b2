package main

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestJudge(t *testing.T) {
	t.Parallel()
	lines, err := parseAccepted("# why\nG1 * always text\nG2 a.go always text\nG3 * 2026-12-01 text\nG4 * always text\n")
	if err != nil {
		t.Fatal(err)
	}
	found := []finding{{"G1", "x.go", "fine"}, {"G2", "a.go", "fine"}, {"G2", "b.go", "elsewhere"}, {"G3", "c.go", "in time"}, {"G9", "d.go", "new"}}
	said := errors.Join(judge(found, lines, time.Date(2026, 11, 30, 0, 0, 0, 0, time.UTC))...).Error()
	if want := "G2 b.go: elsewhere\nG9 d.go: new\naccepted.txt: G4 * accepts nothing any more: take it out"; said != want {
		t.Errorf("says\n%s\nwant\n%s", said, want)
	}
	if said := judge(found[3:4], lines[2:3], time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)); len(said) != 1 {
		t.Errorf("after its day: %v", said)
	}
	for _, bad := range []string{"G1 *", "G1 * tomorrow text"} {
		if _, err := parseAccepted(bad); err == nil {
			t.Errorf("%q is a line", bad)
		}
	}
}

func TestEveryLineHasAReason(t *testing.T) {
	t.Parallel()
	if all, err := parseAccepted(acceptedText); err != nil || len(all) == 0 {
		t.Errorf("%d lines, %v", len(all), err)
	}
}

func TestOutputOfTheTools(t *testing.T) {
	t.Parallel()
	holes, err := parseHoles(strings.NewReader(`{"config":{}} {"finding":{"osv":"GO-1","fixed_version":"v2","trace":[{"module":"m","version":"v1"}]}}
		{"finding":{"osv":"GO-1","fixed_version":"v2","trace":[{"module":"m","version":"v1","function":"F"}]}}
		{"finding":{"osv":"GO-1","fixed_version":"v2","trace":[{"module":"m","version":"v1","function":"G"}]}}`))
	if err != nil || len(holes) != 1 || holes[0].rule != "GO-1" || holes[0].place != "m" {
		t.Errorf("%+v, %v", holes, err)
	}
	code, err := parseGosec([]byte(`{"Issues":[{"rule_id":"G402","file":"/x/a.go","line":"7","details":"TLS"}]}`))
	if err != nil || len(code) != 1 || code[0] != (finding{"G402", "/x/a.go", "line 7: TLS"}) {
		t.Errorf("%+v, %v", code, err)
	}
	if got := day("v0.0.0-20261105234957-e22db6528018"); got != "2026-11-05" {
		t.Error(got)
	}
}
