// Package remotegpu_test holds the repository's rules as tests: who may import
// whom and why, how large things may be, whose tables are whose. A rule that
// hurts is changed here, with its reason in ARCHITECTURE.md.
package remotegpu_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/remotegpu/remotegpu/"

// areas are the folders at the root that hold Go: what each may import of ours.
var areas = map[string]struct {
	may    []string
	reason string
}{
	"protocol":   {nil, "the wire stands alone, so that either end can be rewritten against it"},
	"broker":     {[]string{"protocol"}, "who may do what is passed in as funcs, so that it can be tested and replaced without the control plane"},
	"edge-agent": {[]string{"protocol"}, "an agent knows its control plane by the wire alone: versions of the two differ in the field"},
	"control":    {[]string{"protocol", "broker", "console", "installers"}, "the control plane knows agents by the wire alone: versions of the two differ in the field"},
	"console":    {nil, "it only embeds the built console"},
	"installers": {nil, "it only embeds the install scripts"},
	"deploy":     {nil, "what builds images and packages is no part of a program"},
	"e2e":        {[]string{"protocol", "broker", "control", "edge-agent", "console", "installers"}, "it tests the whole"},
}

// layers are the packages of an area from the bottom up. A package imports only
// those on lines above its own; two of one line do not know each other.
var layers = map[string][][]string{
	"protocol": {
		{"protocol"},
		{"protocol/ahead", "protocol/resume", "protocol/scrollback", "protocol/tunnel"},
		{"protocol/sshd"},
	},
	"broker": {{"broker"}, {"broker/external"}},
	"control": {
		{"control/terminal", "control/errs", "control/forward", "control/door", "control/progress", "control/sshconfig", "control/transfer"},
		{"control/pg"},
		{"control/pgtest"},
		{"control/auth", "control/keys", "control/replica"},
		{"control/web", "control/ticket"},
		{"control/audit"},
		{"control/account"},
		{"control/workspace"},
		{"control/host"},
		{"control/dispatch"},
		{"control/scheduler"},
		{"control/environment", "control/recording"},
		{"control/access", "control/registry"},
		{"control/app", "control/rdp"},
		{"control/server"},
		{"control/cli"},
		{"control"},
	},
	"edge-agent": {
		{"edge-agent/gpu/wire", "edge-agent/reach", "edge-agent/reconcile", "edge-agent/ctr/logs", "edge-agent/helper/files", "edge-agent/network", "edge-agent/rdp", "edge-agent/supervise"},
		{"edge-agent/gpu", "edge-agent/state", "edge-agent/ctr", "edge-agent/relay"},
		{"edge-agent/inventory", "edge-agent/enroll", "edge-agent/link", "edge-agent/nvml", "edge-agent/helper"},
		{"edge-agent/agent"},
		{"edge-agent"},
	},
	"console":    {{"console"}},
	"installers": {{"installers"}},
	"deploy":     {{"deploy/images/oci", "deploy/audit", "deploy/licences"}},
	"e2e":        {{"e2e/chaos", "e2e/fleet/sim"}, {"e2e"}, {"e2e/bench", "e2e/fleet", "e2e/peer"}},
}

// outside are packages of others that only some of ours may import.
var outside = []struct {
	prefix string
	only   []string // folders; empty: none
	reason string
}{
	{"github.com/NVIDIA/", []string{"edge-agent/nvml"}, "it needs cgo and can crash: the agent is static and asks a child process"},
	{"C", []string{"edge-agent/nvml"}, "every other program is static"},
	{"github.com/jackc/", []string{"control", "e2e"}, "only the control plane has a database (a test from outside looks into it)"},
	{"database/sql", nil, "the one dialect is PostgreSQL, by pgx"},
	{"log", nil, "log/slog, passed in"},
	{"github.com/mochi-mqtt/", []string{"broker", "edge-agent/link", "e2e"}, "the broker is replaceable: others see package broker (a link's tests run a real one)"},
	{"github.com/containerd/", []string{"edge-agent/ctr", "edge-agent/network", "edge-agent/inventory", "e2e"}, "the reconciler knows containers by package ctr alone (inventory asks the version)"},
}

