package protocol

import (
	"math"
	"path"
	"strings"
	"unicode"
	"unicode/utf8"
)

// validName is what may become a file name, a container id and a hostname.
func validName(s string) bool {
	if len(s) == 0 || len(s) > 64 {
		return false
	}
	for i, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case (c == '-' || c == '_') && i > 0:
		default:
			return false
		}
	}
	return true
}

func cleanAbs(p string) bool { return len(p) <= 4096 && path.IsAbs(p) && path.Clean(p) == p }

// Cut makes a text fit for a document: valid UTF-8 without control characters, of
// which databases refuse some and terminals obey others, and at most MaxText bytes
// long.
func Cut(s string) string {
	s = strings.Map(shown, strings.ToValidUTF8(s, "?"))
	if len(s) <= MaxText {
		return s
	}
	return strings.ToValidUTF8(s[:MaxText-3], "") + "..."
}

// shown is what is left of a character in a text for people; -1: nothing.
func shown(r rune) rune {
	switch {
	case r == '\n', r == '\t':
		return ' '
	case unicode.IsControl(r), unicode.Is(unicode.Bidi_Control, r):
		return -1
	}
	return r
}

// maxCount is the largest counter that everyone's signed integers hold.
const maxCount = math.MaxInt64

func tooLong(texts ...string) bool { return anyTooLong(texts) }

func anyTooLong(texts []string) bool {
	for _, t := range texts {
		if len(t) > MaxLabel {
			return true
		}
	}
	return false
}

func tooMany(counts ...uint64) bool {
	for _, n := range counts {
		if n > maxCount {
			return true
		}
	}
	return false
}

// unkept reports whether a database would refuse one of these texts.
func unkept(texts ...string) bool {
	for _, t := range texts {
		if strings.ContainsRune(t, 0) || !utf8.ValidString(t) {
			return true
		}
	}
	return false
}

// maxMoment is the last millisecond of the year 9999.
const maxMoment = 253_402_300_799_999

// noMoments reports whether one of these is no time since 1970 in milliseconds.
func noMoments(at ...int64) bool {
	for _, ms := range at {
		if ms < 0 || ms > maxMoment {
			return true
		}
	}
	return false
}

// finite reports whether all values can be written as JSON.
func finite(values ...float32) bool {
	for _, v := range values {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return false
		}
	}
	return true
}
