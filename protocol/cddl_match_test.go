package protocol

import (
	"fmt"
	"math"
	"math/big"
	"regexp"

	"github.com/fxamacker/cbor/v2"
)

// What RFC 8610 defines itself, as far as it is used.
var prelude = map[string]func(any) bool{
	"any":  func(any) bool { return true },
	"tstr": func(v any) bool { _, ok := v.(string); return ok },
	"bstr": func(v any) bool { _, ok := v.([]byte); return ok },
	"bool": func(v any) bool { _, ok := v.(bool); return ok },
	"int":  func(v any) bool { return integer(v) != nil },
	"uint": func(v any) bool { n := integer(v); return n != nil && n.Sign() >= 0 },
	"float": func(v any) bool {
		_, ok := v.(float64)
		return ok
	},
	"float16-32": func(v any) bool {
		f, ok := v.(float64)
		return ok && (math.IsNaN(f) || float64(float32(f)) == f)
	},
}

// integer returns v as an integer, nil if it is none.
func integer(v any) *big.Int {
	switch n := v.(type) {
	case int64:
		return big.NewInt(n)
	case uint64:
		return new(big.Int).SetUint64(n)
	}
	return nil
}

// match reports where value, decoded without types, is not what n says.
func (g *grammar) match(n *node, value any) error {
	switch n.kind {
	case "name":
		if rule := g.rules[n.text]; rule != nil {
			if err := g.match(rule, value); err != nil {
				return fmt.Errorf("%s: %w", n.text, err)
			}
			return nil
		}
		if is := prelude[n.text]; is == nil || !is(value) {
			return fmt.Errorf("%v (%T) is no %s", value, value, n.text)
		}
		return nil
	case "text":
		if value != n.text {
			return fmt.Errorf("%v is not %q", value, n.text)
		}
		return nil
	case "int":
		return inRange(value, n.number, n.number)
	case "range":
		return inRange(value, n.parts[0].number, n.parts[1].number)
	case "choice":
		return g.matchChoice(n, value)
	case "control":
		return g.matchControl(n, value)
	case "map":
		return g.matchMap(n, value)
	case "array":
		return g.matchArray(n, value)
	case "tag":
		tag, ok := value.(cbor.Tag)
		if !ok || tag.Number != n.number.Uint64() {
			return fmt.Errorf("%T is not tag %s", value, n.number)
		}
		return g.match(n.parts[0], tag.Content)
	}
	return fmt.Errorf("cannot match %s", n.kind)
}

func inRange(value any, from, to *big.Int) error {
	v := integer(value)
	if v == nil || v.Cmp(from) < 0 || v.Cmp(to) > 0 {
		return fmt.Errorf("%v (%T) is not in %s..%s", value, value, from, to)
	}
	return nil
}

func (g *grammar) matchChoice(n *node, value any) error {
	var err error
	for _, alternative := range n.parts {
		if err = g.match(alternative, value); err == nil {
			return nil
		}
	}
	return err
}

func (g *grammar) matchControl(n *node, value any) error {
	if err := g.match(n.parts[0], value); err != nil {
		return err
	}
	argument := n.parts[1]
	switch n.text {
	case ".size":
		if v := integer(value); v != nil {
			if v.BitLen() > int(8*argument.number.Int64()) {
				return fmt.Errorf("%s does not fit in %s bytes", v, argument.number)
			}
			return nil
		}
		return g.match(argument, int64(size(value)))
	case ".regexp":
		if text, _ := value.(string); !regexp.MustCompile(`^(?:` + argument.text + `)$`).MatchString(text) {
			return fmt.Errorf("%q does not match %s", value, argument.text)
		}
		return nil
	case ".cbor":
		inner, err := generic(value.([]byte))
		if err != nil {
			return err
		}
		return g.match(argument, inner)
	}
	return fmt.Errorf("unknown control %s", n.text)
}

func size(value any) int {
	switch v := value.(type) {
	case string:
		return len(v)
	case []byte:
		return len(v)
	}
	return -1
}

func (g *grammar) matchMap(n *node, value any) error {
	pairs, ok := value.(map[any]any)
	if !ok {
		return fmt.Errorf("%T is no map", value)
	}
	if len(n.members) == 1 && n.members[0].max != 1 {
		return g.matchTable(n.members[0], pairs)
	}
	known := 0
	for _, m := range n.members {
		v, there := pairs[keyOf(m)]
		if !there {
			if m.min > 0 {
				return fmt.Errorf("key %v is missing", keyOf(m))
			}
			continue
		}
		known++
		if err := g.match(m.value, v); err != nil {
			return fmt.Errorf("key %v: %w", keyOf(m), err)
		}
	}
	if known != len(pairs) {
		return fmt.Errorf("%d keys too many in %v", len(pairs)-known, pairs)
	}
	return nil
}

func (g *grammar) matchTable(m member, pairs map[any]any) error {
	if len(pairs) < m.min || m.max >= 0 && len(pairs) > m.max {
		return fmt.Errorf("%d pairs are not %d to %d", len(pairs), m.min, m.max)
	}
	for k, v := range pairs {
		if err := g.match(m.key, k); err != nil {
			return err
		}
		if err := g.match(m.value, v); err != nil {
			return err
		}
	}
	return nil
}

func (g *grammar) matchArray(n *node, value any) error {
	items, ok := value.([]any)
	if !ok {
		return fmt.Errorf("%T is no array", value)
	}
	if len(n.members) == 1 && n.members[0].max != 1 {
		m := n.members[0]
		if len(items) < m.min || m.max >= 0 && len(items) > m.max {
			return fmt.Errorf("%d items are not %d to %d", len(items), m.min, m.max)
		}
		for i, item := range items {
			if err := g.match(m.value, item); err != nil {
				return fmt.Errorf("item %d: %w", i, err)
			}
		}
		return nil
	}
	if len(items) != len(n.members) {
		return fmt.Errorf("%d items are not %d", len(items), len(n.members))
	}
	for i, m := range n.members {
		if err := g.match(m.value, items[i]); err != nil {
			return fmt.Errorf("item %d: %w", i, err)
		}
	}
	return nil
}

// keyOf returns a member's key as generic decodes it.
func keyOf(m member) any {
	switch {
	case m.key == nil:
		return nil
	case m.key.kind == "int" && m.key.number.Sign() >= 0:
		return m.key.number.Uint64()
	case m.key.kind == "int":
		return m.key.number.Int64()
	}
	return m.key.text
}

// generic decodes CBOR without types: uint64, int64, float64, string, []byte,
// bool, []any, map[any]any, cbor.Tag.
func generic(data []byte) (any, error) {
	var v any
	err := cbor.Unmarshal(data, &v)
	return v, err
}
