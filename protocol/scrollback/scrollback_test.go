package scrollback

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"
)

// asked are sequences that make a terminal answer, sound, notify or take
// something into its clipboard, and what of each may be shown.
var asked = map[string]string{
	"\x1b[c": "", "\x1b[0c": "", "\x1b[>c": "", "\x1b[>0c": "", "\x1b[=c": "", // DA1, DA2, DA3
	"\x1bZ": "", "\x9a": "", "\u009a": "", // DECID
	"\x1b[5n": "", "\x1b[6n": "", "\x1b[?6n": "", "\x1b[?15n": "", "\x1b[?996n": "", // DSR
	"\x1b[6\nn": "\n", "\x1b[6\x1b[6n": "", // a control inside, and one broken off
	"\x9b6n": "", "\u009b6n": "", "\u009b?6n": "", // C1
	"\x1b[?2026$p": "", "\x1b[4$p": "", // DECRQM
	"\x1b[>q": "", "\x1b[>0q": "", // XTVERSION
	"\x1b[18t": "", "\x1b[14;2t": "", "\x1b[21t": "", "\x1b[11t": "",
	"\x1b[?u": "", "\x1b[?1;1;0S": "", "\x1b[?4m": "", "\x1b[1$w": "", "\x1b[0x": "", "\x1b[1;1;1;1;1;1*y": "",
	"\x1b]10;?\x07": "", "\x1b]11;?\x1b\\": "", "\x1b]4;1;?\x07": "", "\u009d11;?\u009c": "", "\x9d11;?\x9c": "",
	"\x1b]52;c;?\x07": "", "\x1b]52;c;cm0gLXJm\x07": "", "\x1b]9;done\x07": "", "\x1b]777;notify;a;b\x07": "", "\x1b]1337;ReportCellSize\x07": "",
	"\x1bP$qm\x1b\\": "", "\x1bP+q544e\x1b\\": "", "\x1bP1$q\"p\x1b\\": "", "\x1bPtmux;\x1b\x1b[6n\x1b\\": "\x1b\\",
	"\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\": "", "\x1b^private\x1b\\": "",
	"\x05": "", "\x07": "",
	"\x1b]0;a title \x1b[6n": "\x1b]0;a title \x18", // the title is broken off by a query
}

// shown are sequences that must come through as they are.
var shown = []string{
	"plain text\r\n", "üñí 你好 🚀 \u00a0x", "\x1b[0m", "\x1b[1;31mred", "\x1b[?25l", "\x1b[?1049h", "\x1b[?2004h", "\x1b[2J", "\x1b[10;20H", "\x1b(B", "\x1b7", "\x1b8", "\x1bM", "\x1b=", "\x1b>",
	"\x1b]0;a title?\x07", "\x1b]2;title\x1b\\", "\x1b]8;;https://example.org/?q=1\x1b\\link\x1b]8;;\x1b\\", "\x1b]4;1;rgb:ff/00/00\x07", "\x1b]112\x07",
	"\x1bP0;1;0q\"1;1;1;1#0;2;0;0;0#0~\x1b\\", "\x1b[>4;2m", "\x1b[>1u", "\x1b[<u", "\x1b[8;24;80t", "\x1b[22;0t", "\x1b[23;0t", "\x1b[3 q", "\x1b[!p", "\x1b[>5n", "\x1b#8", "\x1b%G", "\x1b[5S", "\x1b[38:2::1:2:3m", "\x1b[1;2r",
}

// TestFilter feeds each sequence whole, byte by byte and between others.
func TestFilter(t *testing.T) {
	cases := map[string]string{}
	for in, out := range asked {
		cases[in] = out
	}
	for _, s := range shown {
		cases[s] = s
	}
	for in, want := range cases {
		in, want := "a"+in+"z", "a"+want+"z"
		for _, size := range []int{1, 2, 3, 1000} {
			var f Filter
			var got []byte
			for rest := []byte(in); len(rest) > 0; {
				n := min(size, len(rest))
				got = f.Append(got, rest[:n])
				rest = rest[n:]
			}
			if string(got) != want || !f.Ground() {
				t.Errorf("%q in pieces of %d: %q, want %q (ground %v)", in, size, got, want, f.Ground())
			}
		}
	}
}

