package protocol

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"math/big"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"
)

// documents are the Go types that travel by themselves. Those inside them are
// found by reflection.
var documents = []any{
	Desired{}, Reference{}, Hello{}, Presence{}, Status{}, TelemetryBatch{}, Ack{}, Dial{},
	StreamHeader{}, StreamReply{}, Target{}, RDPRequest{}, RDPReply{}, Accepted{}, SessionOpen{}, X11{}, SessionExit{}, WindowSize{},
	Attach{}, SessionQuery{}, SessionList{},
}

// comparison walks Go types and CDDL rules side by side.
type comparison struct {
	*grammar
	t    *testing.T
	seen map[string]bool // rules compared
}

func TestCDDLSaysWhatTheStructsSay(t *testing.T) {
	c := &comparison{grammar: loadGrammar(t), t: t, seen: make(map[string]bool)}
	for _, d := range documents {
		c.compare(reflect.TypeOf(d), "cbor", ruleName(reflect.TypeOf(d), "cbor"))
	}
	c.compare(reflect.TypeOf(Enroll{}), "json", "enroll")
	c.compare(reflect.TypeOf(Enrolled{}), "json", "enrolled")

	for _, name := range structsWithTags(t) {
		if !c.seen[kebab(name)] {
			t.Errorf("struct %s stands in no document of the CDDL: add it to documents in cddl_test.go", name)
		}
	}
	for name, rule := range c.rules {
		if rule.kind == "map" && !c.seen[name] && name != "desired-header" {
			t.Errorf("rule %s belongs to no struct", name)
		}
	}
}

// compare checks the rule for one struct: keys, order, names, optional, types.
func (c *comparison) compare(typ reflect.Type, format, name string) {
	if c.seen[name] {
		return
	}
	c.seen[name] = true
	rule := c.rules[name]
	if rule == nil || rule.kind != "map" {
		c.t.Errorf("protocol.cddl has no map %s for struct %s", name, typ.Name())
		return
	}
	if len(rule.members) != typ.NumField() {
		c.t.Errorf("%s has %d members, struct %s has %d", name, len(rule.members), typ.Name(), typ.NumField())
		return
	}
	for i, m := range rule.members {
		field := typ.Field(i)
		where := fmt.Sprintf("%s, %s.%s", name, typ.Name(), field.Name)
		key, options, _ := strings.Cut(field.Tag.Get(format), ",")
		if fmt.Sprint(keyOf(m)) != key {
			c.t.Errorf("%s: key %v in the CDDL, %s in the struct", where, keyOf(m), key)
		}
		if format == "cbor" && !strings.Contains(options, "keyasint") {
			c.t.Errorf("%s: its key is no integer", where)
		}
		if optional := strings.Contains(options, "omitempty"); optional != (m.min == 0) || m.max != 1 {
			c.t.Errorf("%s: optional is %v in the struct", where, optional)
		}
		if word, _, _ := strings.Cut(m.comment, ":"); word != field.Name {
			c.t.Errorf("%s: its comment begins with %q", where, word)
		}
		if err := c.fits(m.value, field.Type, format); err != nil {
			c.t.Errorf("%s: %v", where, err)
		}
	}
}

// fits reports why values of the rule do not fit in the Go type.
func (c *comparison) fits(n *node, typ reflect.Type, format string) error {
	switch typ.Kind() {
	case reflect.Pointer:
		return c.fits(n, typ.Elem(), format)
	case reflect.Struct:
		want := ruleName(typ, format)
		if n.kind != "name" || n.text != want {
			return fmt.Errorf("it must be %s", want)
		}
		c.compare(typ, format, want)
		return nil
	case reflect.Slice:
		if typ.Elem().Kind() == reflect.Uint8 {
			if format == "json" && n.kind == "name" && n.text == "base64" {
				return nil
			}
			return c.reduces(n, "bstr")
		}
		n = c.resolve(n)
		if n.kind != "array" || len(n.members) != 1 {
			return fmt.Errorf("it must be an array of one kind")
		}
		return c.fits(n.members[0].value, typ.Elem(), format)
	case reflect.Map:
		n = c.resolve(n)
		if n.kind != "map" || len(n.members) != 1 || n.members[0].key == nil {
			return fmt.Errorf("it must be a table")
		}
		if err := c.fits(n.members[0].key, typ.Key(), format); err != nil {
			return err
		}
		return c.fits(n.members[0].value, typ.Elem(), format)
	case reflect.String:
		return c.reduces(n, "tstr")
	case reflect.Bool:
		return c.reduces(n, "bool")
	case reflect.Float32:
		if format == "json" {
			return c.reduces(n, "number")
		}
		return c.reduces(n, "float16-32")
	}
	return c.fitsInteger(n, typ)
}

