package protocol

import (
	"fmt"
	"math/big"
	"os"
	"regexp"
	"strings"
	"testing"
)

// The subset of CDDL (RFC 8610) that protocol.cddl is written in:
//
//	rule    = name "=" type
//	type    = type1 *("/" type1)
//	type1   = primary [".." primary / control primary]
//	control = ".size" / ".cbor" / ".regexp"
//	primary = name / int / text / "(" type ")" / "{" members "}" / "[" members "]" / "#6.N(" type ")"
//	member  = [occur] [key] type [","]        key = (int / text / name) ":" / name "=>"
//	occur   = "?" / "*" / N "*" M
//
// Anything else is an error.
type node struct {
	kind    string   // name, int, text, range, choice, control, map, array, tag
	text    string   // of a name or text; the operator of a control
	number  *big.Int // of an int or tag
	parts   []*node  // choice: alternatives; range: from, to; control: target, argument; tag: content
	members []member // of a map or array
}

type member struct {
	min, max int   // occurrences; max -1: any number
	key      *node // nil: none
	value    *node
	comment  string // what stands behind it on its line
}

type grammar struct {
	rules map[string]*node
	order []string
}

var tokenPattern = regexp.MustCompile(`^(?:[ \t]+|;[^\n]*|\n|#6\.\d+\(|"[^"]*"|-?\d+|[A-Za-z](?:[A-Za-z0-9_-]*[A-Za-z0-9])?|\.\.|\.[a-z]+|=>|[=/(){}\[\],:?*])`)

type cddlToken struct {
	text string
	line int
}

type cddlParser struct {
	tokens   []cddlToken
	at       int
	comments map[int]string // by line
}

// loadGrammar parses protocol.cddl.
func loadGrammar(t *testing.T) *grammar {
	t.Helper()
	text, err := os.ReadFile("protocol.cddl")
	if err != nil {
		t.Fatal(err)
	}
	g, err := parseGrammar(string(text))
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func parseGrammar(text string) (g *grammar, err error) {
	defer func() {
		if r := recover(); r != nil {
			fault, ok := r.(cddlFault)
			if !ok {
				panic(r)
			}
			err = fault
		}
	}()
	p := &cddlParser{comments: make(map[int]string)}
	p.scan(text)
	g = &grammar{rules: make(map[string]*node)}
	for p.peek() != "" {
		name := p.next()
		p.expect("=")
		if g.rules[name] != nil {
			p.fail("rule %s stands twice", name)
		}
		g.rules[name] = p.choice()
		g.order = append(g.order, name)
	}
	return g, nil
}

type cddlFault string

func (f cddlFault) Error() string { return string(f) }

func (p *cddlParser) fail(format string, args ...any) {
	line := 0
	if p.at < len(p.tokens) {
		line = p.tokens[p.at].line
	}
	panic(cddlFault(fmt.Sprintf("protocol.cddl:%d: ", line) + fmt.Sprintf(format, args...)))
}

func (p *cddlParser) scan(text string) {
	line := 1
	for text != "" {
		word := tokenPattern.FindString(text)
		if word == "" {
			panic(cddlFault(fmt.Sprintf("protocol.cddl:%d: not understood: %.20q", line, text)))
		}
		text = text[len(word):]
		switch {
		case word == "\n":
			line++
		case word[0] == ';':
			p.comments[line] = strings.TrimSpace(word[1:])
		case word[0] != ' ' && word[0] != '\t':
			p.tokens = append(p.tokens, cddlToken{word, line})
		}
	}
}

func (p *cddlParser) peek() string { return p.ahead(0) }

func (p *cddlParser) ahead(n int) string {
	if p.at+n >= len(p.tokens) {
		return ""
	}
	return p.tokens[p.at+n].text
}

func (p *cddlParser) next() string {
	word := p.peek()
	if word == "" {
		p.fail("ends too early")
	}
	p.at++
	return word
}

func (p *cddlParser) accept(word string) bool {
	if p.peek() != word {
		return false
	}
	p.at++
	return true
}

func (p *cddlParser) expect(word string) {
	if !p.accept(word) {
		p.fail("%q stands where %q must", p.peek(), word)
	}
}

func (p *cddlParser) choice() *node {
	alternatives := []*node{p.type1()}
	for p.accept("/") {
		alternatives = append(alternatives, p.type1())
	}
	if len(alternatives) == 1 {
		return alternatives[0]
	}
	return &node{kind: "choice", parts: alternatives}
}

func (p *cddlParser) type1() *node {
	target := p.primary()
	switch word := p.peek(); word {
	case "..":
		p.next()
		to := p.primary()
		if target.kind != "int" || to.kind != "int" || target.number.Cmp(to.number) > 0 {
			p.fail("a range is from one integer to a larger one")
		}
		return &node{kind: "range", parts: []*node{target, to}}
	case ".size", ".cbor", ".regexp":
		p.next()
		return &node{kind: "control", text: word, parts: []*node{target, p.primary()}}
	}
	return target
}

func (p *cddlParser) primary() *node {
	word := p.next()
	switch c := word[0]; {
	case word == "(":
		inner := p.choice()
		p.expect(")")
		return inner
	case word == "{":
		return &node{kind: "map", members: p.members("}")}
	case word == "[":
		return &node{kind: "array", members: p.members("]")}
	case c == '#':
		number, _ := new(big.Int).SetString(strings.TrimSuffix(strings.TrimPrefix(word, "#6."), "("), 10)
		content := p.choice()
		p.expect(")")
		return &node{kind: "tag", number: number, parts: []*node{content}}
	case c == '"':
		return &node{kind: "text", text: strings.Trim(word, `"`)}
	case c == '-' || c >= '0' && c <= '9':
		number, _ := new(big.Int).SetString(word, 10)
		return &node{kind: "int", number: number}
	case c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z':
		return &node{kind: "name", text: word}
	}
	p.fail("%q is no type", word)
	return nil
}

func (p *cddlParser) members(end string) (list []member) {
	for !p.accept(end) {
		m := member{min: 1, max: 1}
		p.occurrence(&m)
		if p.ahead(1) == ":" || p.ahead(1) == "=>" {
			m.key = p.primary()
			p.next()
		}
		m.value = p.choice()
		more := p.accept(",")
		m.comment = p.comments[p.tokens[p.at-1].line]
		list = append(list, m)
		if !more && p.peek() != end {
			p.fail("a comma is missing before %q", p.peek())
		}
	}
	return list
}

func (p *cddlParser) occurrence(m *member) {
	switch {
	case p.accept("?"):
		m.min = 0
	case p.accept("*"):
		m.min, m.max = 0, -1
	case p.ahead(1) == "*":
		if n, err := fmt.Sscan(p.next()+" "+p.ahead(1), &m.min, &m.max); n != 2 || err != nil {
			p.fail("occurrence: %v", err)
		}
		p.at += 2
	}
}

func TestParserRefusesWhatItDoesNotKnow(t *testing.T) {
	for _, bad := range []string{
		"a", "a =", "a = {", "a = { 1: int", "a = { 1: int 2: int }", "a = int\na = int", "a = 5..3", "a = tstr .default 3",
		"a = &(b: 1)", "a = int //= tstr", "a = (int", "a = #6.18(int", "a = { 1 int }", "a = %", "a = 'x'",
	} {
		if _, err := parseGrammar(bad); err == nil {
			t.Errorf("%q was understood", bad)
		}
	}
}
