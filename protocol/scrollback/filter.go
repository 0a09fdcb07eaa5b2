package scrollback

import (
	"bytes"
	"strconv"
	"strings"
)

// Filter takes out of a terminal's output what makes a terminal answer (old
// queries would be answered into the program's input), sound, or change its
// clipboard. Sequences may be split between calls. The zero Filter is ready.
//
// Queries are those of xterm's ctlseqs, of kitty's protocols and of iTerm2.
type Filter struct {
	state state
	held  []byte // the sequence so far, from its introducer on
	intro int    // length of the introducer in held
	more  int    // bytes that the current UTF-8 character still has
	lead  byte   // its first
	kept  bool   // the string is shown as it comes
}

type state int

const (
	ground   state = iota
	escape         // ESC has come
	csi            // control sequence
	text           // OSC, DCS, APC, PM or SOS, being held
	passing        // the rest of a string that is shown or left out
	passingE       // the same, after ESC
)

const (
	maxCSI  = 256
	maxText = 4 << 10

	bel, can, sub, esc, enq = 0x07, 0x18, 0x1a, 0x1b, 0x05
)

// Ground reports whether no sequence is unfinished.
func (f *Filter) Ground() bool { return f.state == ground && f.more == 0 }

// Append appends to dst what of p may be shown.
func (f *Filter) Append(dst, p []byte) []byte {
	for _, b := range p {
		dst = f.take(dst, b)
	}
	return dst
}

// take handles one byte. C1 controls, as single bytes or in UTF-8, are what
// ESC and a byte of the next column are.
func (f *Filter) take(dst []byte, b byte) []byte {
	if f.more > 0 && b&0xc0 == 0x80 {
		f.more--
		if f.lead == 0xc2 && b < 0xa0 {
			return f.c1(dst, b)
		}
		return f.plain(dst, b)
	}
	f.more = 0
	switch {
	case b == 0xc2:
		f.more, f.lead = 1, b
		if f.state == ground || f.state == escape {
			f.state = ground
			return dst // until it is known what it is
		}
	case b >= 0xc3 && b < 0xe0:
		f.more, f.lead = 1, b
	case b >= 0xe0 && b < 0xf0:
		f.more, f.lead = 2, b
	case b >= 0xf0 && b < 0xf8:
		f.more, f.lead = 3, b
	case b >= 0x80 && b < 0xa0:
		return f.c1(dst, b)
	}
	return f.control(dst, b)
}

// c1 handles a control of the upper half.
func (f *Filter) c1(dst []byte, b byte) []byte {
	dst = f.control(dst, esc)
	return f.control(dst, b-0x40)
}

// plain handles the rest of a character.
func (f *Filter) plain(dst []byte, b byte) []byte {
	if f.state == ground && f.lead == 0xc2 {
		dst = append(dst, f.lead)
	}
	return f.control(dst, b)
}

func (f *Filter) control(dst []byte, b byte) []byte {
	switch f.state {
	case escape:
		return f.afterESC(dst, b)
	case csi:
		return f.inCSI(dst, b)
	case text:
		return f.inText(dst, b)
	case passing, passingE:
		return f.inPassing(dst, b)
	}
	switch b {
	case esc:
		f.begin()
		return dst
	case enq, bel:
		return dst
	}
	return append(dst, b)
}

func (f *Filter) begin() {
	f.state = escape
	f.held = append(f.held[:0], esc)
}

// afterESC finds out what kind of sequence it is.
func (f *Filter) afterESC(dst []byte, b byte) []byte {
	switch {
	case b == esc:
		return dst
	case b == can, b == sub:
		f.state = ground
		return append(dst, b)
	case b < 0x20: // done at once, within the sequence
		if b == enq || b == bel {
			return dst
		}
		return append(dst, b)
	}
	f.held = append(f.held, b)
	f.intro = len(f.held)
	switch b {
	case '[':
		f.state = csi
		return dst
	case ']', 'P', '_', '^', 'X':
		f.state = text
		return dst
	case 'Z': // DECID
		f.state = ground
		return dst
	}
	if b < 0x30 && len(f.held) < maxCSI { // intermediate: the final byte comes
		return dst
	}
	f.state = ground
	return append(dst, f.held...)
}

func (f *Filter) inCSI(dst []byte, b byte) []byte {
	switch {
	case b == esc:
		f.begin()
		return dst
	case b == can, b == sub:
		f.state = ground
		return append(dst, b)
	case b == enq, b == bel:
		return dst
	case b < 0x20, b >= 0x7f:
		if b >= 0x80 {
			f.state = ground
		}
		return append(dst, b) // done at once, within the sequence
	}
	f.held = append(f.held, b)
	if b < 0x40 {
		if len(f.held) > maxCSI {
			f.state = ground // no terminal takes it
		}
		return dst
	}
	f.state = ground
	if asks(f.held[f.intro:len(f.held)-1], b) {
		return dst
	}
	return append(dst, f.held...)
}

