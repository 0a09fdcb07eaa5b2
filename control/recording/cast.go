package recording

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"
)

// cast encodes one asciicast v2 file, line by line.
type cast struct {
	start time.Time
	tail  []byte // begin of a character whose rest has not come
}

func (c *cast) header(s Session, title string) []byte {
	cols, rows := s.Cols, s.Rows
	if cols == 0 || rows == 0 {
		cols, rows = 80, 24
	}
	h := struct {
		Version   int               `json:"version"`
		Width     uint16            `json:"width"`
		Height    uint16            `json:"height"`
		Timestamp int64             `json:"timestamp"`
		Title     string            `json:"title"`
		Env       map[string]string `json:"env,omitempty"`
	}{2, cols, rows, c.start.Unix(), title, nil}
	if s.Term != "" {
		h.Env = map[string]string{"TERM": s.Term}
	}
	b, _ := json.Marshal(h) // texts and numbers always encode
	return append(b, '\n')
}

// output is what the terminal shows. A character that is torn between two
// calls waits for its rest; other bytes that are not UTF-8 become U+FFFD.
func (c *cast) output(at time.Time, p []byte) []byte {
	p = append(c.tail, p...)
	cut := len(p) - torn(p)
	c.tail = bytes.Clone(p[cut:])
	if cut == 0 {
		return nil
	}
	return c.event(at, "o", string(p[:cut]))
}

// torn is how many bytes at the end of p begin a character.
func torn(p []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(p); n++ {
		if b := p[len(p)-n]; utf8.RuneStart(b) {
			if b >= utf8.RuneSelf && !utf8.FullRune(p[len(p)-n:]) {
				return n
			}
			return 0
		}
	}
	return 0
}

func (c *cast) resize(at time.Time, cols, rows uint16) []byte {
	return c.event(at, "r", fmt.Sprintf("%dx%d", cols, rows))
}

func (c *cast) event(at time.Time, kind, data string) []byte {
	text, _ := json.Marshal(data) // as above
	line := append([]byte{'['}, strconv.FormatFloat(at.Sub(c.start).Seconds(), 'f', 6, 64)...)
	line = append(line, `, "`+kind+`", `...)
	return append(append(line, text...), ']', '\n')
}