// helperMay is all that goes into the program in every container.
var helperMay = []string{"github.com/creack/pty", "github.com/pkg/sftp", "golang.org/x/sys/", module + "protocol", module + "edge-agent/helper/"}

// tables says which package writes which tables. Reading is free.
var tables = map[string][]string{
	"control/keys":        {"secret_keys"},
	"control/replica":     {"replicas"},
	"control/audit":       {"audit_entries"},
	"control/account":     {"users", "api_tokens", "sessions", "ssh_keys"},
	"control/workspace":   {"workspaces", "workspace_members"},
	"control/host":        {"hosts", "host_usage", "gpus", "join_tokens", "host_events"},
	"control/environment": {"environments", "environment_events", "environment_reports"},
	"control/scheduler":   {"host_allocations", "gpu_allocations", "placement_queue", "placements", "scheduler_settings"},
	"control/dispatch":    {"desired_documents"},
	"control/ticket":      {"tickets"},
	"control/recording":   {"recordings", "recording_journal", "recording_policies"},
	"control/app":         {"apps"},
}

// Limits; what is over one of them today stands in tooLarge with its size,
// which may only fall.
const (
	maxFile     = 500  // lines
	maxTestFile = 1000 // lines
	maxFunction = 70   // lines
	maxParams   = 5
	maxFiles    = 15 // in a package, tests not counted
)

var tooLarge = map[string]int{
	"control/audit/audit.go:Record parameters":       7,
	"control/cli/env.go:envVerb parameters":          6,
	"control/environment/read.go:Events parameters":  6,
	"control/environment/read.go:Logs parameters":    6,
	"control/environment/store.go:tell parameters":   7,
	"control/host/store.go:ownEvent parameters":      6,
	"control/workspace/service.go:change parameters": 6,
	"edge-agent/ctr/remove.go:signal parameters":     6,
}

// goFile is one parsed file of the repository.
type goFile struct {
	path   string // from the root
	dir    string // of its package, from the root
	test   bool
	lines  int
	set    *token.FileSet
	syntax *ast.File
}

var skipped = regexp.MustCompile(`^(\..+|node_modules|testdata|bin|dist|run|shared|vendor)$`)