// asks reports whether a terminal would answer the control sequence.
func asks(body []byte, final byte) bool {
	prefix := byte(0)
	if len(body) > 0 && body[0] >= 0x3c && body[0] <= 0x3f {
		prefix, body = body[0], body[1:]
	}
	n := len(body)
	for n > 0 && body[n-1] >= 0x20 && body[n-1] < 0x30 {
		n--
	}
	params, inter := string(body[:n]), string(body[n:])
	switch inter {
	case "":
	case "$":
		return final == 'p' || final == 'w' || final == 'u' // DECRQM, DECRQPSR, DECRQTSR
	case "*":
		return final == 'y' // DECRQCRA
	case "&":
		return final == 'u' // DECRQUPSS
	case "\"":
		return final == 'v' // DECRQDE
	case "#":
		return final == '|' || final == 'S' // XTREPORTSGR and the like
	default:
		return false
	}
	switch final {
	case 'c', 'x': // DA, DECREQTPARM
		return true
	case 'n': // DSR; with > it sets
		return prefix != '>'
	case 'q': // XTVERSION
		return prefix == '>'
	case 'S', 'u', 'm', 'g': // XTSMGRAPHICS, keyboard flags, XTQMODKEYS, XTQFMTKEYS
		return prefix == '?'
	case 't': // reports of the window
		first, _, _ := strings.Cut(params, ";")
		op, _ := strconv.Atoi(first)
		return prefix == 0 && (op == 11 || op >= 13 && op <= 21)
	}
	return false
}

// inText holds a string until it is known whether it asks, or has ended.
func (f *Filter) inText(dst []byte, b byte) []byte {
	kind, body := f.held[f.intro-1], f.held[f.intro:]
	switch {
	case b == can, b == sub:
		f.state = ground
		return append(dst, b)
	case b == bel && kind == ']':
		f.state = ground
		if !wanted(kind, body) {
			return dst
		}
		return append(append(dst, f.held...), b)
	case b == esc:
		f.kept = wanted(kind, body)
		f.state = passingE
		if f.kept {
			dst = append(dst, f.held...)
		}
		return dst
	}
	f.held = append(f.held, b)
	switch {
	case kind == ']' && len(body) > maxText: // no title is so long
		f.kept, f.state = false, passing
	case kind == 'P' && b >= 0x40 && b < 0x7f, kind != ']' && len(body) > 64:
		f.kept = wanted(kind, f.held[f.intro:])
		f.state = passing
		if f.kept {
			dst = append(dst, f.held...)
		}
	}
	return dst
}

// inPassing shows or leaves out the rest of a string.
func (f *Filter) inPassing(dst []byte, b byte) []byte {
	kind := f.held[f.intro-1]
	switch {
	case f.state == passingE && b == '\\':
		f.state = ground
		if f.kept {
			dst = append(dst, esc, b)
		}
		return dst
	case f.state == passingE: // it has broken the string off
		if f.kept {
			dst = append(dst, can)
		}
		f.begin()
		return f.control(dst, b)
	case b == esc:
		f.state = passingE
		return dst
	case b == can, b == sub, b == bel && kind == ']':
		f.state = ground
		if f.kept || b != bel {
			dst = append(dst, b)
		}
		return dst
	}
	if f.kept {
		dst = append(dst, b)
	}
	return dst
}

// wanted reports whether a string may be shown: no question, no clipboard, no
// notification, no transfer.
func wanted(kind byte, body []byte) bool {
	switch kind {
	case ']':
		number, rest, _ := bytes.Cut(body, []byte(";"))
		switch string(number) {
		case "0", "1", "2", "7", "8", "133":
			return true
		case "4", "5", "10", "11", "12", "13", "14", "15", "16", "17", "18", "19", "104", "105",
			"110", "111", "112", "113", "114", "115", "116", "117", "118", "119", "22":
			return !bytes.ContainsRune(rest, '?')
		}
		return false
	case 'P':
		body = bytes.TrimLeft(body, "0123456789;")
		return !bytes.HasPrefix(body, []byte("$q")) && !bytes.HasPrefix(body, []byte("+")) && // DECRQSS, XTGETTCAP
			!bytes.HasPrefix(body, []byte("t")) && !bytes.HasPrefix(body, []byte("$u")) // tmux passthrough
	}
	return false
}
