// Command licences writes docs/licences.md: the licence of every Go module that
// is linked into a program of ours.
//
// It owns which licences may be: those that let Apache-2.0 programs be given
// on, also together with GPL-3.0 ones. Its invariant: a module whose licence it
// does not know stops it, so nothing comes in unread.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// programs are what a release has, by system.
var programs = []struct {
	system, cgo string
	paths       []string
}{
	{"linux", "1", []string{"./control", "./edge-agent", "./edge-agent/helper", "./edge-agent/nvml"}},
	{"darwin", "0", []string{"./control"}},
	{"windows", "0", []string{"./control"}},
}

// texts tell licences by what stands in them, the first that matches. All are
// compatible with GPL-3.0; whatever else there is (GPL itself, AGPL, SSPL, BUSL,
// EPL alone, …) is refused, because no line names it.
var texts = []struct {
	name  string
	has   []string
	hasNo []string
}{
	{"Apache-2.0", []string{"apache license", "version 2.0"}, nil},
	{"MPL-2.0", []string{"mozilla public license", "2.0"}, nil},
	{"MIT", []string{"permission is hereby granted, free of charge"}, nil},
	{"ISC", []string{"permission to use, copy, modify, and/or distribute this software for any purpose"}, nil},
	{"BSD-3-Clause", []string{"redistribution and use in source and binary forms", "endorse or promote"}, nil},
	{"BSD-2-Clause", []string{"redistribution and use in source and binary forms"}, []string{"endorse or promote", "advertising"}},
	{"Zlib", []string{"altered source versions must be plainly marked"}, nil},
	{"Unlicense", []string{"this is free and unencumbered software"}, nil},
}

// chosen are modules that let one choose, or whose file does not say it in full.
var chosen = map[string]string{
	"github.com/eclipse/paho.golang": "BSD-3-Clause", // EPL-2.0 or EDL-1.0, which is BSD-3-Clause
}

// note explains what stands in the table.
const note = `# Licences of what is linked

Go modules in the programs of a release; written by ` + "`go run ./deploy/licences`" + `, held current by its test. RemoteGPU itself is Apache-2.0.
paho.golang may be had under EPL-2.0 or EDL-1.0; it is taken under the second, which is BSD-3-Clause. Versions, and hashes of each, stand in go.mod
and go.sum, and in the SBOM of a release (` + "`dist/sbom.cdx.json`" + `, CycloneDX).

| module | licence |
| --- | --- |
`

type module struct {
	Path string
	Dir  string
	Main bool
}

func main() {
	text, err := table(".")
	if err == nil {
		err = os.WriteFile("docs/licences.md", []byte(text), 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "licences:", err)
		os.Exit(1)
	}
}

// table returns the page; root is the repository's.
func table(root string) (string, error) {
	var all []module
	for _, p := range programs {
		found, err := linked(root, p.paths, "GOOS="+p.system, "GOARCH=amd64", "CGO_ENABLED="+p.cgo)
		if err != nil {
			return "", err
		}
		all = append(all, found...)
	}
	slices.SortFunc(all, func(a, b module) int { return strings.Compare(a.Path, b.Path) })
	page, faults := note, []error{}
	for _, m := range slices.Compact(all) {
		name, err := licenceOf(m)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		page += "| " + m.Path + " | " + name + " |\n"
	}
	return page, errors.Join(faults...)
}

// linked lists the modules of others that programs are made of, some more than
// once.
func linked(root string, programs []string, env ...string) (all []module, err error) {
	cmd := exec.Command("go", append([]string{"list", "-deps", "-json=Module"}, programs...)...)
	cmd.Dir, cmd.Stderr = root, os.Stderr
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list modules: %w", err)
	}
	for in := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct{ Module *module }
		if err := in.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			return nil, err
		}
		if p.Module != nil && !p.Module.Main {
			all = append(all, *p.Module)
		}
	}
	return all, nil
}

func licenceOf(m module) (string, error) {
	if name, ok := chosen[m.Path]; ok {
		return name, nil
	}
	for _, pattern := range []string{"LICENSE*", "LICENCE*", "License*", "license*", "COPYING*"} {
		files, err := filepath.Glob(filepath.Join(m.Dir, pattern))
		if err != nil {
			return "", err
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				continue // a folder
			}
			if name := tell(string(text)); name != "" {
				return name, nil
			}
		}
	}
	return "", fmt.Errorf("%s: no licence that may be linked is found in %s: use another module", m.Path, m.Dir)
}

// tell returns the licence that a text is, or "".
func tell(text string) string {
	text = strings.ToLower(strings.Join(strings.Fields(text), " "))
	is := func(word string) bool { return strings.Contains(text, word) }
	for _, t := range texts {
		if !slices.ContainsFunc(t.has, func(w string) bool { return !is(w) }) && !slices.ContainsFunc(t.hasNo, is) {
			return t.name
		}
	}
	return ""
}