// load parses every Go file of the repository.
func load(t *testing.T) (files []goFile) {
	t.Helper()
	err := filepath.WalkDir(".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && name != "." && skipped.MatchString(entry.Name()) {
			return filepath.SkipDir
		}
		if entry.IsDir() || !strings.HasSuffix(name, ".go") || filepath.Dir(name) == "." {
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		set := token.NewFileSet()
		syntax, err := parser.ParseFile(set, name, text, parser.ParseComments)
		if err != nil {
			return err
		}
		files = append(files, goFile{
			path: filepath.ToSlash(name), dir: filepath.ToSlash(filepath.Dir(name)), test: strings.HasSuffix(name, "_test.go"),
			lines: strings.Count(string(text), "\n"), set: set, syntax: syntax,
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Fatal("no Go files found: run this test in the repository's root")
	}
	return files
}

func area(dir string) string {
	first, _, _ := strings.Cut(dir, "/")
	return first
}

// layer returns how high a package stands in its area, -1 if it is not listed.
func layer(dir string) int {
	return slices.IndexFunc(layers[area(dir)], func(line []string) bool { return slices.Contains(line, dir) })
}

func TestEveryPackageHasItsPlace(t *testing.T) {
	seen := make(map[string]bool)
	for _, f := range load(t) {
		if seen[f.dir] {
			continue
		}
		seen[f.dir] = true
		if _, ok := areas[area(f.dir)]; !ok {
			t.Errorf("%s: a new folder at the root: say in areas (arch_test.go) what it may import and why", f.dir)
		} else if layer(f.dir) < 0 {
			t.Errorf("%s: a new package: add it to layers[%q] in arch_test.go, above what it imports and below what imports it", f.dir, area(f.dir))
		}
	}
}

func TestImportsPointDown(t *testing.T) {
	for _, f := range load(t) {
		for _, imported := range f.syntax.Imports {
			name, err := strconv.Unquote(imported.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if to, ours := strings.CutPrefix(name, module); ours {
				if fault := importFault(f, to); fault != "" {
					t.Errorf("%s imports %s: %s", f.path, to, fault)
				}
			}
		}
	}
}

// importFault says why a file must not import a package of ours; empty: it may.
func importFault(f goFile, to string) string {
	from := f.dir
	if from == to { // an external test of its own package
		return ""
	}
	if strings.HasSuffix(path.Base(to), "test") {
		if !f.test && !strings.HasSuffix(path.Base(from), "test") && area(from) != "e2e" {
			return "it is a test kit, and this file is no test"
		}
		return ""
	}
	if area(from) != area(to) {
		rule := areas[area(from)]
		if !slices.Contains(rule.may, area(to)) {
			return rule.reason
		}
		return ""
	}
	if low, high := layer(to), layer(from); low >= 0 && high >= 0 && low >= high {
		return "it does not stand below in layers (arch_test.go): turn the dependency round, or pass a func in"
	}
	return ""
}

func TestImportsOfOthers(t *testing.T) {
	for _, f := range load(t) {
		for _, imported := range f.syntax.Imports {
			name, err := strconv.Unquote(imported.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			for _, rule := range outside {
				if (name == rule.prefix || strings.HasSuffix(rule.prefix, "/") && strings.HasPrefix(name, rule.prefix)) && !within(f.dir, rule.only) {
					t.Errorf("%s imports %s: %s", f.path, name, rule.reason)
				}
			}
			standard := !strings.Contains(strings.Split(name, "/")[0], ".")
			if within(f.dir, []string{"edge-agent/helper"}) && !f.test && !standard && !slices.ContainsFunc(helperMay, func(p string) bool { return strings.HasPrefix(name, p) }) {
				t.Errorf("%s imports %s: this program is in every container and stays small", f.path, name)
			}
			if f.dir == "protocol" && !f.test && slices.Contains([]string{"net", "net/http", "os"}, name) {
				t.Errorf("%s imports %s: the wire does no I/O", f.path, name)
			}
		}
	}
}

func within(dir string, folders []string) bool {
	return slices.ContainsFunc(folders, func(folder string) bool { return dir == folder || strings.HasPrefix(dir, folder+"/") })
}

func TestEveryPackageIsDocumented(t *testing.T) {
	docs, only := make(map[string]string), make(map[string]goFile)
	for _, f := range load(t) {
		if f.test {
			continue
		}
		only[f.dir] = f
		if f.syntax.Doc != nil {
			if docs[f.dir] != "" {
				t.Errorf("%s: the package has a second doc comment", f.path)
			}
			docs[f.dir] = f.syntax.Doc.Text()
		}
	}
	for dir, f := range only {
		want := "Package " + f.syntax.Name.Name + " "
		if f.syntax.Name.Name == "main" {
			want = "Command "
		}
		if !strings.HasPrefix(docs[dir], want) {
			t.Errorf("%s: its doc comment must begin with %q and say what it owns, what it does not, and its invariant", dir, want)
		}
	}
}

func TestNamesSayWhatIsInside(t *testing.T) {
	bad := regexp.MustCompile(`^(utils?|common|helpers|types|models?|misc|base|shared|lib|interfaces?)$`)
	worse := regexp.MustCompile(`(Manager|Helper|Impl|Info|Data|Util|Utils)$`)
	for _, f := range load(t) {
		if bad.MatchString(path.Base(f.dir)) || bad.MatchString(f.syntax.Name.Name) || bad.MatchString(strings.TrimSuffix(path.Base(f.path), ".go")) {
			t.Errorf("%s: its name says nothing: name it after the noun inside", f.path)
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			if spec, ok := n.(*ast.TypeSpec); ok && worse.MatchString(spec.Name.Name) {
				t.Errorf("%s: type %s: name it after what it is", f.path, spec.Name.Name)
			}
			return true
		})
	}
}

// TestLogsNameByID: what is logged as user, env, host or workspace is its id, so
// that one search finds all of it; a name goes under name.
func TestLogsNameByID(t *testing.T) {
	named := regexp.MustCompile(`(?i)(name|email)$`)
	for _, f := range load(t) {
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || f.test {
				return true
			}
			if fun, ok := call.Fun.(*ast.SelectorExpr); !ok || !slices.Contains([]string{"Debug", "Info", "Warn", "Error", "With"}, fun.Sel.Name) {
				return true
			}
			for i := 0; i+1 < len(call.Args); i++ {
				key, ok := call.Args[i].(*ast.BasicLit)
				if !ok || !slices.Contains([]string{`"user"`, `"env"`, `"host"`, `"workspace"`}, key.Value) {
					continue
				}
				value := ""
				switch v := call.Args[i+1].(type) {
				case *ast.Ident:
					value = v.Name
				case *ast.SelectorExpr:
					value = v.Sel.Name
				}
				if named.MatchString(value) {
					t.Errorf("%s: %s is logged as %s: log its id, or call it name", f.set.Position(key.Pos()), value, key.Value)
				}
			}
			return true
		})
	}
}

func TestNothingIsTooLarge(t *testing.T) {
	found, files := make(map[string]int), make(map[string]int)
	check := func(what string, size, limit int, unit string) {
		if size <= limit {
			return
		}
		found[what] = size
		switch was, known := tooLarge[what]; {
		case !known:
			t.Errorf("%s has %d %s, at most %d: split it", what, size, unit, limit)
		case size > was:
			t.Errorf("%s has grown from %d to %d %s: what is too large may only shrink", what, was, size, unit)
		case size < was:
			t.Errorf("%s has shrunk to %d %s: lower its number in tooLarge (arch_test.go)", what, size, unit)
		}
	}
	for _, f := range load(t) {
		if f.test {
			check(f.path, f.lines, maxTestFile, "lines")
			continue
		}
		check(f.path, f.lines, maxFile, "lines")
		files[f.dir]++
		for _, d := range f.syntax.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			name := f.path + ":" + fn.Name.Name
			check(name, f.set.Position(fn.End()).Line-f.set.Position(fn.Pos()).Line+1, maxFunction, "lines")
			check(name+" parameters", fn.Type.Params.NumFields(), maxParams, "parameters")
		}
	}
	for dir, n := range files {
		check(dir, n, maxFiles, "files")
	}
	for what := range tooLarge {
		if found[what] == 0 {
			t.Errorf("%s is no longer too large: take it out of tooLarge (arch_test.go)", what)
		}
	}
}