// fitsInteger demands that the Go type holds the whole range of the rule.
func (c *comparison) fitsInteger(n *node, typ reflect.Type) error {
	from, to, err := c.span(n)
	if err != nil {
		return err
	}
	bits := typ.Bits()
	low, high := new(big.Int), new(big.Int).Lsh(big.NewInt(1), uint(bits))
	if typ.Kind() >= reflect.Int && typ.Kind() <= reflect.Int64 {
		high.Lsh(big.NewInt(1), uint(bits-1))
		low.Neg(high)
	}
	if from.Cmp(low) < 0 || to.Cmp(high) >= 0 {
		return fmt.Errorf("%s..%s does not fit in %s", from, to, typ)
	}
	return nil
}

// span is the range of an integer rule.
func (c *comparison) span(n *node) (from, to *big.Int, err error) {
	n = c.resolve(n)
	switch {
	case n.kind == "int":
		return n.number, n.number, nil
	case n.kind == "range":
		return n.parts[0].number, n.parts[1].number, nil
	case n.kind == "control" && n.text == ".size" && n.parts[0].text == "uint":
		to = new(big.Int).Lsh(big.NewInt(1), uint(8*n.parts[1].number.Int64()))
		return new(big.Int), to.Sub(to, big.NewInt(1)), nil
	case n.kind == "choice":
		for _, alternative := range n.parts {
			low, high, err := c.span(alternative)
			if err != nil {
				return nil, nil, err
			}
			if from == nil || low.Cmp(from) < 0 {
				from = low
			}
			if to == nil || high.Cmp(to) > 0 {
				to = high
			}
		}
		return from, to, nil
	}
	return nil, nil, fmt.Errorf("%s %s is no bounded integer", n.kind, n.text)
}

// reduces checks that the rule is the named one, bounded by controls or listed
// as literals.
func (c *comparison) reduces(n *node, name string) error {
	for n.kind == "name" && n.text != name && c.rules[n.text] != nil || n.kind == "control" {
		if n.kind == "control" {
			n = n.parts[0]
		} else {
			n = c.rules[n.text]
		}
	}
	if n.kind == "choice" && name == "tstr" {
		for _, alternative := range n.parts {
			if alternative.kind != "text" {
				return fmt.Errorf("an alternative is a %s", alternative.kind)
			}
		}
		return nil
	}
	if n.kind == "name" && n.text == name || n.kind == "text" && name == "tstr" {
		return nil
	}
	return fmt.Errorf("%s %s is no %s", n.kind, n.text, name)
}

func (c *comparison) resolve(n *node) *node {
	for n.kind == "name" && c.rules[n.text] != nil {
		n = c.rules[n.text]
	}
	return n
}

func ruleName(typ reflect.Type, format string) string {
	if format == "json" {
		return "json-" + kebab(typ.Name())
	}
	return kebab(typ.Name())
}

// kebab turns GPUUsage into gpu-usage.
func kebab(name string) string {
	var out strings.Builder
	runes := []rune(name)
	for i, r := range runes {
		if i > 0 && unicode.IsUpper(r) && (unicode.IsLower(runes[i-1]) || i+1 < len(runes) && unicode.IsLower(runes[i+1])) {
			out.WriteByte('-')
		}
		out.WriteRune(unicode.ToLower(r))
	}
	return out.String()
}

// source is this package without its tests.
func source(t *testing.T) (files []*ast.File) {
	t.Helper()
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), e.Name(), nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	return files
}

// structsWithTags are the names of this package's structs with CBOR tags.
func structsWithTags(t *testing.T) (names []string) {
	for _, f := range source(t) {
		ast.Inspect(f, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			if s, ok := spec.Type.(*ast.StructType); ok && len(s.Fields.List) > 0 && s.Fields.List[0].Tag != nil && strings.Contains(s.Fields.List[0].Tag.Value, "cbor:") {
				names = append(names, spec.Name.Name)
			}
			return true
		})
	}
	return names
}

// constants returns the literal values of the package's constants whose names
// begin with prefix, and are not just it.
func constants(t *testing.T, prefix string) (values []string) {
	for _, f := range source(t) {
		ast.Inspect(f, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok || !strings.HasPrefix(spec.Names[0].Name, prefix) || len(spec.Values) == 0 {
				return true
			}
			if lit, ok := spec.Values[0].(*ast.BasicLit); ok {
				text, err := strconv.Unquote(lit.Value)
				if err != nil {
					text = lit.Value
				}
				values = append(values, text)
			}
			return true
		})
	}
	slices.Sort(values)
	return values
}

