package cli

import (
	"fmt"
	"strings"
	"time"
)

func trimLine(b []byte) string { return strings.TrimRight(string(b), "\r\n") }

// age says how long ago t was, as kubectl does: 42s, 5m, 3h, 12d.
func age(t time.Time) string {
	d := time.Since(t)
	switch {
	case t.IsZero():
		return ""
	case d < time.Minute:
		return fmt.Sprintf("%ds", max(0, int(d.Seconds())))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

func ago(t *time.Time) string {
	if t == nil {
		return "never"
	}
	return age(*t) + " ago"
}

func date(t *time.Time, none string) string {
	if t == nil {
		return none
	}
	return t.Local().Format("2006-01-02")
}

// size says bytes in binary units with at most one digit after the point.
func size(n uint64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n), -1
	for ; v >= unit && i < 4; i++ {
		v /= unit
	}
	text := fmt.Sprintf("%.1f", v)
	return strings.TrimSuffix(text, ".0") + " " + []string{"KiB", "MiB", "GiB", "TiB", "PiB"}[i]
}