var (
	writePattern  = regexp.MustCompile(`(?is)\b(?:insert\s+into|delete\s+from|truncate(?:\s+table)?|merge\s+into)\s+([a-z_]+)|\bupdate\s+(?:only\s+)?([a-z_]+)\s+(?:as\s+)?(?:[a-z_]+\s+)?set\b`)
	createPattern = regexp.MustCompile(`(?i)create\s+table\s+(?:if\s+not\s+exists\s+)?([a-z_]+)`)
	dropPattern   = regexp.MustCompile(`(?i)drop\s+table\s+(?:if\s+exists\s+)?([a-z_]+)`)
)

// writes returns the tables that a piece of SQL writes.
func writes(sql string) (names []string) {
	for _, m := range writePattern.FindAllStringSubmatch(sql, -1) {
		names = append(names, strings.ToLower(m[1]+m[2]))
	}
	return names
}

func TestWritesIsNotFooled(t *testing.T) {
	for sql, want := range map[string]string{
		"insert into hosts (id) values ($1) on conflict (id) do update set x = 1": "hosts",
		"UPDATE hosts h SET x = 1":                                   "hosts",
		"update hosts as h set x = 1":                                "hosts",
		"select * from hosts for update":                             "",
		"with k as (update keys set a = 1) delete\n\tfrom only_this": "keys only_this",
		"Update changes a host's name":                               "",
		"insert into a select * from b; truncate c":                  "a c",
	} {
		if got := strings.Join(writes(sql), " "); got != want {
			t.Errorf("%q writes %q, want %q", sql, got, want)
		}
	}
}

