// Command audit looks for known holes in what we link and for risky places in
// our code, with govulncheck and gosec as Go modules.
//
// It owns what is accepted of their findings: accepted.txt, each line with a
// reason. Its invariant: a finding that no line accepts fails it, and so does a
// line that accepts nothing any more, or whose day has come.
package main

import (
	"bufio"
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

//go:embed accepted.txt
var acceptedText string

// accepted is a line of accepted.txt: RULE PLACE UNTIL REASON. The place is a
// file, or * for everywhere; the day may be "always".
type accepted struct {
	rule, place string
	until       time.Time
	used        bool
}

// finding is what a tool has found.
type finding struct{ rule, place, text string }

func main() {
	gosec := flag.String("gosec", "", "module of gosec, with version")
	govulncheck := flag.String("govulncheck", "", "module of govulncheck, with version")
	vulndb := flag.String("vulndb", "", "module of the vulnerability database, with version")
	flag.Parse()
	if err := run(*gosec, *govulncheck, *vulndb); err != nil {
		fmt.Fprintln(os.Stderr, "audit:", err)
		os.Exit(1)
	}
}

func run(gosec, govulncheck, vulndb string) error {
	lines, err := parseAccepted(acceptedText)
	if err != nil {
		return err
	}
	code, err := riskyCode(gosec)
	if err != nil {
		return fmt.Errorf("gosec: %w", err)
	}
	holes, err := knownHoles(govulncheck, vulndb)
	if err != nil {
		return fmt.Errorf("govulncheck: %w", err)
	}
	return errors.Join(judge(append(code, holes...), lines, time.Now())...)
}

func parseAccepted(text string) (all []*accepted, err error) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		if len(fields) < 4 {
			return nil, fmt.Errorf("accepted.txt: %q must be RULE PLACE UNTIL REASON", strings.TrimSpace(line))
		}
		a := &accepted{rule: fields[0], place: fields[1]}
		if fields[2] != "always" {
			if a.until, err = time.Parse(time.DateOnly, fields[2]); err != nil {
				return nil, fmt.Errorf("accepted.txt: %s: %w", fields[0], err)
			}
		}
		all = append(all, a)
	}
	return all, nil
}

// judge returns what is wrong.
func judge(found []finding, lines []*accepted, now time.Time) (faults []error) {
	for _, f := range found {
		ok := false
		for _, a := range lines {
			if a.rule == f.rule && (a.place == "*" || a.place == f.place) {
				a.used = true
				ok = ok || a.until.IsZero() || now.Before(a.until)
			}
		}
		if !ok {
			faults = append(faults, fmt.Errorf("%s %s: %s", f.rule, f.place, f.text))
		}
	}
	for _, a := range lines {
		if !a.used {
			faults = append(faults, fmt.Errorf("accepted.txt: %s %s accepts nothing any more: take it out", a.rule, a.place))
		}
	}
	return faults
}

// riskyCode runs gosec over everything but tests.
func riskyCode(module string) ([]finding, error) {
	out, err := output("go", "run", module, "-quiet", "-fmt", "json", "-exclude-dir", "e2e", "-exclude-dir", "run", "./...")
	if len(out) == 0 {
		return nil, err // it ends with 1 when it has found something
	}
	return parseGosec(out)
}

func parseGosec(out []byte) (all []finding, err error) {
	var report struct {
		Issues []struct {
			Rule    string `json:"rule_id"`
			File    string
			Line    string
			Details string
		}
	}
	if err := json.Unmarshal(out, &report); err != nil {
		return nil, err
	}
	here, err := os.Getwd()
	for _, i := range report.Issues {
		file, _ := strings.CutPrefix(i.File, here+"/")
		all = append(all, finding{i.Rule, file, "line " + i.Line + ": " + i.Details})
	}
	return all, err
}

// knownHoles runs govulncheck against the database as it was at its version:
// vuln.go.dev need not be reached, and the answer is the same tomorrow.
func knownHoles(module, vulndb string) ([]finding, error) {
	_, version, _ := strings.Cut(vulndb, "@")
	out, err := output("go", "mod", "download", "-json", vulndb)
	var db struct{ Dir string }
	if err != nil || json.Unmarshal(out, &db) != nil {
		return nil, fmt.Errorf("the database %s cannot be fetched from the Go proxy, so nothing is known of holes: %w", vulndb, err)
	}
	fmt.Printf("known holes as of %s; newer ones: raise VULNDB in the Makefile (go list -m golang.org/x/vulndb@latest)\n", day(version))
	dir, err := os.MkdirTemp("", "vulndb")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	index := "golang.org/x/vulndb/cmd/indexdb@" + version
	if _, err := output("go", "run", index, "-vulns", filepath.Join(db.Dir, "data/osv"), "-out", dir); err != nil {
		return nil, fmt.Errorf("index the database: %w", err)
	}
	out, err = output("go", "run", module, "-format", "json", "-db", "file://"+dir, "./...")
	if err != nil {
		return nil, err
	}
	return parseHoles(bytes.NewReader(out))
}

// day reads the day out of a pseudo-version.
func day(version string) string {
	m := regexp.MustCompile(`-(\d{4})(\d\d)(\d\d)\d{6}-`).FindStringSubmatch(version)
	if m == nil {
		return version
	}
	return strings.Join(m[1:], "-")
}

// parseHoles returns each hole whose code can be reached, once.
func parseHoles(r io.Reader) (all []finding, err error) {
	for in := json.NewDecoder(bufio.NewReader(r)); ; {
		var m struct {
			Finding *struct {
				OSV   string
				Fixed string `json:"fixed_version"`
				Trace []struct{ Module, Version, Function string }
			}
		}
		if err := in.Decode(&m); err == io.EOF {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		if m.Finding == nil || len(m.Finding.Trace) == 0 || m.Finding.Trace[0].Function == "" {
			continue // of a module or package alone: we do not call it
		}
		at := m.Finding.Trace[0]
		f := finding{m.Finding.OSV, at.Module, "in " + at.Version + ", mended in " + m.Finding.Fixed + ": go get " + at.Module + "@" + m.Finding.Fixed}
		if at.Module == "stdlib" {
			f.text = "in " + at.Version + ", mended in " + m.Finding.Fixed + ": build with that Go"
		}
		if !slices.Contains(all, f) {
			all = append(all, f)
		}
	}
}

func output(name string, args ...string) ([]byte, error) {
	cmd := exec.Command(name, args...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return out.Bytes(), fmt.Errorf("%w: %.1000s", err, said.String())
	}
	return out.Bytes(), nil
}