// TestFilterMixed: any order of all sequences, in pieces of any size.
func TestFilterMixed(t *testing.T) {
	type pair struct{ in, out string }
	var all []pair
	for in, out := range asked {
		if !strings.Contains(in, "\x1b]0;a title \x1b") {
			all = append(all, pair{in, out})
		}
	}
	for _, s := range shown {
		all = append(all, pair{s, s})
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var in, want string
		for range 60 {
			p := all[rnd.IntN(len(all))]
			in, want = in+p.in+"|", want+p.out+"|"
		}
		var f Filter
		var got []byte
		for rest := []byte(in); len(rest) > 0; {
			n := min(1+rnd.IntN(7), len(rest))
			got = f.Append(got, rest[:n])
			rest = rest[n:]
		}
		if string(got) != want {
			t.Fatalf("%q\nbecomes %q\nwant    %q", in, got, want)
		}
	}
}

// TestLongStrings: what never ends is not kept for ever.
func TestLongStrings(t *testing.T) {
	for _, intro := range []string{"\x1b]52;c;", "\x1b]8;;", "\x1bP1;1q", "\x1b_G", "\x1b["} {
		var f Filter
		f.Append(nil, []byte(intro))
		for range 1000 {
			f.Append(nil, bytes.Repeat([]byte("0"), 1000))
		}
		if cap(f.held) > 4*maxText {
			t.Errorf("%q: %d bytes are held", intro, cap(f.held))
		}
	}
}

// FuzzFilter: how the output is cut into pieces changes nothing, and no query
// is put together from what is left.
func FuzzFilter(f *testing.F) {
	for in := range asked {
		f.Add([]byte(in), uint64(1))
	}
	for _, s := range shown {
		f.Add([]byte(s), uint64(2))
	}
	f.Fuzz(func(t *testing.T, in []byte, seed uint64) {
		var whole, pieces Filter
		want := whole.Append(nil, in)
		rnd := rand.New(rand.NewPCG(seed, 0))
		var got []byte
		for rest := in; len(rest) > 0; {
			n := 1 + rnd.IntN(len(rest))
			got = pieces.Append(got, rest[:n])
			rest = rest[n:]
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%q in pieces becomes %q, whole %q", in, got, want)
		}
		for query := range asked {
			if len(query) > 1 && query[0] == esc && strings.HasSuffix(query, "n") && bytes.Contains(got, []byte(query)) && !bytes.Contains(in, []byte(query)) {
				t.Fatalf("%q becomes %q", in, got)
			}
		}
	})
}

func TestBuffer(t *testing.T) {
	var b Buffer
	var all []byte
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 3000 {
		p := make([]byte, rnd.IntN(900))
		for i := range p {
			p[i] = "abcdefg\n"[rnd.IntN(8)]
		}
		if _, err := b.Write(p); err != nil {
			t.Fatal(err)
		}
		all = append(all, p...)
		from := uint64(rnd.IntN(len(all) + 1))
		got := make([]byte, rnd.IntN(5000))
		n, next, skipped := b.Read(from, got)
		if gone := len(all) > Size && from < uint64(len(all)-Size); skipped != gone || b.End() != uint64(len(all)) {
			t.Fatalf("read from %d of %d: skipped %v", from, len(all), skipped)
		}
		if begin := next - uint64(n); !bytes.Equal(got[:n], all[begin:next]) || skipped && all[begin-1] != '\n' {
			t.Fatalf("read from %d of %d: other bytes from %d to %d", from, len(all), begin, next)
		}
	}
	if _, err := b.Write(bytes.Repeat([]byte("x"), 3*Size)); err != nil || b.End() != uint64(len(all)+3*Size) {
		t.Errorf("end %d after a large write, %v", b.End(), err)
	}
}