func TestModulesWriteOnlyTheirOwnTables(t *testing.T) {
	owner := make(map[string]string)
	for dir, names := range tables {
		for _, name := range names {
			owner[name] = dir
		}
	}
	for _, f := range load(t) {
		if area(f.dir) != "control" || f.test || f.dir == "control/pgtest" {
			continue
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			for _, table := range tablesWritten(n) {
				if dir, known := owner[table]; known && dir != f.dir {
					t.Errorf("%s writes table %s of %s: call a function of that package, with the transaction", f.set.Position(n.Pos()), table, dir)
				}
			}
			return true
		})
	}
	checkMigrations(t, owner)
}

// tablesWritten reads SQL in string literals, and the names in
// pgx.Identifier{"…"}, which is how COPY is told its table.
func tablesWritten(n ast.Node) []string {
	switch n := n.(type) {
	case *ast.BasicLit:
		if n.Kind != token.STRING {
			return nil
		}
		sql, err := strconv.Unquote(n.Value)
		if err != nil {
			return nil
		}
		return writes(sql)
	case *ast.CompositeLit:
		selector, ok := n.Type.(*ast.SelectorExpr)
		if !ok || selector.Sel.Name != "Identifier" || len(n.Elts) == 0 {
			return nil
		}
		if lit, ok := n.Elts[len(n.Elts)-1].(*ast.BasicLit); ok {
			return []string{strings.Trim(lit.Value, "`\"")}
		}
	}
	return nil
}

// checkMigrations wants every table that a migration makes to have an owner,
// and every owned table to be made.
func checkMigrations(t *testing.T, owner map[string]string) {
	t.Helper()
	made := make(map[string]string) // in which script
	scripts, err := filepath.Glob("control/pg/migrations/*.sql")
	if err != nil {
		t.Fatal(err)
	}
	for _, script := range scripts {
		text, err := os.ReadFile(script)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range createPattern.FindAllStringSubmatch(string(text), -1) {
			made[m[1]] = script
		}
		for _, m := range dropPattern.FindAllStringSubmatch(string(text), -1) {
			delete(made, m[1])
		}
	}
	for table, script := range made {
		if owner[table] == "" {
			t.Errorf("%s makes table %s: say in tables (arch_test.go) which package writes it", script, table)
		}
	}
	for table, dir := range owner {
		if made[table] == "" && len(scripts) > 0 {
			t.Errorf("tables (arch_test.go) gives %s to %s, but no migration makes it", table, dir)
		}
	}
}

// TestTheRulesAreConsistent: a package that stands twice has two ranks, and one
// that is not there is none.
func TestTheRulesAreConsistent(t *testing.T) {
	seen := make(map[string]bool)
	for name, lines := range layers {
		for _, line := range lines {
			for _, dir := range line {
				if seen[dir] || area(dir) != name {
					t.Errorf("layers: %s stands twice or in the wrong area", dir)
				}
				seen[dir] = true
				if _, err := os.Stat(dir); err != nil {
					t.Errorf("layers: %v", err)
				}
			}
		}
		if _, ok := areas[name]; !ok {
			t.Errorf("layers: %s is no area", name)
		}
	}
	if fault := importFault(goFile{dir: "edge-agent/agent"}, "control/errs"); fault == "" {
		t.Error("the agent may import the control plane")
	}
	if fault := importFault(goFile{dir: "control/errs"}, "control/pg"); fault == "" {
		t.Error("errs may import pg")
	}
	if fault := importFault(goFile{dir: "control/host"}, "control/pgtest"); fault == "" {
		t.Error("a program may import a test kit")
	}
	if fault := importFault(goFile{dir: "e2e"}, "edge-agent/agent"); fault != "" {
		t.Error(fmt.Errorf("e2e: %s", fault))
	}
}