func TestCDDLListsTheSameWordsAsTheConstants(t *testing.T) {
	g := loadGrammar(t)
	for rule, want := range map[string][]string{
		"want":        constants(t, "Want"),
		"restart":     constants(t, "Restart"),
		"phase":       constants(t, "Phase"),
		"severity":    constants(t, "Severity"),
		"metric":      constants(t, "Metric"),
		"stream-kind": {StreamAccept, StreamDial, StreamListen, StreamLogs, StreamRDP, StreamSession, StreamSSH},
		"clipboard":   constants(t, "Clipboard"),
		"rdp-server":  append([]string{""}, constants(t, "RDPServer")...),
		"network":     constants(t, "Network"),
		"attach-op":   constants(t, "Attach"),
		"mode":        append([]string{""}, constants(t, "Mode")...),
		"share":       append([]string{""}, constants(t, "Share")...),
		"reply-code":  append([]string{""}, constants(t, "Reply")...),
		"version":     {strconv.Itoa(Version)},
	} {
		n := g.rules[rule]
		if n == nil {
			t.Errorf("no rule %s", rule)
			continue
		}
		alternatives := n.parts
		if n.kind != "choice" {
			alternatives = []*node{n}
		}
		var got []string
		for _, a := range alternatives {
			if a.kind == "int" {
				got = append(got, a.number.String())
			} else {
				got = append(got, a.text)
			}
		}
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", rule, diff)
		}
	}
}

// TestCDDLIsWhole checks that every name is defined, and used but for roots.
func TestCDDLIsWhole(t *testing.T) {
	g := loadGrammar(t)
	used := map[string]bool{"document": true, "enroll": true, "enrolled": true}
	var walk func(n *node)
	walk = func(n *node) {
		if n == nil {
			return
		}
		if n.kind == "name" {
			used[n.text] = true
			if g.rules[n.text] == nil && prelude[n.text] == nil {
				t.Errorf("%s is not defined", n.text)
			}
		}
		for _, p := range n.parts {
			walk(p)
		}
		for _, m := range n.members {
			if m.max != 1 { // in a table the key is a type, elsewhere a label
				walk(m.key)
			}
			walk(m.value)
		}
	}
	for _, name := range g.order {
		walk(g.rules[name])
	}
	for _, name := range g.order {
		if !used[name] {
			t.Errorf("%s is not used", name)
		}
	}
}

func TestGoldenVectorsMatchTheCDDL(t *testing.T) {
	g := loadGrammar(t)
	check := func(file, rule string, value any, err error) {
		t.Helper()
		if err == nil {
			err = g.match(&node{kind: "name", text: rule}, value)
		}
		if err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
	for _, v := range vectors() {
		data, err := os.ReadFile("testdata/v1/" + v.name + ".cbor")
		if err != nil {
			t.Fatal(err)
		}
		value, err := generic(data)
		check(v.name, v.rule, value, err)
		if v.rule != "desired" && v.rule != "reference" { // they travel signed
			check(v.name, "document", value, err)
		}
	}
	for _, name := range []string{"signed-desired", "signed-reference"} {
		data, err := os.ReadFile("testdata/v1/" + name + ".cbor")
		if err != nil {
			t.Fatal(err)
		}
		value, err := generic(data)
		check(name, name, value, err)
	}
	for _, name := range []string{"enroll", "enrolled"} {
		data, err := os.ReadFile("testdata/v1/" + name + ".json")
		if err != nil {
			t.Fatal(err)
		}
		value, err := genericJSON(data)
		check(name, name, value, err)
	}
}

// genericJSON decodes JSON into what generic makes of CBOR.
func genericJSON(data []byte) (any, error) {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	var v any
	err := decoder.Decode(&v)
	return likeCBOR(v), err
}

func likeCBOR(v any) any {
	switch v := v.(type) {
	case map[string]any:
		pairs := make(map[any]any, len(v))
		for key, value := range v {
			pairs[key] = likeCBOR(value)
		}
		return pairs
	case []any:
		for i := range v {
			v[i] = likeCBOR(v[i])
		}
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		f, _ := v.Float64()
		return f
	}
	return v
}

// TestCDDLRefuses shows that the grammar is tighter than "anything".
func TestCDDLRefuses(t *testing.T) {
	g := loadGrammar(t)
	for name, change := range map[string]func(map[any]any){
		"another version":     func(m map[any]any) { m[uint64(1)] = uint64(2) },
		"no host":             func(m map[any]any) { delete(m, uint64(2)) },
		"bad host":            func(m map[any]any) { m[uint64(2)] = "host_ilou" },
		"generation 0":        func(m map[any]any) { m[uint64(3)] = uint64(0) },
		"negative generation": func(m map[any]any) { m[uint64(3)] = int64(-1) },
		"text as number":      func(m map[any]any) { m[uint64(4)] = "now" },
		"unknown key":         func(m map[any]any) { m[uint64(99)] = true },
		"no array":            func(m map[any]any) { m[uint64(5)] = map[any]any{} },
		"no workload":         func(m map[any]any) { m[uint64(5)] = []any{uint64(1)} },
		"too many workloads":  func(m map[any]any) { m[uint64(5)] = make([]any, 1025) },
	} {
		data, err := Marshal(fullDesired())
		if err != nil {
			t.Fatal(err)
		}
		value, err := generic(data)
		if err != nil {
			t.Fatal(err)
		}
		change(value.(map[any]any))
		if err := g.match(g.rules["desired"], value); err == nil {
			t.Errorf("%s matches", name)
		}
	}
}
